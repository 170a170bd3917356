"""Dtypes, layouts and memory formats that a file gives as numbers: torch takes any, and reads beyond its tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch

from jaccli.errors import RefusedError

# Numbers of c10::ScalarType, without those of quantized numbers, bits and numbers shorter than a byte.
DTYPES: Final[dict[int, torch.dtype]] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    8: torch.complex32,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    15: torch.bfloat16,
    23: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    25: torch.float8_e5m2fnuz,
    26: torch.float8_e4m3fnuz,
    27: torch.uint16,
    28: torch.uint32,
    29: torch.uint64,
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
