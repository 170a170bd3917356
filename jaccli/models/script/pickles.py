"""Read a pickle of a TorchScript archive with stand-ins for everything: nothing of it is built or run."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccli.errors import RefusedError
from jaccli.models.pickle_shape import check_nesting
from jaccli.models.script.values import printable

_ITEMSIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8,
}  # fmt: skip

# What torch's own unpickler understands, less what it never writes.
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT",
    "APPEND", "APPENDS", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM", "SETITEMS",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID",
    "POP",
}  # fmt: skip

_MAX_TYPE_DEPTH = 200
_MAX_EXPANDED = 1 << 31  # elements of a tensor that repeats its storage


def refuse(path: Path, what: str) -> RefusedError:
    """The error for an archive that could do harm."""
    return RefusedError(
        f"{printable(str(path), 200)!r} {what}",
        "a model that only computes",
        "if you trust where it comes from, pass --trust (trust=True in Python)",
    )


def damaged(path: Path, what: str) -> RefusedError:
    """The error for an archive that cannot be read."""
    return RefusedError(
        f"{printable(str(path), 200)!r} is no readable TorchScript archive: {what}",
        "a file written by torch.jit.save",
        "save or download it again",
    )


@dataclass(frozen=True)
class _Storage:
    numel: int


class Tensors:
    """The tensor records of an archive: name → bytes; checks what a pickle says about them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes

    def storage(self, label: Any) -> _Storage:
        """The storage of a persistent id ``("storage", type, key, device, numel)``."""
        word, kind, key, _, numel = label
        itemsize = _ITEMSIZES[kind]
        if word != "storage" or not 0 <= numel * itemsize <= self._sizes[key]:
            raise ValueError("a storage is larger than its record")
        return _Storage(numel)

    def rebuild(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> None:
        """Check that a tensor stays within its storage."""
        if len(size) != len(stride) or offset < 0 or any(n < 0 for n in [*size, *stride]):
            raise ValueError("a tensor has impossible sizes")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and last >= storage.numel:
            raise ValueError("a tensor is larger than its storage")
        if count > max(_MAX_EXPANDED, storage.numel):
            raise ValueError("a tensor has an absurd size")


class _Object:
    """Stands for an object of the archive's own classes."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _tagged(value: Any = None, tag: Any = "", *_: Any) -> Any:
    """A list or dict with its type in words, which torch parses by calling itself once a bracket."""
    if isinstance(tag, str) and tag.count("[") > _MAX_TYPE_DEPTH:
        raise ValueError("a type is nested absurdly deep")
    return value


class _Inert(pickle.Unpickler):
    def __init__(self, data: bytes, tensors: Tensors) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = tensors
        self.foreign = ""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__" and not f"{module}.{name}.".startswith("__torch__.torch.classes."):
            return _Object
        if module == "torch" and name in _ITEMSIZES:
            return name
        builders: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensors.rebuild,
            "collections.OrderedDict": _Object,
            "torch.device": _first,
        }
        full = f"{module}.{name}"
        if full in builders:
            return builders[full]
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _tagged
        self.foreign = full
        raise pickle.UnpicklingError

    def persistent_load(self, pid: Any) -> Any:
        return self._tensors.storage(pid)


def inspect_pickle(data: bytes, tensors: Tensors, path: Path) -> None:
    """Refuse a pickle that names anything but the archive's own classes, or tensors that do not fit.

    Raises:
        RefusedError: says what was found.
    """
    try:
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    except Exception:
        opcodes = {"no pickle at all"}
    if opcodes - _OPCODES:
        raise refuse(path, f"holds a pickle that torch did not write ({min(opcodes - _OPCODES)})")
    try:
        check_nesting(data, cycles=True)
    except ValueError:
        raise refuse(path, "holds objects nested absurdly deep") from None
    reader = _Inert(data, tensors)
    try:
        reader.load()
    except Exception as error:  # a hostile pickle can make the reader raise anything
        if reader.foreign:
            raise refuse(path, f"names {printable(reader.foreign, 80)!r} in a pickle") from None
        what = str(error) if isinstance(error, ValueError) else "its objects make no sense"
        raise damaged(path, printable(what)) from None
