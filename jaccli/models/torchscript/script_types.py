"""Types in TorchScript graphs: which can hold tensors, which values are of a type."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from jaccli.models.interpretation.nested import named_tuple
from jaccli.models.torchscript.script_objects import ScriptInstance

_CARRIERS = {
    *("TensorType", "ListType", "DictType", "TupleType", "OptionalType", "UnionType", "AnyType"),
    *("FutureType", "AwaitType"),
}


def carries_tensors(value: Any) -> bool:
    """Whether a graph value can be or hold a tensor."""
    return value.type().kind() in _CARRIERS


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
    return named_tuple(qualified_name, fields)


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
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(matches, value, inner))
    if name == "ClassType":
        return isinstance(value, ScriptInstance) and value.cls == kind.qualified_name()
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
