"""Dtypes, layouts and memory formats that a file gives as numbers: torch takes any, and reads beyond its tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from jaccli.errors import RefusedError

# c10::ScalarType without those of quantized numbers, bits and numbers shorter than a byte.
_DTYPES: Final = frozenset({*range(12), 15, *range(23, 30)})
_VALID: Final[dict[str, frozenset[int]]] = {
    "ScalarType": _DTYPES,
    "Layout": frozenset({0, 1}),  # strided, sparse_coo
    "MemoryFormat": frozenset(range(4)),
}


def enumerations(schema: Any) -> dict[str, Collection[int]]:
    """Argument → the numbers that it may be, of an operator's arguments that stand for something."""
    found: dict[str, Collection[int]] = {}
    for argument in schema.arguments:
        kind = str(argument.real_type).removeprefix("Optional[").removesuffix("]")
        if kind in _VALID:
            found[argument.name] = _VALID[kind]
    return found


def check_enumeration(operator: str, name: str, value: Any, valid: Collection[int]) -> None:
    """Refuse a number that stands for nothing.

    Raises:
        RefusedError: names the operator and the argument.
    """
    if isinstance(value, int) and value not in valid:
        raise RefusedError(
            f"the model calls {operator} with the {name} {str(value)[:24]}",
            "a number that stands for one that networks are trained with",
            "check whether the model file is whole and from a source you trust",
        )
