"""Names that the command line checks without torch."""

from __future__ import annotations

import difflib
from numbers import Integral, Real
from typing import Literal, TypeVar

from jaccli.errors import UsageError
from jaccli.text.wording import term, worded

T = TypeVar("T", bound=str)

MethodName = Literal["auto", "structured", "reverse", "forward", "loop", "replicate", "functional", "finite-difference"]
# The methods, and the class of each, which ``jaccli.methods`` imports when it is first asked for: that takes torch.
METHOD_CLASSES: dict[MethodName, str] = {
    "auto": "jaccli.methods.auto:Auto",
    "structured": "jaccli.methods.structured:Structured",
    "reverse": "jaccli.methods.backward:Reverse",
    "forward": "jaccli.methods.forward:Forward",
    "loop": "jaccli.methods.backward:Loop",
    "replicate": "jaccli.methods.backward:Replicate",
    "functional": "jaccli.methods.backward:Functional",
    "finite-difference": "jaccli.methods.finite_difference:FiniteDifference",
}
METHOD_NAMES: tuple[MethodName, ...] = tuple(METHOD_CLASSES)
# Of J - I, as ``deviation`` gives them and ``--fail-above`` takes them.
NORMS = ("frobenius", "relative", "spectral", "l1", "max_abs", "trace", "alpha", "identity_share")
# The layer of a saved J whose file does not name it.
UNKNOWN = "?"


def pair_name(source: object, target: object) -> str:
    """How messages name a pair of layers: ``fc1 -> output``."""
    return f"{source!s} -> {target!s}"


def check_one_of(name: str, value: object, known: tuple[T, ...]) -> T:
    """The one of the known texts that a value is; ``name`` is the parameter or flag, for the message.

    Raises:
        UsageError: it is none of them.
    """
    for one in known:
        if one == value:
            return one
    near = difflib.get_close_matches(str(value), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{name} {value!r} is not known", f"expected one of {', '.join(known)}", hint)


def check_method(name: str) -> MethodName:
    """The method of this name.

    Raises:
        UsageError: there is none.
    """
    return check_one_of("method", name, tuple(METHOD_CLASSES))


def check_share(value: object, given: str, expected: str, remedy: str) -> None:
    """Check that a value is a number between 0 and 1, neither included; the rest is the message.

    Raises:
        UsageError: it is not.
    """
    if not (isinstance(value, Real) and 0 < float(value) < 1):
        raise UsageError(given, expected, remedy)


def check_count(name: str, value: object, others: str = "") -> None:
    """Check a parameter, which must be a whole number from 1. ``others`` ends the sentence on what it may be.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        example = worded("as {parameter}", parameter=term(name, "8"))
        raise UsageError(term(name, repr(value)), f"expected a whole number from 1{others}", example)


def check_compile(compile: bool, *methods: str) -> None:
    """Check that there is something to compile: only the programs that ``structured`` records can be.

    Raises:
        UsageError: all the methods are others.
    """
    # ``auto`` may select ``structured``; what it selects is known only once the model is loaded.
    if compile and not {"auto", "structured"} & {*methods}:
        raise UsageError(
            worded("{compile:True} has nothing to compile with the method {method!r}", method=methods[0]),
            "expected the method structured, or auto",
            worded("leave {compile} out, or choose another method"),
        )
