"""The signature of inputs: what a recorded program takes for granted of them.

A program may run on other inputs of the same signature: tensors of the same shapes, dtypes and devices, whatever their
values, and all further arguments with the same content.
"""

from __future__ import annotations

from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.networks.state.fingerprint import PLAIN, Fingerprint
from jaccli.run.program_runner import tensors

Signature = tuple[Hashable, ...]
# How deep objects within objects are looked into; and objects that are told apart by identity alone.
_DEEPEST = 4
_BY_IDENTITY = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def signature(inputs: Inputs) -> Signature:
    """Shapes, dtypes and devices of all tensors, which are inputs of a program; everything else by its content now."""
    layout = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors(inputs))
    if len(inputs.args) + len(inputs.kwargs) == 1:  # the usual case; every call of a plan waits for this
        return layout, ()
    return layout, tuple(map(_content, (*inputs.args, *inputs.kwargs.items())))


def _content(value: Any, held_by: tuple[int, ...] = ()) -> Hashable:
    """A value as a key; a tensor inside an object (``held_by`` its identity) counts by content: it is no input."""
    kind = type(value)
    if isinstance(value, Tensor):
        return _fingerprint(value) if held_by else None
    if kind in PLAIN:
        return kind, value
    if isinstance(value, list | tuple | dict):
        items = (*value, *value.values()) if isinstance(value, dict) else value
        return kind, *(_content(item, held_by) for item in items)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.shape, value.dtype.str, value.tobytes()
    content = None if isinstance(value, _BY_IDENTITY) else getattr(value, "__dict__", None)
    if content is None or len(held_by) == _DEEPEST or id(value) in held_by:
        return kind, id(value)
    # An object is itself, with the content that it has now: ``__eq__`` of user code is not to be relied on.
    return kind, id(value), _content(dict(content), (*held_by, id(value)))


def _fingerprint(tensor: Tensor) -> Hashable:
    """The content of a tensor of any shape."""
    fingerprint = Fingerprint()
    fingerprint.tensor(tensor)
    return tuple(fingerprint.key)
