"""Where a module keeps state beside its parameters and buffers: containers and objects in its plain attributes.

``Containers`` is the one place that walks them and puts values in them.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

# Objects of classes from here hold no state of a model, or lead far away from it (loggers, threads).
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "builtins"}
# How deep objects are followed within objects: a cache, and its layers. Deeper ones do not belong to the model.
_DEEPEST = 2
# A container in an object that holds more is data, not state.
_LARGEST = 1024
_ABSENT = object()


class Containers:
    """The mutable containers that some attributes lead to, with what they hold now.

    Containers are lists, dicts, deques and sets, and the attributes (``vars``) of objects of the model's own classes;
    nested ones count, within tuples too.

    Args:
        attributes: name → value, of each module.
    """

    def __init__(self, attributes: list[dict[str, Any]]) -> None:
        containers = _containers(attributes)
        self._contents = [(c, dict(c) if isinstance(c, dict) else list(c)) for c in containers]

    def values(self) -> Iterator[list[Any]]:
        """The values in each."""
        for _, items in self._contents:
            yield list(items.values()) if isinstance(items, dict) else items

    def put(self, change: Callable[[Any], Any]) -> None:
        """Give every container ``change`` of each value that it held. One that has those already is not written to."""
        for container, items in self._contents:
            if isinstance(items, dict):
                _refill_dict(container, {key: change(value) for key, value in items.items()})
            else:
                _refill(container, [change(value) for value in items])


def _refill_dict(container: dict[Any, Any], items: dict[Any, Any]) -> None:
    if len(container) != len(items) or any(container.get(k, _ABSENT) is not v for k, v in items.items()):
        container.clear()
        container.update(items)


def _refill(container: Any, items: list[Any]) -> None:
    if len(container) != len(items) or any(a is not b for a, b in zip(container, items, strict=True)):
        container.clear()
        container.update(items) if isinstance(container, set) else container.extend(items)


def _containers(attributes: list[dict[str, Any]]) -> list[Any]:
    result: dict[int, Any] = {}
    stack: list[tuple[Any, int]] = [(value, 0) for values in attributes for value in values.values()]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, tuple):
            stack += [(item, depth) for item in value]
            continue
        if has_state(value) and depth < _DEEPEST:
            # The ``vars`` of an object are the container: what is put in them is set in the object.
            value, depth = vars(value), depth + 1
        elif not isinstance(value, list | dict | deque | set) or (depth and len(value) > _LARGEST):
            continue
        # By identity: containers may hold each other, and equal ones are still two.
        if id(value) not in result:
            result[id(value)] = value
            stack += [(item, depth) for item in (value.values() if isinstance(value, dict) else value)]
    return list(result.values())


def has_state(value: Any) -> bool:
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
