"""What a recorded program takes of its inputs as given: it holds for others that are the same in this."""

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
# Objects in objects that are looked into, and those that are what they are called.
_DEEPEST = 4
_BY_NAME = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def signature(inputs: Inputs) -> Signature:
    """Shapes, dtypes and devices of all tensors, which a program takes anew; everything else by what it holds now."""
    found = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors(inputs))
    if len(inputs.args) + len(inputs.kwargs) == 1:
        return found, ()
    return found, tuple(map(_content, (*inputs.args, *inputs.kwargs.items())))


def _content(value: Any, held_by: tuple[int, ...] = ()) -> Hashable:
    """A value as a key; inside an object (``held_by`` such) tensors count, too: no program takes them anew."""
    kind = type(value)
    if isinstance(value, Tensor):
        return _stamped(value) if held_by else None
    if kind in PLAIN:
        return kind, value
    if isinstance(value, list | tuple | dict):
        items = (*value, *value.values()) if isinstance(value, dict) else value
        return kind, *(_content(item, held_by) for item in items)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.shape, value.dtype.str, value.tobytes()
    content = None if isinstance(value, _BY_NAME) else getattr(value, "__dict__", None)
    if content is None or len(held_by) == _DEEPEST or id(value) in held_by:
        return kind, id(value)
    return kind, id(value), _content(dict(content), (*held_by, id(value)))


def _stamped(tensor: Tensor) -> Hashable:
    stamp = Fingerprint()
    stamp.tensor(tensor)
    return tuple(stamp.key)
