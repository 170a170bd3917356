"""Screen a pickle of a TorchScript archive: read with stand-ins for all objects, so that none is built or run."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from jaccli.errors import RefusedError
from jaccli.pickles.nesting import check_depth
from jaccli.pickles.reader import PickleReader
from jaccli.pickles.stand_ins import BUILDERS, STORAGES, Builder
from jaccli.pickles.storages import checked_extent, itemsize
from jaccli.safety.budget import Budget, BudgetError
from jaccli.safety.reading import DamagedError
from jaccli.text.escape import quote
from jaccli.text.wording import worded

# Class → dtype of the storages that an archive may name.
_STORAGES = {name: dtype for name, dtype in STORAGES.items() if not name.startswith(("Q", "Untyped"))}

# Opcodes that torch's unpickler reads and torch.jit.save writes.
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT",
    "APPEND", "APPENDS", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM", "SETITEMS",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID",
    "POP",
}  # fmt: skip

_MAX_TYPE_DEPTH = 200
_MOST_UNUSED = 1000  # entries between the end of the memo and an index that is written next
_MAX_EXPANDED = 1 << 31  # elements of a tensor that repeats its storage


def refuse(path: Path, what: str) -> RefusedError:
    """The error for an archive that could do harm."""
    return RefusedError(
        f"{quote(path, 200)} {what}",
        "a model that only computes",
        worded("if you trust where it comes from, pass {trust:True}"),
    )


def damaged(path: Path, what: str) -> RefusedError:
    """The error for an archive that cannot be read."""
    return RefusedError(
        f"{quote(path, 200)} is no readable TorchScript archive: {what}",
        "a file written by torch.jit.save",
        "save or download it again",
    )


@dataclass(frozen=True)
class _Storage:
    itemsize: int
    nbytes: int


class Tensors:
    """The tensor records of an archive: name → bytes; checks what a pickle says about them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes

    def storage(self, label: Any) -> _Storage:
        """The storage of a persistent id ``("storage", type, key, device, numel)``."""
        word, kind, key, _, numel = label
        each = itemsize(_STORAGES[kind])
        if word != "storage" or not 0 <= numel * each <= self._sizes[key]:
            raise DamagedError("a storage is larger than its record")
        return _Storage(each, numel * each)

    def rebuild(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> None:
        """Check that a tensor stays within its storage."""
        most = _MAX_EXPANDED * storage.itemsize
        checked_extent(size, stride, offset, storage.itemsize, storage.nbytes, most)


_NAMES: dict[int, str] = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class _Records(PickleReader):
    """The opcodes that torch writes, the archive's own classes, and a few builders; all else is refused."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: act for code, act in PickleReader.dispatch.items() if _NAMES[code] in _OPCODES
    }

    def __init__(self, file: IO[bytes], tensors: Tensors, path: Path, budget: Budget) -> None:
        super().__init__(file, _never, _never, quote(path), budget)
        self._tensors, self._path = tensors, path

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in; never an import."""
        full = f"{module}.{name}"
        if module.split(".")[0] == "__torch__" and not f"{full}.".startswith("__torch__.torch.classes."):
            return super().find_class("__torch__", name)
        if module == "torch" and name in _STORAGES:
            return name
        if full == "torch._utils._rebuild_tensor_v2":
            return Builder(full, self._tensors.rebuild)
        if full == "collections.OrderedDict":
            return BUILDERS[full]
        if full == "torch.device":
            return Builder(full, _first)
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return Builder(full, _tagged)
        raise refuse(self._path, f"names {quote(full)} in a pickle")

    def persistent_load(self, pid: Any) -> Any:
        """The size of a storage, which its record has."""
        storage = self._tensors.storage(pid)
        self.budget.storages.add(str(pid[2]))
        return storage

    def _high_put(self) -> None:
        (index,) = struct.unpack("<I", self.read(4))
        if index > len(self.memo) + _MOST_UNUSED:  # torch makes room for all entries up to the highest
            raise DamagedError("a memo entry that is far too high")
        self.memo[index] = self.stack[-1]

    dispatch[pickle.LONG_BINPUT[0]] = _high_put


def _never(_: Any) -> Any:
    raise DamagedError("a pickle in bytes")


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _tagged(value: Any = None, tag: Any = "", *_: Any) -> Any:
    """A list or dict with its type in words, which torch parses by calling itself once a bracket."""
    if isinstance(tag, str) and tag.count("[") > _MAX_TYPE_DEPTH:
        raise DamagedError("a type is nested absurdly deep")
    return value


def inspect_pickle(data: bytes, tensors: Tensors, path: Path, budget: Budget) -> None:
    """Refuse a pickle that names anything but the archive's own classes, or tensors that do not fit.

    Args:
        data: the pickle.
        tensors: the records beside it.
        path: of the archive, for messages.
        budget: of all pickles in it.

    Raises:
        RefusedError: names what is wrong with it.
    """
    reader = _Records(io.BytesIO(data), tensors, path, budget)
    try:
        check_depth(reader.load())
    except RefusedError:
        raise
    except Exception as error:  # a hostile pickle can make the reader raise anything
        foreign = _foreign_opcode(error)
        if foreign:
            raise refuse(path, f"holds a pickle that torch did not write ({foreign})") from None
        ours = isinstance(error, DamagedError | BudgetError)
        raise damaged(path, str(error) if ours else "its objects make no sense") from error


def _foreign_opcode(error: Exception) -> str:
    """The name of the opcode for which there is no action, if that is the error."""
    code = error.args[0] if isinstance(error, KeyError) else None
    name = _NAMES.get(code, "") if type(code) is int else ""
    return name if name not in _OPCODES else ""
