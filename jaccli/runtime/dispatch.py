"""Seeing every operator that torch dispatches: what all modes of jaccli share."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_SCALED = torch.ops.aten.mul.Scalar


class Mode(TorchDispatchMode):
    """While it is entered, every operator comes to ``see``, which calls it, or does not.

    Operators that take functions (``cond``, ``flex_attention``) raise ``NotImplementedError``: below a mode torch gives
    some of them a wrong graph.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One dispatched operator; what it gives."""
        return passed(op, args, kwargs)


def passed(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator gives below a mode.

    Not by the operator where a zero tangent, as of a constant, is scaled by a number (``torch.add(x, c, alpha=2)`` in
    forward mode): there torch (2.11 to 2.14) overflows the stack, and the process ends.
    """
    if op is _SCALED and isinstance(args[0], Tensor) and args[0]._is_zerotensor():
        return args[0]
    return op(*args, **kwargs)


def _dispatch(self: TorchDispatchMode, op: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
    assert isinstance(self, Mode)
    if hasattr(sys.modules.get("torch._dynamo"), "disable"):
        # What runs below a compiled part would be compiled too.
        Mode.__torch_dispatch__ = torch.compiler.disable(_see)  # type: ignore[method-assign]
    return self.see(op, args, kwargs or {})


def _see(self: Mode, op: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return self.see(op, args, kwargs or {})


# Assigned afterwards: a method of the class body would be wrapped against dynamo at once, which imports it (1.25 s).
Mode.__torch_dispatch__ = _dispatch  # type: ignore[method-assign]


class LeftTorch(NotImplementedError):
    """A tensor became a NumPy array where a derivative was taken, which goes no further there."""


class Within(TorchFunctionMode):
    """While it is entered, a tensor does not become a NumPy array, as autograd forbids where gradients are wanted.

    Args:
        dual: only tensors with a tangent.

    Raises:
        LeftTorch: one does.
    """

    def __init__(self, dual: bool) -> None:
        super().__init__()
        self.dual = dual

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAVING and (not self.dual or fwad.unpack_dual(args[0]).tangent is not None):
            raise LeftTorch("a tensor becomes a NumPy array, which has no derivative")
        return func(*args, **(kwargs or {}))


_LEAVING: frozenset[Any] = frozenset((Tensor.numpy, Tensor.__array__, Tensor.__dlpack__))
