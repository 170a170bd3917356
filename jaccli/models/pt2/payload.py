"""Tensors from bytes: raw storages with a description, or a pickle read ``weights_only`` and checked."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.models.pickle_shape import check_torch_file
from jaccli.models.quote import quote

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
_MAX_DIMENSIONS: Final = 64


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
        or len(sizes) > _MAX_DIMENSIONS
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


def load_pickled(data: bytes, name: str) -> Any:
    """What ``torch.load(weights_only=True)`` makes of an entry, if it is tensors in plain memory.

    Raises:
        RefusedError: it would run code, is damaged, or holds tensors that do not fit their storage.
    """
    _check_packed(data, name)
    try:
        check_torch_file(io.BytesIO(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        # torch's own message advises the unsafe option.
        raise RefusedError(
            f"the pickle {quote(name)} in the archive holds more than tensors, or is damaged",
            "expected plain tensors; a pickle is never executed",
            "save the model again with torch.export.save of a current torch",
        ) from None
    for tensor in _tensors_in(loaded):
        _check_tensor(tensor, name)
    return loaded


def _check_packed(data: bytes, name: str) -> None:
    """A pickle is itself a zip file, and its entries may unpack to more than there is memory for."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        unpacked = sum(entry.file_size for entry in inner.infolist())
    if unpacked > max(_FREE_EXPANSION, 2 * len(data)):
        raise _unfit(name, f"{len(data)} bytes unpack to {unpacked}")


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _check_tensor(tensor: Tensor, name: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise _unfit(name, "only dense tensors are read")
    stored = tensor.untyped_storage().nbytes()
    sizes, strides = list(tensor.shape), list(tensor.stride())
    _check_extent(name, sizes, strides, int(tensor.storage_offset()), tensor.itemsize, stored)
