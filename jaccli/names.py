"""Names that the command line checks without torch."""

from __future__ import annotations

import difflib
from numbers import Integral

from jaccli.errors import UsageError
from jaccli.text.wording import term, worded

# A key of ``METHOD_CLASSES``; ``check_method`` makes one of a user's text.
MethodName = str
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
METHOD_NAMES = tuple(METHOD_CLASSES)
# Of J - I, as ``deviation`` gives them and ``--fail-above`` takes them.
NORMS = ("frobenius", "relative", "spectral", "l1", "max_abs", "trace", "alpha", "identity_share")
# The layer of a saved J whose file does not name it.
UNKNOWN = "?"


def check_method(name: str) -> MethodName:
    """The method of this name.

    Raises:
        UsageError: there is none.
    """
    if name in METHOD_CLASSES:
        return name
    near = difflib.get_close_matches(str(name), METHOD_CLASSES, 1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"method {name!r} is not known", f"expected one of {', '.join(METHOD_CLASSES)}", hint)


def check_count(name: str, value: object, others: str = "") -> None:
    """Check a parameter, which must be a whole number from 1. ``others`` ends the sentence on what it may be.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        parameter = worded("{parameter}", parameter=term(name, repr(value)))
        raise UsageError(parameter, f"expected a whole number from 1{others}")


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
