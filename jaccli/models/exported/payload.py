"""Tensors from bytes: raw storages with a description, or a pickle read ``weights_only`` and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.pickles.saved_object import read_pickled
from jaccli.pickles.stand_ins import MAX_DIMENSIONS, TensorSpec
from jaccli.pickles.storages import TensorMaker
from jaccli.text.escape import listed, quote

_FREE_EXPANSION: Final = 256 << 20
"""A tensor may claim to be larger than its storage (a stride of 0) up to this many bytes."""

_DTYPES: Final[dict[int, str]] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED: Final = 7


def dtype_of(code: Any) -> torch.dtype:
    """The dtype with this number in the archive format."""
    found = getattr(torch, _DTYPES[int(code)], None)
    if not isinstance(found, torch.dtype):
        raise ValueError("a dtype that this torch does not have")
    return found


def load_raw(data: bytearray, meta: Mapping[str, Any], name: str) -> Tensor:
    """A tensor over ``data``, as described; tensors over the same bytes share them.

    Raises:
        RefusedError: the description does not fit the bytes.
    """
    dtype = dtype_of(meta["dtype"])
    sizes = [_number(item) for item in meta["sizes"]]
    strides = [_number(item) for item in meta["strides"]]
    offset = _number(meta["storage_offset"])
    if int(meta["layout"]) != _STRIDED:
        raise _unfit(name, "its layout is not strided")
    if (
        len(sizes) != len(strides)
        or len(sizes) > MAX_DIMENSIONS
        or max(sizes, default=0) >= 1 << 63
        or min([*sizes, *strides, offset], default=0) < 0
    ):
        raise _unfit(name, "its sizes make no sense")
    _check_extent(name, sizes, strides, offset, dtype.itemsize, len(data))
    if not data:
        return torch.empty(sizes, dtype=dtype)
    whole = len(data) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=whole).as_strided(sizes, strides, offset)


def _number(raw: Any) -> int:
    value = raw["as_int"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a size that is not a number")
    return value


def _check_extent(name: str, sizes: list[int], strides: list[int], offset: int, itemsize: int, stored: int) -> None:
    count = 1
    for size in sizes:
        count *= size
    if count == 0:
        return
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if (last + 1) * itemsize > stored:
        raise _unfit(name, f"it needs {(last + 1) * itemsize} bytes and has {stored}")
    if count * itemsize > max(stored, _FREE_EXPANSION):
        raise _unfit(name, f"it claims {count} elements from {stored} bytes")


def _unfit(name: str, why: str) -> RefusedError:
    return RefusedError(
        f"the tensor {quote(name)} in the archive does not fit its bytes: {why}",
        "expected a tensor written by torch.export.save",
    )


def load_pickled(data: bytes, name: str) -> dict[str, Tensor] | Tensor | None:
    """The tensor, or the dict of tensors, in an entry that ``torch.save`` wrote; None if it is something else.

    Raises:
        RefusedError: it would run code, is damaged, or holds tensors that do not fit their storage.
    """
    found, inert = read_pickled(None, f"the pickle {quote(name)} in the archive", data)
    if inert:
        raise RefusedError(
            f"the pickle {quote(name)} in the archive holds more than tensors: {listed(sorted(inert))}",
            "expected plain tensors; a pickle is never executed",
            "save the model again with torch.export.save of a current torch",
        )
    maker = TensorMaker("the archive")
    if isinstance(found, TensorSpec):
        return maker.make(name, found)
    if isinstance(found, dict) and all(isinstance(value, TensorSpec) for value in found.values()):
        return {str(key): maker.make(str(key), value) for key, value in found.items()}
    return None
