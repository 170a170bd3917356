"""Objects of TorchScript classes as a run holds them, and maps over the tensors inside of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from jaccli.models.interpretation.nested import map_leaves


class ScriptInstance:
    """An object of a TorchScript class, or a module, as one run sees it.

    ``attrs`` holds what the run has read or written; the model itself is never written to.
    ``node`` is where a module's attributes are read from, None for plain classes.
    """

    __slots__ = ("attrs", "cls", "node")

    def __init__(self, cls: str, attrs: dict[str, Any], node: Any = None) -> None:
        self.cls, self.attrs, self.node = cls, attrs, node


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of lists, tuples, dicts and objects, rebuilt, with ``function`` of every tensor, of any shape.

    Modules are not rebuilt: their tensors belong to the model.
    """

    def change(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if isinstance(leaf, ScriptInstance) and leaf.node is None:
            return ScriptInstance(leaf.cls, map_leaves(leaf.attrs, change))
        return leaf

    return map_leaves(value, change)


def protect(new: Any, old: Any) -> Any:
    """``new``, safe to be written to: every tensor that is not already in ``old`` is cloned."""
    if new is old:
        return new
    if isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old):
        items = [protect(n, o) for n, o in zip(new, old, strict=True)]
        if isinstance(new, list):
            return items
        return type(new)(*items) if hasattr(new, "_fields") else tuple(items)
    return map_tensors(new, Tensor.clone)


def adopt(value: Any) -> Any:
    """An attribute's value as a run may hold it: TorchScript objects as ``ScriptInstance``.

    Containers come as copies already. A tensor that has a ``grad_fn`` of an earlier run is detached.
    """
    return map_leaves(value, _adopted)


def _adopted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    # Where the class was scripted in this process, PyTorch gives an object of the Python class, else a handle.
    script_class = torch.jit._state._get_script_class(type(value))
    if script_class is not None:
        return ScriptInstance(script_class.qualified_name(), {name: adopt(item) for name, item in vars(value).items()})
    handle = getattr(value, "_c", value)
    if not isinstance(handle, torch._C.ScriptObject):
        return value
    handle = cast(Any, handle)
    # ``dir`` lists methods as well; ``hasattr`` knows attributes alone.
    names = [name for name in dir(handle) if not name.startswith("__") and handle.hasattr(name)]
    attrs = {name: adopt(handle.getattr(name)) for name in names}
    return ScriptInstance(handle._type().qualified_name(), attrs)
