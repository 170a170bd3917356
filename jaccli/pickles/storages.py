"""Tensors from the descriptions in a pickle, each checked against the bytes in the file."""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.pickles.stand_ins import MAX_DIMENSIONS, ArraySpec, NumpyDtypeSpec, SparseSpec, StorageRef, TensorSpec
from jaccli.safety.archives import open_archive
from jaccli.safety.reading import DAMAGED_OR_FORGED, DamagedError
from jaccli.text.escape import quote

if TYPE_CHECKING:
    from jaxtyping import Shaped

# The most bytes that all tensors with repeated elements (stride 0) of a file may have.
_MAX_REPEATED_BYTES = 1 << 28


class FileBytes:
    """The bytes of a file, or ``data``.

    A file is mapped copy on write: only the parts in use are read, and writes to the memory do not reach the file.
    """

    def __init__(self, path: Path | None, data: bytes = b"") -> None:
        self.size = os.path.getsize(path) if path else len(data)
        self._bytes: Any = None
        if path:
            self._bytes = torch.UntypedStorage.from_file(os.fspath(path), False, self.size)
        elif data:
            self._bytes = torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()

    def part(self, start: int, nbytes: int) -> torch.UntypedStorage:
        """``nbytes`` from ``start``; a copy only if ``start`` is not aligned to 16 bytes."""
        if start < 0 or nbytes < 0 or start + nbytes > self.size:
            raise DamagedError("a storage lies outside the file")
        if nbytes == 0:
            return torch.UntypedStorage(0)
        part: torch.UntypedStorage = self._bytes[start : start + nbytes]
        if start % 16 == 0:  # for the widest elements, complex128: kernels assume that data are aligned
            return part
        copied: torch.UntypedStorage = torch.tensor([], dtype=torch.uint8).set_(part).clone().untyped_storage()
        return copied


class StorageSource(ABC):
    """Gives the raw bytes of storages by key; ``big_endian`` is the byte order of their elements."""

    def __init__(self, content: FileBytes) -> None:
        self._content = content
        self._ranges: dict[str, tuple[int, int]] = {}  # key → first byte, and number of bytes
        self.big_endian = False

    @abstractmethod
    def declare(self, key: str, dtype: str, numel: int) -> None:
        """Check what a pickle states about a storage against the file, now or later."""

    def storage(self, key: str) -> torch.UntypedStorage:
        """The bytes of the storage ``key``, which was declared."""
        return self._content.part(*self._ranges[key])


class ZipSource(StorageSource):
    """The storages of a ``torch.save`` archive. A compressed record is refused, so that nothing has to be unpacked.

    Args:
        file: the archive.
        content: the same bytes.
        name: for messages.
    """

    def __init__(self, file: IO[bytes], content: FileBytes, name: str) -> None:
        super().__init__(content)
        self._file, self._name = file, name
        with open_archive(file, name) as archive:
            infos = archive.infolist()
        pickles = [info.filename for info in infos if info.filename.split("/", 1)[-1] == "data.pkl"]
        self._root = pickles[0][: -len("data.pkl")]
        self._infos = {info.filename: info for info in infos}
        order = self.record("byteorder", 16) if self._root + "byteorder" in self._infos else b"little"
        self.big_endian = order == b"big"

    def seek(self, name: str) -> None:
        """Move the file's position to the beginning of a record."""
        self._file.seek(self._locate(self._root + name)[0])

    def record(self, name: str, most: int) -> bytes:
        """The first ``most`` bytes of a small record."""
        start, nbytes = self._locate(self._root + name)
        self._file.seek(start)
        return self._file.read(min(nbytes, most))

    def declare(self, key: str, dtype: str, numel: int) -> None:
        """Check that the record of a storage has all the elements that the pickle states.

        Raises:
            DamagedError: it has fewer.
        """
        if key not in self._ranges:
            self._ranges[key] = self._locate(f"{self._root}data/{key}")
        if not 0 <= numel * itemsize(dtype) <= self._ranges[key][1]:
            raise DamagedError("a storage is longer than its record")

    def _locate(self, name: str) -> tuple[int, int]:
        info = self._infos.get(name)
        if info is None:
            raise DamagedError("a record is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedError(
                f"{self._name} holds compressed tensors; torch.save does not write such files",
                "expected plain records",
                "save the state_dict again with torch.save, or as safetensors",
            )
        # The directory does not say where the data begin: the name and padding in the record's own header count.
        before = self._file.tell()  # a pickle may be read from here
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        self._file.seek(before)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise DamagedError("a record has no header")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > self._content.size:
            raise DamagedError("a record lies outside the file")
        return start, info.file_size


class StreamSource(StorageSource):
    """The storages behind the pickles of a non-zip file; each is its number of elements in 8 bytes, then its data."""

    def __init__(self, content: FileBytes) -> None:
        super().__init__(content)
        self._dtypes: dict[str, str] = {}
        self._declared: dict[str, int] = {}

    def declare(self, key: str, dtype: str, numel: int) -> None:
        """Remember what the pickle states about a storage; ``index`` checks it."""
        self._dtypes.setdefault(key, dtype)
        self._declared[key] = max(numel * itemsize(dtype), self._declared.get(key, 0))

    def index(self, file: IO[bytes], keys: list[Any]) -> None:
        """Find every storage, in the order of ``keys``, from the position of ``file`` on.

        Raises:
            DamagedError: one lies outside the file, or is shorter than the pickle says.
        """
        position = file.tell()
        for key in keys:
            file.seek(position)
            (numel,) = struct.unpack("<q", file.read(8))
            nbytes = numel * itemsize(self._dtypes[key])
            position += 8
            if numel < 0 or position + nbytes > self._content.size:
                raise DamagedError("a storage lies outside the file")
            if self._declared[key] > nbytes:
                raise DamagedError("a storage is longer than its bytes")
            self._ranges[key] = (position, nbytes)
            position += nbytes


def checked_extent(
    size: Sequence[int], stride: Sequence[int], offset: int, itemsize: int, nbytes: int, most: int = _MAX_REPEATED_BYTES
) -> int:
    """How many bytes the elements of a strided tensor take, after a check that they lie in its storage.

    Args:
        size: elements in each dimension; ``stride`` and ``offset`` in elements too.
        itemsize: bytes of one element.
        nbytes: bytes of the storage.
        most: bytes that a tensor may claim which repeats the elements of its storage (a stride of 0).

    Raises:
        DamagedError: sizes that make no sense, an element beyond the storage, or absurdly many of them.
    """
    fits = len(size) == len(stride) and len(size) <= MAX_DIMENSIONS
    if not fits or min([*size, *stride, offset], default=0) < 0 or max(size, default=0) >= 1 << 63:
        raise DamagedError("the sizes of a tensor make no sense")
    count = math.prod(size)
    # The last element has the largest index in each dimension, since strides are not negative.
    needed = (offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1) * itemsize
    if count and needed > nbytes:
        raise DamagedError(f"a tensor needs {needed} bytes and its storage has {nbytes}")
    if count * itemsize > max(nbytes, most):
        raise DamagedError(f"a tensor claims {count} elements from {nbytes} bytes")
    return count * itemsize


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` → ``torch.float32``."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("no such dtype here")
    return dtype


def itemsize(name: str) -> int:
    """Bytes of one element."""
    return torch_dtype(name).itemsize


class TensorMaker:
    """Makes tensors from descriptions.

    Invariants: every element lies within the bytes that the file has for its storage. Each storage is made once, so
    that tensors which are views of one storage stay so. Tensors that repeat elements take no more than a fixed size in
    all, since a later copy would need that much memory.

    Raises:
        RefusedError: a tensor reaches beyond its storage, or repeats its elements into too many bytes.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._storages: dict[tuple[int, str], torch.UntypedStorage] = {}
        self._repeated = 0

    def make(self, name: str, spec: Any) -> Shaped[Tensor, "..."]:
        """The tensor, of the shape that a ``TensorSpec``, ``SparseSpec`` or ``ArraySpec`` describes.

        Args:
            name: of the tensor, for the message.
            spec: its description.
        """
        try:
            if isinstance(spec, TensorSpec):
                return self._strided(spec)
            if isinstance(spec, SparseSpec):
                return self._sparse(name, spec)
            if isinstance(spec, ArraySpec):
                return _from_array(spec)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, struct.error):
            raise RefusedError(
                f"{self._where}: the tensor {quote(name)} does not fit the data in the file",
                "expected sizes and strides within its storage",
                DAMAGED_OR_FORGED,
            ) from None
        raise TypeError("not a tensor")

    def _strided(self, spec: TensorSpec) -> Shaped[Tensor, "..."]:
        dtype = torch_dtype(spec.dtype)
        storage = self._bytes(spec.storage)
        offset = spec.offset + spec.storage.first
        nbytes = checked_extent(spec.size, spec.stride, offset, dtype.itemsize, storage.nbytes())
        if nbytes > storage.nbytes():
            self._repeated += nbytes
            if self._repeated > _MAX_REPEATED_BYTES:
                raise DamagedError("tensors repeat their elements absurdly often")
        return torch.empty(0, dtype=dtype).set_(storage, offset, spec.size, spec.stride)

    def _bytes(self, ref: StorageRef) -> torch.UntypedStorage:
        key = (id(ref.source), ref.key)
        if key not in self._storages:
            storage = ref.source.storage(ref.key)
            if ref.source.big_endian != (sys.byteorder == "big") and itemsize(ref.dtype) > 1:
                storage = storage.clone()
                storage.byteswap(torch_dtype(ref.dtype))
            self._storages[key] = storage
        return self._storages[key]

    def _sparse(self, name: str, spec: SparseSpec) -> Shaped[Tensor, "..."]:
        parts: list[Any] = [self.make(name, part) if isinstance(part, TensorSpec) else part for part in spec.parts]
        if spec.layout == "torch.sparse_coo":
            indices, values, size = parts[:3]
            return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        layouts = ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
        layout = {f"torch.{kind}": getattr(torch, kind) for kind in layouts}[spec.layout]
        outer, inner, values, size = parts
        return torch.sparse_compressed_tensor(outer, inner, values, size, layout=layout, check_invariants=True)


def _from_array(spec: ArraySpec) -> Shaped[Tensor, "..."]:
    import numpy as np

    if not isinstance(spec.dtype, NumpyDtypeSpec) or spec.dtype.code[:1] not in "fiubc":
        raise ValueError("not an array of numbers")
    data = spec.data.encode("latin1") if isinstance(spec.data, str) else spec.data
    kind = "?" if spec.dtype.code == "b1" else spec.dtype.code
    dtype = np.dtype(kind).newbyteorder(">" if spec.dtype.order == ">" else "<")
    flat = np.frombuffer(data or b"", dtype=dtype)
    array = flat.reshape(spec.shape, order="F" if spec.fortran else "C")
    return torch.from_numpy(np.array(array, dtype=dtype.newbyteorder("="), order="C"))
