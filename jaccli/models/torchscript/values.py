"""Values inside a TorchScript run: instances of its classes, types, dtypes, text fit to be shown."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from jaccli.text.escape import printable as printable

# TorchScript passes dtypes as the integers of c10::ScalarType.
DTYPES: dict[int, torch.dtype] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    8: torch.complex32,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    15: torch.bfloat16,
    23: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    25: torch.float8_e5m2fnuz,
    26: torch.float8_e4m3fnuz,
    27: torch.uint16,
    28: torch.uint32,
    29: torch.uint64,
}
NUMBERS = {kind: number for number, kind in DTYPES.items()}

_CARRIERS = {"TensorType", "ListType", "DictType", "TupleType", "OptionalType", "UnionType", "AnyType"}


class Instance:
    """An object of a TorchScript class, or a module, as one run sees it.

    ``attrs`` holds what the run has read or written; the model itself is never written to.
    ``node`` is where a module's attributes are read from, None for plain classes.
    """

    __slots__ = ("attrs", "cls", "node")

    def __init__(self, cls: str, attrs: dict[str, Any], node: Any = None) -> None:
        self.cls, self.attrs, self.node = cls, attrs, node


def carries_tensors(value: Any) -> bool:
    """Whether a graph value can be or hold a tensor."""
    return value.type().kind() in _CARRIERS or value.type().kind() in {"FutureType", "AwaitType"}


def map_tensors(value: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure of lists, tuples, dicts and instances, rebuilt, with ``fn`` of every tensor."""
    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, tuple):
        items = [map_tensors(item, fn) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(item, fn) for item in value]
    if isinstance(value, dict):
        return {key: map_tensors(item, fn) for key, item in value.items()}
    if isinstance(value, Instance) and value.node is None:
        return Instance(value.cls, {key: map_tensors(item, fn) for key, item in value.attrs.items()})
    return value


def protect(new: Any, old: Any) -> Any:
    """``new`` with every tensor that is not already in ``old`` cloned, safe to be written to."""
    if new is old:
        return new
    if isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old):
        items = [protect(n, o) for n, o in zip(new, old, strict=True)]
        if isinstance(new, list):
            return items
        return type(new)(*items) if hasattr(new, "_fields") else tuple(items)
    return map_tensors(new, torch.Tensor.clone)


@lru_cache(maxsize=256)
def tuple_type(qualified_name: str, described: str) -> Callable[..., Any] | None:
    """The named tuple of a type described as ``NamedTuple(a : Tensor, b : int)``; None if it has none."""
    if not described.startswith("NamedTuple("):
        return None
    fields, depth, start = [], 0, len("NamedTuple(")
    for i, c in enumerate(described[start:-1] + ",", start):
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            fields.append(described[start:i].split(" : ")[0].strip())
            start = i + 1
    name = qualified_name.rpartition(".")[2]
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        name = "NamedTuple"
    return namedtuple(name, fields, rename=True)


def matches(value: Any, kind: Any) -> bool:
    """Whether a run's value is of a TorchScript type, for ``isinstance`` inside the model."""
    name = kind.kind()
    simple = _SIMPLE.get(name)
    if simple is not None:
        return isinstance(value, simple) and not (isinstance(value, bool) and bool not in simple)
    inner = list(kind.containedTypes()) if hasattr(kind, "containedTypes") else []
    if name == "NoneType":
        return value is None
    if name == "AnyType":
        return True
    if name == "OptionalType":
        return value is None or matches(value, inner[0])
    if name == "UnionType":
        return any(matches(value, k) for k in inner)
    if name == "ListType":
        return isinstance(value, list) and all(matches(v, inner[0]) for v in value)
    if name == "DictType":
        return isinstance(value, dict) and all(matches(k, inner[0]) and matches(v, inner[1]) for k, v in value.items())
    if name == "TupleType":
        return (
            isinstance(value, tuple)
            and len(value) == len(inner)
            and all(matches(v, k) for v, k in zip(value, inner, strict=True))
        )
    if name == "ClassType":
        return isinstance(value, Instance) and value.cls == kind.qualified_name()
    return False


_SIMPLE: dict[str, tuple[type, ...]] = {
    "TensorType": (torch.Tensor,),
    "IntType": (int,),
    "FloatType": (float,),
    "BoolType": (bool,),
    "ComplexType": (complex,),
    "StringType": (str,),
    "NumberType": (int, float, complex, bool),
    "DeviceObjType": (torch.device,),
    "AnyListType": (list,),
    "AnyTupleType": (tuple,),
}
