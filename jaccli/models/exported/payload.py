"""Tensors from bytes: raw storages with a description, or a pickle read ``weights_only`` and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.pickles.saved_object import read_pickled
from jaccli.pickles.stand_ins import TensorSpec
from jaccli.pickles.storages import TensorMaker, checked_extent, torch_dtype
from jaccli.safety.reading import DamagedError
from jaccli.text.escape import listed, quote

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Numbers of ``ScalarType`` in torch.export's format; not those of c10.
_FIRST = "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool bfloat16"
_LATER = "uint16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu uint32 uint64"
_DTYPES: Final = dict(enumerate(_FIRST.split(), 1)) | dict(enumerate(_LATER.split(), 28))
STRIDED: Final = 7
"""The number of the layout ``torch.strided`` in this format."""


def dtype_of(code: Any) -> torch.dtype:
    """The dtype with this number in the archive format."""
    return torch_dtype(_DTYPES[int(code)])


def load_raw(data: bytearray, meta: Mapping[str, Any], name: str) -> Shaped[Tensor, "..."]:
    """A tensor over ``data``, of the shape, strides and dtype in ``meta``; tensors over the same bytes share them.

    Raises:
        RefusedError: the description does not fit the bytes.
    """
    dtype = dtype_of(meta["dtype"])
    sizes = [_number(item) for item in meta["sizes"]]
    strides = [_number(item) for item in meta["strides"]]
    offset = _number(meta["storage_offset"])
    if int(meta["layout"]) != STRIDED:
        raise _unfit(name, "its layout is not strided")
    try:
        checked_extent(sizes, strides, offset, dtype.itemsize, len(data))
    except DamagedError as error:
        raise _unfit(name, str(error)) from None
    if not data:
        return torch.empty(sizes, dtype=dtype)
    # A view of all bytes of the entry: tensors that share it are views of one storage, as they were when saved.
    whole = len(data) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=whole).as_strided(sizes, strides, offset)


def _number(raw: Any) -> int:
    value = raw["as_int"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a size that is not a number")
    return value


def _unfit(name: str, why: str) -> RefusedError:
    return RefusedError(
        f"the tensor {quote(name)} in the archive does not fit its bytes: {why}",
        "expected a tensor written by torch.export.save",
    )


def load_pickled(data: bytes, name: str) -> dict[str, Tensor] | Tensor | None:
    """The tensor, or the dict of tensors, of any shape, that ``torch.save`` wrote; None if it is something else.

    Raises:
        RefusedError: it would run code, is damaged, or holds tensors that do not fit their storage.
    """
    saved, foreign = read_pickled(None, f"the pickle {quote(name)} in the archive", data)
    if foreign:
        raise RefusedError(
            f"the pickle {quote(name)} in the archive holds more than tensors: {listed(sorted(foreign))}",
            "expected plain tensors; a pickle is never executed",
            "save the model again with torch.export.save of a current torch",
        )
    maker = TensorMaker("the archive")
    if isinstance(saved, TensorSpec):
        return maker.make(name, saved)
    if isinstance(saved, dict) and all(isinstance(value, TensorSpec) for value in saved.values()):
        return {str(key): maker.make(str(key), value) for key, value in saved.items()}
    return None
