"""What a module keeps beside tensors of its own: containers, and objects that are no modules."""

from __future__ import annotations

import sys
from collections import deque
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

# Objects of these keep no state of a model, or lead far away from it (loggers, threads).
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "builtins"}
# So deep objects are followed within objects: a cache, and its layers. What lies deeper is not the model's.
_DEEPEST = 2
# Containers in objects that hold more are data, not state.
_LARGEST = 1024


def containers(attributes: list[dict[str, Any]]) -> list[Any]:
    """Mutable containers in the plain attributes of modules, nested ones and ``vars`` of objects too."""
    found: dict[int, Any] = {}
    stack: list[tuple[Any, int]] = [(value, 0) for held in attributes for value in held.values()]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, tuple):
            stack += [(item, depth) for item in value]
            continue
        if is_holder(value) and depth < _DEEPEST:
            value, depth = vars(value), depth + 1
        elif not isinstance(value, list | dict | deque | set) or (depth and len(value) > _LARGEST):
            continue
        if id(value) not in found:
            found[id(value)] = value
            stack += [(item, depth) for item in (value.values() if isinstance(value, dict) else value)]
    return list(found.values())


def is_holder(value: Any) -> bool:
    """Whether it is an object of a class of the model's own, whose attributes a forward pass may set."""
    kind = type(value)
    if kind not in _kinds:
        _kinds[kind] = kind is SimpleNamespace or (
            kind.__module__.partition(".")[0] not in _LIBRARIES
            and not issubclass(kind, type | FunctionType | MethodType | nn.Module | Tensor | list | dict | deque | set)
            and isinstance(getattr(value, "__dict__", None), dict)
        )
    return _kinds[kind]


_kinds: dict[type, bool] = {}


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array of numbers."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject
