"""A pickle machine that can build data and call nothing. Imports no torch.

Why not ``torch.load(weights_only=True)``: it stops at the first hyper-parameter object and at protocol 4, and it reads
a storage without checking that the file has that many bytes. Here an opcode that calls, sets or appends works only on
the stand-ins of ``jaccli.pickles.stand_ins`` and on plain containers, and a ``Budget`` counts operations and copies.

Every pickle that jaccli reads without ``trust`` goes through this machine: checkpoints, inputs and saved Jacobians of
``torch.save``, and the pickles within TorchScript and older export archives.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, Any, ClassVar, Final

from jaccli.errors import RefusedError
from jaccli.pickles.stand_ins import (
    BUILDERS,
    DTYPES,
    STORAGES,
    ArraySpec,
    Builder,
    NumpyDtypeSpec,
    StandIn,
    StorageRef,
    StorageType,
    TorchDtypeSpec,
    keyable,
    stand_in_class,
)
from jaccli.safety.budget import Budget
from jaccli.text.escape import quote

# A file that names one of these is an attack: no checkpoint needs them.
_HOSTILE_MODULES = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "code"),
        *("codeop", "ctypes", "webbrowser", "pip", "commands", "popen2", "pdb", "timeit"),
    )
)
_FILE_OPENERS = frozenset(("io.open", "_io.open", "io.FileIO", "_io.FileIO", "io.open_code", "_io.open_code"))
_HOSTILE_BUILTINS = frozenset(("eval", "exec", "execfile", "compile", "open", "input", "__import__", "breakpoint"))


_parts: Any = pickle  # its Python machine is private, and has been the same since 3.8
# Classes that occur as arguments of known builders: they are not reported as left out.
_CLASSES_ALONE: Final = {
    path: stand_in_class(path) for path in ("numpy.ndarray", "builtins.list", "builtins.dict", "builtins.set")
}
# Opcodes between two checks of the budget.
_ROUND: Final = 1024
# The states of random generators have integers of 128 bits and more.
_MOST_BYTES_OF_AN_INTEGER: Final = 512


def _text(size_format: str) -> Callable[[Any], None]:
    """The action of an opcode whose text follows its size, written in this format of ``struct``."""

    def action(reader: PickleReader) -> None:
        (size,) = struct.unpack(size_format, reader.read(struct.calcsize(size_format)))
        # Invalid UTF-8 is escaped: lone surrogates can be neither printed nor written.
        reader.append(str(reader.read(size), "utf-8", "backslashreplace"))

    return action


class PickleReader(pickle._Unpickler):
    """Reads one pickle.

    Sets become lists and tuples, and a dict's key that is no plain value becomes an ``OpaqueKey``: only values whose
    size is bounded are hashed and compared.

    Args:
        file: stands at the pickle's beginning. ``read(n)`` takes no more memory than there are bytes left.
        load_storage: turns the persistent id of a storage into a ``StorageRef``.
        load_bytes: reads a pickle that is nested in bytes.
        where: the file, for messages.
        budget: shared by all pickles of a file.

    Attributes:
        stand_ins: after ``load``, path → class, of the globals that no builder or description stands for.

    Raises:
        RefusedError: the pickle names a function that acts (``os.system``).
        BudgetError: it exceeds a limit that no file of weights comes near.
        Exception: the pickle is damaged; any type.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    memo: dict[int, Any]

    def __init__(
        self,
        file: IO[bytes],
        load_storage: Callable[[tuple[Any, ...]], StorageRef],
        load_bytes: Callable[[bytes], Any],
        where: str,
        budget: Budget,
    ) -> None:
        # latin1 reads every byte string that Python 2 wrote.
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage
        self._load_bytes = Builder("torch.storage._load_from_bytes", load_bytes)
        self._where = where
        self.budget = budget
        self.stand_ins: dict[str, type[StandIn]] = {}

    def load(self) -> Any:
        """The object, made of containers and stand-ins. As ``pickle._Unpickler.load``, with opcodes counted."""
        private: Any = self
        private._unframer = _parts._Unframer(private._file_read, private._file_readline)
        self.read, private.readinto = private._unframer.read, private._unframer.readinto
        private.readline = private._unframer.readline
        self.metastack, self.stack, private.proto = [], [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        with _no_collection():
            try:
                while True:
                    for _ in range(_ROUND):
                        dispatch[read(1)[0]](self)
                    self.budget.spend(_ROUND)
            except _parts._Stop as stop:
                return stop.value

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global; nothing is imported.

        Raises:
            RefusedError: a global that no file of weights needs and that can do harm.
        """
        if getattr(self, "proto", 0) < 3:  # names as in Python 2, which pickle itself translates
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
        if path in BUILDERS:
            return BUILDERS[path]
        if path == self._load_bytes.path:
            return self._load_bytes
        if root == "torch" and name in STORAGES:
            return StorageType(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return TorchDtypeSpec(name)
        if path in _CLASSES_ALONE:
            return _CLASSES_ALONE[path]
        if path not in self.stand_ins:
            self.budget.name()
            self.stand_ins[path] = stand_in_class(path)
        return self.stand_ins[path]

    def persistent_load(self, pid: Any) -> Any:
        """The reference to a storage in the file. A file of the older format also names the source code of modules."""
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id names a storage")
        storage = self._load_storage(pid[1:])
        self.budget.storages.add(storage.key)
        return storage

    # ---- the opcodes that call, set or append: each checks the type of its target

    def _pop_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self.metastack.pop()
        self.append = self.stack.append
        return values

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _call(self, function: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise pickle.UnpicklingError("arguments are a tuple")
        # One tuple of arguments may be used in any number of calls, and each call copies it.
        self.budget.copy(len(args) + (len(args[0]) if args and isinstance(args[0], _SIZED) else 0))
        if isinstance(function, Builder):
            return function.call(*args)
        if isinstance(function, type) and issubclass(function, StandIn):
            return function(*args)
        return StandIn(function, *args)

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._reduce()

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.state = state
        elif isinstance(target, NumpyDtypeSpec):
            target.order = state[1]
        elif isinstance(target, ArraySpec):
            _, target.shape, target.dtype, target.fortran, target.data = state[-5:]
        # Otherwise an attribute of a dict or a tensor, such as the _metadata of a state dict: not needed.

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

    def _empty_set(self) -> None:
        self.append([])

    def _frozenset(self) -> None:
        values = self._pop_mark()
        self.append(tuple(values))

    def _dict(self) -> None:
        values = self._pop_mark()
        self.append({keyable(values[i]): values[i + 1] for i in range(0, len(values), 2)})

    def _bytearray(self) -> None:
        # The inherited one allocates the size that the file states before it reads a byte.
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def _long4(self) -> None:
        (size,) = struct.unpack("<i", self.read(4))
        if not 0 <= size <= _MOST_BYTES_OF_AN_INTEGER:
            raise pickle.UnpicklingError("an integer of absurd size")
        self.append(pickle.decode_long(self.read(size)))

    def _unicode(self) -> None:
        text: str = str(self.readline()[:-1], "raw-unicode-escape")  # type: ignore[attr-defined]
        self.append(text.encode("utf-8", "backslashreplace").decode())

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    dispatch.update(
        {
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _reduce,
            pickle.NEWOBJ_EX[0]: _newobj_ex,
            pickle.BUILD[0]: _build,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _appends,
            pickle.SETITEM[0]: _setitem,
            pickle.SETITEMS[0]: _setitems,
            pickle.ADDITEMS[0]: _appends,
            pickle.FROZENSET[0]: _frozenset,
            pickle.DICT[0]: _dict,
            pickle.EMPTY_SET[0]: _empty_set,
            pickle.BYTEARRAY8[0]: _bytearray,
            pickle.LONG4[0]: _long4,
            pickle.UNICODE[0]: _unicode,
            pickle.BINUNICODE[0]: _text("<I"),
            pickle.BINUNICODE8[0]: _text("<Q"),
            pickle.SHORT_BINUNICODE[0]: _text("<B"),
        }
    )
    # Opcodes that torch does not write are removed: instances by name, registered extensions, buffers outside the file.
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


_SIZED: Final = (str, bytes, bytearray, list, tuple)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Inside, the garbage collector is off: it would go through millions of live objects again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _extend(target: Any, values: list[Any]) -> None:
    if type(target) is list:
        target.extend(values)
    elif isinstance(target, StandIn):
        target.appended.extend(values)
    else:
        raise pickle.UnpicklingError("can only append to lists")


def _update(target: Any, values: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict) and not isinstance(target, StandIn):
        raise pickle.UnpicklingError("can only set items of dicts")
    for index in range(0, len(values), 2):
        target[keyable(values[index])] = values[index + 1]
