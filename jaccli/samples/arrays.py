"""NumPy files, read without pickle and without trusting the sizes that they declare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_unpacked
from jaccli.safety.reading import COPY_AGAIN
from jaccli.samples.expected import WHOLE

Rows = Callable[[int], Sequence[int]]
"""Given how many rows there are, the numbers of those wanted, as ``Selection.indices``."""

_LONGEST_HEADER: Final = 1 << 16
_BLOCK: Final = 1 << 24  # bytes read at once where not all are wanted


def read_npy(
    handle: IO[bytes], size: int, name: str, *, stored: int | None = None, text: bool = False, rows: Rows | None = None
) -> np.ndarray[Any, Any]:
    """The array of an npy stream of ``size`` bytes that stands at its start and can seek forwards.

    Args:
        handle: a file, or a member of an npz.
        size: bytes in all, header included.
        name: for messages.
        stored: bytes in the file, where it is compressed.
        text: strings are wanted (and refused otherwise).
        rows: which rows are wanted; of others nothing is kept, and what is behind the last is not read.

    Raises:
        RefusedError: not an array of numbers, cut short, or unfolding absurdly.
        ResourceError: more than the memory available.
    """
    header = _header(handle, name)
    if header.dtype.hasobject:
        raise RefusedError(
            f"{name} holds Python objects (a pickle, which could run code)",
            "expected numbers",
            "save it as an array of numbers: array.astype(float)",
        )
    if not text:
        _check_numbers(header.dtype, name)
    remaining = size - handle.tell()
    if header.nbytes > remaining:
        raise RefusedError(
            f"{name} is truncated: shape {header.shape} of {header.dtype} is {header.nbytes} bytes",
            f"the file has {remaining}",
            COPY_AGAIN,
        )
    stored = remaining if stored is None else stored
    if rows is not None and header.shape:
        return _read_rows(handle, header, rows(header.shape[0]), stored, name)
    require_unpacked(header.nbytes, stored, name)
    flat = np.empty(header.count, header.dtype)
    _read_into(handle, flat, name)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


def _read_into(handle: IO[bytes], flat: np.ndarray[Any, Any], name: str) -> None:
    """Fill an array from where the stream stands, in pieces: a member of an archive is unpacked as it is read."""
    raw: Any = flat.view(np.uint8).reshape(-1) if flat.nbytes else b""
    view = memoryview(raw)
    for start in range(0, len(view), _BLOCK):
        piece = handle.read(min(_BLOCK, len(view) - start))
        if len(piece) < min(_BLOCK, len(view) - start):
            raise RefusedError(f"{name} is a damaged or truncated npy file", "", COPY_AGAIN)
        view[start : start + len(piece)] = piece


def _read_rows(
    handle: IO[bytes], header: _Header, picked: Sequence[int], stored: int, name: str
) -> np.ndarray[Any, Any]:
    """Rows of an array, in the order picked: row by row in C order, block by block of columns in Fortran's."""
    n, width = header.shape[0], math.prod(header.shape[1:])
    require_unpacked(len(picked) * width * header.dtype.itemsize, stored, name)
    start = handle.tell()
    if not header.fortran:
        # Each row once and forwards: a member of an archive is unpacked again from its start to be read backwards.
        rows, positions = np.unique(np.asarray(picked, dtype=np.int64), return_inverse=True)
        array = np.empty((len(rows), width), header.dtype)
        for position, row in enumerate(rows.tolist()):
            handle.seek(start + row * width * header.dtype.itemsize)
            _read_into(handle, array[position], name)
        return array[positions].reshape(len(picked), *header.shape[1:])
    out = np.empty((len(picked), width), header.dtype, order="F")
    step = max(_BLOCK // max(n * header.dtype.itemsize, 1), 1)
    for column in range(0, width, step):
        block = np.empty((n, min(step, width - column)), header.dtype, order="F")
        _read_into(handle, block.reshape(-1, order="F"), name)
        out[:, column : column + step] = block[list(picked)]
    return out.reshape(len(picked), *header.shape[1:], order="F")


def as_tensor(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """A tensor of the array's shape and dtype. Torch computes little with wide unsigned integers: they become int64.

    Raises:
        RefusedError: not numbers, or an unsigned value above the int64 range.
    """
    _check_numbers(array.dtype, name)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise RefusedError(
                f"{name} holds integers above the int64 range",
                "expected at most 2^63 - 1, or floats",
                "save it as floats: array.astype(float)",
            )
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif array.dtype.kind == "c" and array.dtype.itemsize > 16:
        array = array.astype(np.complex128)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _header(handle: IO[bytes], name: str) -> _Header:
    try:
        version = npy_format.read_magic(handle)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(handle)
        elif version in ((2, 0), (3, 0)):
            # A header of up to 4 GiB, which NumPy reads before it looks at its length.
            if int.from_bytes(handle.read(4), "little") > _LONGEST_HEADER:
                raise ValueError("a header of absurd length")
            handle.seek(-4, 1)
            shape, fortran, dtype = npy_format.read_array_header_2_0(handle)
        else:
            raise ValueError("a version of the format that is not known")
    except Exception:  # a header is text that NumPy evaluates as a literal: anything can go wrong
        raise RefusedError(f"{name} is a damaged or truncated npy file", "", COPY_AGAIN) from None
    if any(type(length) is not int or length < 0 for length in shape):
        raise RefusedError(f"{name} is a damaged npy file: shape {str(shape)[:80]}", *WHOLE)
    return _Header(tuple(int(length) for length in shape), bool(fortran), dtype)


def _check_numbers(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind in "fiubc":
        return
    kinds = {"U": "text", "S": "text", "O": "Python objects", "M": "dates", "m": "times"}
    content = kinds.get(dtype.kind, f"records of type {str(dtype)[:40]!r}")
    # NumPy stores the bfloat16 of ml_dtypes as two bytes of no type.
    remedy = "NumPy has no bfloat16: save float32, or use safetensors" if dtype == np.dtype("V2") else ""
    raise RefusedError(f"{name} holds {content}", "expected real numbers", remedy)
