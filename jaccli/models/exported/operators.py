"""Operators that an archive names → functions. What is on no list is refused by name.

An archive is data from a stranger: a graph node may name any attribute of torch. Only dispatcher
operators of ``aten`` and ``prims`` and arithmetic on numbers are looked up, and of the former those
that ``operator_names`` lists.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.models.exported.control import CONTROL
from jaccli.models.interpretation.overloads import find_overload
from jaccli.models.screening.operator_names import not_permitted, permitted
from jaccli.text.escape import quote

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# ruff: noqa: SIM905  tables of words
_NUMBER_OPERATORS: Final = (
    "le ge lt gt neg pos abs add sub mul floordiv truediv mod and_ or_ xor not_ invert rshift index".split()
)
_SYMBOLIC: Final = (
    "sym_not sym_int sym_float sym_ite sym_max sym_min sym_sum sym_sqrt sym_fresh_size _sym_sqrt _sym_cos _sym_cosh "
    "_sym_sin _sym_sinh _sym_tan _sym_tanh _sym_asin _sym_acos _sym_atan _sym_exp _sym_log2".split()
)
_MATH: Final = "trunc ceil floor sqrt exp log log2 sin cos tan sinh cosh tanh asin acos atan".split()
_NUMBERS: Final = (bool, int, float, torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
_MAX_BITS: Final = 128


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numbers only: lists and text can be multiplied, and text formatted, until the memory is full."""

    def compute(*values: Any) -> Any:
        if not all(isinstance(value, _NUMBERS) for value in values):
            raise UnsupportedError(
                "the exported model computes with something that is no number",
                "expected numbers and tensors",
                "re-export the model without it",
            )
        result = function(*values)
        if type(result) is int and result.bit_length() > _MAX_BITS:
            raise UnsupportedError(
                "the exported model computes an absurdly large number",
                f"expected at most {_MAX_BITS} bits",
                "re-export the model without it",
            )
        return result

    return compute


def _bounded(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Powers and shifts of integers can fill the memory; sizes never need more than 64 bits."""

    def compute(base: Any, exponent: Any) -> Any:
        if isinstance(exponent, int) and abs(exponent) > 64:
            raise UnsupportedError(
                f"the exported model raises a number to {exponent!r}"[:120],
                "expected an exponent or a shift of at most 64",
                "re-export the model without it",
            )
        return function(base, exponent)

    return compute


@cache
def plain_functions() -> dict[str, Callable[..., Any]]:
    """Target → function, for arithmetic on numbers."""
    functions: dict[str, Callable[..., Any]] = {}
    functions |= {f"_operator.{name}": _arithmetic(getattr(operator, name)) for name in _NUMBER_OPERATORS}
    functions |= {f"_operator.{name}": getattr(operator, name) for name in ("getitem", "is_", "is_not", "eq", "ne")}
    functions |= {f"_operator.{name}": _arithmetic(_bounded(getattr(operator, name))) for name in ("pow", "lshift")}
    functions |= {f"math.{name}": getattr(math, name) for name in _MATH}
    functions |= {f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC if hasattr(torch, name)}
    return functions


def resolve(target: str, *, trust: bool = False) -> Callable[..., Any]:
    """The function behind a target such as ``torch.ops.aten.linear.default``.

    Args:
        target: as written in an archive.
        trust: allow every operator that is registered in this process.

    Raises:
        RefusedError: it is not on the list of what a file may name, or this torch does not have it.
        UnsupportedError: it takes functions in a way that is not run here.
    """
    if target in plain_functions():
        return plain_functions()[target]
    parts = target.split(".")
    if all(_IDENTIFIER.fullmatch(part) for part in parts) and parts[:2] == ["torch", "ops"]:
        if len(parts) == 4 and parts[2] == "higher_order" and parts[3] in CONTROL:
            return CONTROL[parts[3]]
        if len(parts) == 5:
            op = find_overload(*parts[2:])
            if op is not None:
                if not trust and not (permitted(op._schema) and torch._C._dispatch_has_kernel(op.name())):
                    raise not_permitted("the exported model", quote(target))
                return op
    if parts[:3] == ["torch", "ops", "higher_order"]:
        raise unsupported(target)
    raise RefusedError(
        f"the exported model uses the operator {quote(target)}, which this PyTorch does not have",
        "operators of PyTorch itself",
        "re-export the model without it, or use ep.run_decompositions() before torch.export.save",
    )


def unsupported(target: str) -> UnsupportedError:
    """The answer to an operator that is not run."""
    return UnsupportedError(
        f"the exported model uses the operator {quote(target)}",
        "jaccli runs the operators of this PyTorch",
        "re-export the model without it, or use ep.run_decompositions() before torch.export.save",
    )


_SKIPPED: Final = frozenset(
    "_assert_tensor_metadata _assert_async _functional_assert_async sym_constrain_range sym_constrain_range_for_size "
    "_functional_sym_constrain_range _functional_sym_constrain_range_for_size".split()
)


def skipped(op: Callable[..., Any]) -> bool:
    """Whether an operator only asserts what the export assumed (a dtype that a cast model no longer has)."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return False
    return op._schema.name.split("::")[1] in _SKIPPED
