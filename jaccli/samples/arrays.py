"""NumPy files, read without pickle and without trusting the sizes that they declare."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.samples.memory import require_memory


def read_npy(handle: IO[bytes], size: int, name: str, *, text: bool = False) -> np.ndarray[Any, Any]:
    """The array of an npy stream of ``size`` bytes that stands at its start and can seek back to it.

    Args:
        handle: a file, or a member of an npz.
        size: bytes in all, header included.
        name: for messages.
        text: strings are wanted (and refused otherwise).

    Raises:
        RefusedError: not an array of numbers, or cut short.
        ResourceError: more than the memory available.
    """
    shape, dtype = _header(handle, name)
    if dtype.hasobject:
        raise RefusedError(f"{name} holds Python objects (a pickle, which could run code)", "expected numbers")
    if not text:
        _check_numbers(dtype, name)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > size - handle.tell():
        raise RefusedError(
            f"{name} is truncated: shape {shape} of {dtype} is {n_bytes} bytes",
            f"the file has {size - handle.tell()}",
        )
    require_memory(n_bytes, name)
    handle.seek(0)
    try:
        array: np.ndarray[Any, Any] = npy_format.read_array(handle, allow_pickle=False)
    except ValueError:
        raise RefusedError(f"{name} is a damaged or truncated npy file") from None
    return array


def as_tensor(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """A tensor of the array's dtype; torch has no wide unsigned integers worth having: they become int64.

    Raises:
        RefusedError: not numbers, or an unsigned value above the int64 range.
    """
    _check_numbers(array.dtype, name)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise RefusedError(f"{name} holds integers above the int64 range")
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif array.dtype.kind == "c" and array.dtype.itemsize > 16:
        array = array.astype(np.complex128)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _header(handle: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy_format.read_magic(handle)
        if version == (1, 0):
            shape, _, dtype = npy_format.read_array_header_1_0(handle)
        else:
            shape, _, dtype = npy_format.read_array_header_2_0(handle)
    except Exception:  # a header is text that NumPy evaluates as a literal: anything can go wrong
        raise RefusedError(f"{name} is a damaged or truncated npy file") from None
    if any(type(length) is not int or length < 0 for length in shape):
        raise RefusedError(f"{name} is a damaged npy file: shape {str(shape)[:80]}")
    return tuple(int(length) for length in shape), dtype


def _check_numbers(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind in "fiubc":
        return
    words = {
        "U": "text",
        "S": "text",
        "O": "Python objects",
        "M": "dates",
        "m": "times",
    }
    what = words.get(dtype.kind, f"records of type {str(dtype)[:40]!r}")
    remedy = "NumPy has no bfloat16: save float32, or use safetensors" if dtype == np.dtype("V2") else ""
    raise RefusedError(f"{name} holds {what}", "expected real numbers", remedy)
