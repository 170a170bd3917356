"""The object in a file of ``torch.save``: finds the pickles in the file and has them read into stand-ins."""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from jaccli.errors import RefusedError
from jaccli.pickles.reader import PickleReader
from jaccli.pickles.stand_ins import StandIn, StorageRef, StorageType
from jaccli.pickles.storages import FileBytes, StorageSource, StreamSource, ZipSource
from jaccli.safety.budget import Budget, BudgetError
from jaccli.safety.reading import reading
from jaccli.text.wording import worded

_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickled(path: Path | None, name: str, data: bytes = b"") -> tuple[Any, dict[str, type[StandIn]]]:
    """The object in a file of ``torch.save``, made of containers and stand-ins; and path → class of the stand-ins.

    Args:
        path: the file; None for ``data``.
        name: of the file, for messages.
        data: the file's bytes.

    Raises:
        RefusedError: the file is damaged, of a format that needs code, or exceeds a ``Budget``.
        ResourceError: it takes more memory than there is.
    """
    with reading(name), _opened(path, data) as file:
        head = file.read(2)
        file.seek(0)
        if head[:2] != b"PK" and head[:1] != b"\x80":
            raise _tar_format(name)
        try:
            return _Pickles(file, FileBytes(path, data), name).read(zipped=head == b"PK")
        except BudgetError as error:
            raise RefusedError(
                f"{name} holds a pickle that takes {error}",
                "expected names, tensors and settings",
                "save model.state_dict() alone, or as safetensors",
            ) from error


@contextlib.contextmanager
def _opened(path: Path | None, data: bytes) -> Iterator[IO[bytes]]:
    """A file whose ``read(n)`` allocates no more than the bytes that are left, for any ``n``."""
    if path is None:
        yield io.BytesIO(data)
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield cast("IO[bytes]", mapped)


class _Pickles:
    """Reads the pickles of one file, and those that are nested in them, with one budget."""

    def __init__(self, file: IO[bytes], content: FileBytes, name: str) -> None:
        self._file, self._content, self._name = file, content, name
        self._budget = Budget(content.size)
        self._stand_ins: dict[str, type[StandIn]] = {}

    def read(self, *, zipped: bool) -> tuple[Any, dict[str, type[StandIn]]]:
        saved = self._zip() if zipped else self._stream(self._file, self._content)
        return saved, self._stand_ins

    def _zip(self) -> Any:
        source = ZipSource(self._file, self._content, self._name)

        def load_storage(data: tuple[Any, ...]) -> StorageRef:
            kind, key, _, numel = data[:4]
            return _ref(source, kind, key, numel)

        source.seek("data.pkl")
        return self._one(self._file, load_storage)

    def _stream(self, file: IO[bytes], content: FileBytes) -> Any:
        """A non-zip ``torch.save`` file (three header pickles, the object, the storages) or a plain pickle."""
        source = StreamSource(content)

        def load_storage(data: tuple[Any, ...]) -> StorageRef:
            kind, key, _, numel, view = data
            return _ref(source, kind, key, numel, view[1] if view else 0)

        first = self._one(file, load_storage)
        if first != _MAGIC:
            return first  # a plain pickle, which is the object itself
        self._one(file, load_storage)
        system = self._one(file, load_storage)
        source.big_endian = isinstance(system, dict) and system.get("little_endian") is False
        saved = self._one(file, load_storage)
        # Storages come last, in the order of the keys in this pickle; tensors are made of them later.
        source.index(file, self._one(file, load_storage))
        return saved

    def _one(self, file: IO[bytes], load_storage: Callable[[tuple[Any, ...]], StorageRef]) -> Any:
        reader = PickleReader(file, load_storage, self._nested, self._name, self._budget)
        reader.stand_ins = self._stand_ins
        return reader.load()

    def _nested(self, data: Any) -> Any:
        """Reads bytes of ``torch.save`` in a pickle: ``pickle.dump`` of a tensor writes its storage so."""
        if not isinstance(data, bytes):
            raise TypeError("bytes expected")
        return self._stream(io.BytesIO(data), FileBytes(None, data))


def _ref(source: StorageSource, kind: Any, key: Any, numel: Any, first: Any = 0) -> StorageRef:
    if not isinstance(kind, StorageType) or not isinstance(key, str) or type(numel) is not int:
        raise TypeError("a storage has a type, a key and a size")
    if not 0 <= numel < 2**63:
        raise ValueError("a storage of a size that cannot be")
    if type(first) is not int or not 0 <= first < 2**63:
        raise TypeError("a view begins at a number")
    source.declare(key, kind.dtype, numel)
    return StorageRef(source, key, kind.dtype, numel, first)


def _tar_format(name: str) -> RefusedError:
    return RefusedError(
        f"{name} is in the tar format of PyTorch 0.1, which cannot be read without running code",
        "expected a file of torch.save from PyTorch 0.2 or later",
        worded("save it again from a newer PyTorch; or {trust:True}, if you trust the file to run code"),
    )
