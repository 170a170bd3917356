"""Stand-ins for the classes and functions that a pickle names: they hold data and do nothing. Imports no torch.

A pickle names globals (classes and functions) and calls them. Here every name gives one of these:

* ``Builder``, for the functions of torch and NumPy that build tensors, arrays and dictionaries: it returns a
  description (``TensorSpec``, ``ArraySpec``, …) or a plain container;
* a description of a dtype or of a type of storage;
* for everything else a subclass of ``StandIn``, which takes any arguments and state and keeps them.

So hyper-parameter objects of any library load, and no foreign code is imported or called.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaccli.safety.reading import DamagedError


class StandIn(dict[Any, Any]):
    """An object whose class is not loaded; its items are those that the pickle set.

    Attributes:
        path: of the class.
        args: that it was made with.
        state: that was set on it.
        appended: items that were appended to it.
    """

    path: ClassVar[str] = ""
    __slots__ = ("appended", "args", "state")

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.args = args
        self.state: Any = None
        self.appended: list[Any] = []

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def is_module(self) -> bool:
        """Whether the state is that of an ``nn.Module``."""
        return isinstance(self.state, dict) and {"_modules", "_parameters"} <= self.state.keys()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OpaqueKey:
    """Stands for a key that is no plain value, such as a tuple. Compared by identity: no lookup needs it."""

    value: Any

    def __repr__(self) -> str:
        return "<a compound key>"


_MOST_PARTS = 1000  # of a key


def keyable(value: Any) -> Any:
    """The key to use for ``value``: itself if it is plain, else an ``OpaqueKey``.

    ``hash`` and ``==`` of a tuple call those of its items: deep nesting overflows the stack, and items that share their
    parts take exponential time. Large integers can be chosen to have one hash, so that a dict takes quadratic time.

    Raises:
        DamagedError: a tuple with more than ``_MOST_PARTS`` parts, counted as often as they occur.
    """
    kind = type(value)
    if kind in (str, bytes, bool, float, type(None)) or (kind is int and -(2**63) <= value < 2**64):
        return value
    parts, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            parts += len(item)
            if parts > _MOST_PARTS:
                raise DamagedError("a key of absurdly many parts")
            stack.extend(item)
    return OpaqueKey(value)


def stand_in_class(path: str) -> type[StandIn]:
    """A new class of stand-ins, for the global ``path``."""
    return type("StandIn", (StandIn,), {"path": path, "__slots__": ()})


@dataclass(frozen=True, slots=True)
class StorageType:
    """``torch.FloatStorage`` and the like; ``dtype`` is torch's name for the dtype of its elements."""

    dtype: str


@dataclass(frozen=True, slots=True)
class TorchDtypeSpec:
    """``torch.float32`` in a pickle."""

    dtype: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage in the file: ``numel`` elements from ``source`` under ``key``, used from element ``first`` on."""

    source: Any
    key: str
    dtype: str
    numel: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A strided tensor on a storage. Sizes, strides and offset are in elements, and not checked yet."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class SparseSpec:
    """A sparse tensor: its layout, then the arguments of torch's constructor for it (indices, values, size)."""

    layout: str
    parts: tuple[Any, ...]


@dataclass(slots=True)
class ArraySpec:
    """A NumPy array, as its pickle describes it."""

    shape: tuple[int, ...] = ()
    dtype: Any = None
    fortran: bool = False
    data: bytes | None = None


@dataclass(slots=True)
class NumpyDtypeSpec:
    """A NumPy dtype: kind and width such as ``f4``, and the byte order."""

    code: str
    order: str = "<"


@dataclass(frozen=True, slots=True)
class Builder:
    """A function that a pickle may call; ``path`` is the name of the function that it replaces."""

    path: str
    call: Callable[..., Any] = field(compare=False)


MAX_DIMENSIONS = 64  # of a tensor; torch's own limit


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise ValueError("sizes and strides are some integers")
    if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
        raise ValueError("sizes and strides are integers from 0")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorSpec:
    if not isinstance(storage, StorageRef) or type(offset) is not int or not 0 <= offset < 2**63:
        raise ValueError("a tensor needs a storage")
    return TensorSpec(storage, offset, _ints(size), _ints(stride), storage.dtype)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorSpec:
    plain = _tensor(storage, offset, size, stride)
    dtype = rest[2]
    if not isinstance(dtype, TorchDtypeSpec):
        raise ValueError("a tensor needs a dtype")
    return TensorSpec(plain.storage, plain.offset, plain.size, plain.stride, dtype.dtype)


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """A tensor of integers with a scale, as ``torch.ao`` quantizes weights; ``name`` is the dtype."""

    name: str


def _packed(storage: Any, *_: Any) -> PackedSpec:
    return PackedSpec(storage.dtype if isinstance(storage, StorageRef) else "")


def _first(data: Any = None, *_: Any) -> Any:
    return data


def _sparse(layout: Any, parts: Any) -> SparseSpec:
    if not isinstance(layout, str) or not isinstance(parts, tuple):
        raise ValueError("a sparse tensor needs a layout")
    return SparseSpec(layout, parts)


def _from_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    # A tensor with attributes, or of a subclass: only the plain tensor is used.
    if not isinstance(function, Builder) or function.path.endswith("_from_type_v2"):
        return StandIn()
    return function.call(*args)


def _pairs(*args: Any) -> OrderedDict[Any, Any]:
    return OrderedDict((keyable(key), value) for key, value in (args[0] if args else ()))


def _bytes(text: Any = b"", _encoding: Any = "latin1") -> bytes:
    return text.encode("latin1") if isinstance(text, str) else bytes(memoryview(text))


def _array(*_: Any) -> ArraySpec:
    return ArraySpec()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> ArraySpec:
    return ArraySpec(_ints(shape), dtype, order == "F", _bytes(data))


def _dtype(code: Any, *_: Any) -> NumpyDtypeSpec:
    text = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(text, str):
        raise ValueError("a dtype has a name")
    return NumpyDtypeSpec(text)


def _reconstructor(cls: Any, *_: Any) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, StandIn) else StandIn()


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_xla_tensor": _first,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _packed,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.serialization._get_layout": _first,
    "torch.Size": _first,
    "torch.nn.parameter.Parameter": _first,
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda *_: OrderedDict(),  # its items follow by SETITEMS; the factory is not called
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstructor,
}
for _numpy in ("numpy.core", "numpy._core"):
    _BUILDERS[f"{_numpy}.multiarray._reconstruct"] = _array
    _BUILDERS[f"{_numpy}.numeric._frombuffer"] = _frombuffer
    _BUILDERS[f"{_numpy}.multiarray.scalar"] = lambda dtype, data=b"", *_: ArraySpec((), dtype, False, data)
_BUILDERS["numpy.dtype"] = _dtype

BUILDERS = {path: Builder(path, call) for path, call in _BUILDERS.items()}

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
DTYPES = frozenset(STORAGES.values()) | {
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
}
