"""A pickle machine that can build data and call nothing. Imports no torch.

Why not ``torch.load(weights_only=True)``: it stops at the first hyper-parameter object, at protocol 4,
and it reads a storage without asking whether the file holds that many bytes. Here each opcode that
calls, sets or appends is let through only on the stand-ins of ``jaccli.models.inert``.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

from jaccli.errors import RefusedError
from jaccli.models.inert import (
    DTYPES,
    REBUILD,
    STORAGES,
    ArrayShell,
    DtypeName,
    DtypeShell,
    Inert,
    Rebuild,
    StorageRef,
    StorageType,
    inert_type,
)
from jaccli.models.quote import quote

# A file that names these means to act; nothing in a checkpoint needs them.
_HOSTILE_MODULES = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "code"),
        *("codeop", "ctypes", "webbrowser", "pip", "commands", "popen2", "pdb", "timeit"),
    )
)
_FILE_OPENERS = frozenset(("io.open", "_io.open", "io.FileIO", "_io.FileIO", "io.open_code", "_io.open_code"))
_HOSTILE_BUILTINS = frozenset(("eval", "exec", "execfile", "compile", "open", "input", "__import__", "breakpoint"))


class PickleReader(pickle._Unpickler):
    """Reads one pickle. ``load_storage`` turns a persistent id into a ``StorageRef``.

    After ``load``, ``inert`` holds the names of the globals for which stand-ins were used.

    Raises:
        RefusedError: the pickle names a function that acts (``os.system``).
        Exception: the pickle is damaged; any type.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(
        self,
        file: IO[bytes],
        load_storage: Callable[[tuple[Any, ...]], StorageRef],
        load_bytes: Callable[[bytes], Any],
        where: str,
    ) -> None:
        # latin1 reads every byte string that Python 2 wrote.
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage
        self._load_bytes = Rebuild("torch.storage._load_from_bytes", load_bytes)
        self._where = where
        self.inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for a global; never an import."""
        if getattr(self, "proto", 0) < 3:
            from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        root = module.partition(".")[0]
        hostile = root in _HOSTILE_MODULES or path in _FILE_OPENERS
        if hostile or (root == "builtins" and name.partition(".")[0] in _HOSTILE_BUILTINS):
            raise RefusedError(
                f"{self._where} asks to run {quote(path)}",
                "a file of weights runs nothing; this one looks like an attack",
                "do not open it with anything; get the weights as safetensors from a source you trust",
            )
        if path in REBUILD:
            return REBUILD[path]
        if path == self._load_bytes.path:
            return self._load_bytes
        if root == "torch" and name in STORAGES:
            return StorageType(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return DtypeName(name)
        return self.inert.setdefault(path, inert_type(path))

    def persistent_load(self, pid: Any) -> Any:
        """A storage in the file; a legacy file also names the source code of a module."""
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id names a storage")
        return self._load_storage(pid[1:])

    # ---- the opcodes that act, each with a guard on what it may act upon

    def _pop_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self.metastack.pop()
        self.append = self.stack.append
        return values

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def _newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._newobj()

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, DtypeShell):
            target.order = state[1]
        elif isinstance(target, ArrayShell):
            _, target.shape, target.dtype, target.fortran, target.data = state[-5:]
        # Else an attribute of a dict or a tensor, such as a state dict's _metadata: not needed.

    def _append(self) -> None:
        value = self.stack.pop()
        _extend(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self._pop_mark()
        _extend(self.stack[-1], values)

    def _setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _update(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        values = self._pop_mark()
        _update(self.stack[-1], values)

    def _additems(self) -> None:
        values = self._pop_mark()
        _extend(self.stack[-1], values)

    def _frozenset(self) -> None:
        values = self._pop_mark()
        self.append(frozenset(map(_keyable, values)))

    def _dict(self) -> None:
        values = self._pop_mark()
        self.append({_keyable(values[i]): values[i + 1] for i in range(0, len(values), 2)})

    def _bytearray(self) -> None:
        # The machine itself would take all the memory that the file asks for before it reads a byte.
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    dispatch.update(
        {
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _newobj,
            pickle.NEWOBJ_EX[0]: _newobj_ex,
            pickle.BUILD[0]: _build,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _appends,
            pickle.SETITEM[0]: _setitem,
            pickle.SETITEMS[0]: _setitems,
            pickle.ADDITEMS[0]: _additems,
            pickle.FROZENSET[0]: _frozenset,
            pickle.DICT[0]: _dict,
            pickle.BYTEARRAY8[0]: _bytearray,
        }
    )
    # Not written by torch or by pickle's newer protocols: instances by name, registered extensions,
    # buffers outside the file.
    for _code in (
        pickle.INST,
        pickle.OBJ,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    ):
        del dispatch[_code[0]]


def _call(function: Any, args: Any) -> Any:
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("arguments are a tuple")
    if isinstance(function, Rebuild):
        return function.call(*args)
    if isinstance(function, type) and issubclass(function, Inert):
        return function(*args)
    return Inert(function, *args)


_MAX_KEY_DEPTH = 16


def _keyable(value: Any, depth: int = 0) -> Any:
    """A key of a dict or set. ``hash`` of a deeply nested tuple overflows the stack and ends the process."""
    if isinstance(value, tuple):
        if depth == _MAX_KEY_DEPTH:
            raise pickle.UnpicklingError("a key is nested too deep")
        for item in value:
            _keyable(item, depth + 1)
    return value


def _extend(target: Any, values: list[Any]) -> None:
    if type(target) is set:
        target.update(map(_keyable, values))
    elif type(target) is list:
        target.extend(values)
    elif isinstance(target, Inert):
        target.items_added.extend(values)
    else:
        raise pickle.UnpicklingError("can only append to lists")


def _update(target: Any, values: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict) and not isinstance(target, Inert):
        raise pickle.UnpicklingError("can only set items of dicts")
    for index in range(0, len(values), 2):
        target[_keyable(values[index])] = values[index + 1]
