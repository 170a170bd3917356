"""Dtypes, layouts and memory formats that a file gives as numbers: torch takes any, and reads beyond its tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch

from jaccli.errors import RefusedError

# Numbers of c10::ScalarType, without those of quantized numbers, bits and numbers shorter than a byte.
_FIRST = "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool"
_FLOAT8 = "float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz"
DTYPES: Final[dict[int, torch.dtype]] = {
    **{number: getattr(torch, name) for number, name in enumerate(_FIRST.split())},
    15: torch.bfloat16,
    **{number: getattr(torch, name) for number, name in enumerate(f"{_FLOAT8} uint16 uint32 uint64".split(), 23)},
}
DTYPE_NUMBERS: Final = {kind: number for number, kind in DTYPES.items()}
_VALID: Final[dict[str, frozenset[int]]] = {
    "ScalarType": frozenset(DTYPES),
    "Layout": frozenset({0, 1}),  # strided, sparse_coo
    "MemoryFormat": frozenset(range(4)),
}


def enumerations(schema: Any) -> dict[str, Collection[int]]:
    """Argument → the numbers that it may be, of an operator's arguments that stand for something."""
    valid: dict[str, Collection[int]] = {}
    for argument in schema.arguments:
        kind = str(argument.real_type).removeprefix("Optional[").removesuffix("]")
        if kind in _VALID:
            valid[argument.name] = _VALID[kind]
    return valid


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
