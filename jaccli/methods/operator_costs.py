"""Predicted seconds of passes through a network, from counts and never by the clock, so that two runs decide alike.

One forward pass is watched operator by operator. A backward pass, or a forward pass with tangents, is assumed to do the
work of every operator once more for each row or column, at the speed of a typical machine, with a fixed cost for each
call of an operator. Predictions are right within a factor of two or three, which suffices to compare methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.calibration import TYPICAL
from jaccli.linearization.activation_memory import ActivationMemory
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.dispatch import Mode, passed

aten = torch.ops.aten
# From a number of rows or columns to an operator's seconds for them.
Cost = Callable[[int], float]


@dataclass(frozen=True)
class Work:
    """The operators of f, each with its cost."""

    costs: list[Cost]

    def loop(self, n_out: int) -> float:
        """Seconds of n_out backward passes, one by one."""
        return n_out * (defaults.PASS_S + len(self.costs) * defaults.NODE_S + self._of(1))

    def reverse(self, n_out: int, chunk: int) -> float:
        """Seconds of n_out backward passes, ``chunk`` at a time."""
        each = len(self.costs) * defaults.BATCHED_NODE_S + defaults.BATCHED_WORK * self._of(min(chunk, n_out))
        return math.ceil(n_out / chunk) * each

    def forward(self, n_in: int, chunk: int) -> float:
        """Seconds of n_in forward passes with dual numbers, ``chunk`` at a time."""
        works = self._of(1) + defaults.BATCHED_WORK * self._of(min(chunk, n_in))
        return math.ceil(n_in / chunk) * (len(self.costs) * defaults.FORWARD_NODE_S + works)

    def _of(self, rows: int) -> float:
        return sum(cost(rows) for cost in self.costs)


def roughly(linear: LinearizedFunction, sizes: ActivationMemory) -> float:
    """Least seconds of the loop over rows, from the size of the gradient graph and the bytes that it touches."""
    assert linear.recorded_pass is not None
    touched = sizes.total + sum(t.numel() * t.element_size() for t in linear.f.network.tensors())
    each = defaults.PASS_S + linear.recorded_pass.operators() * defaults.NODE_S + touched / defaults.TOUCHED_BYTES_S
    return linear.f.n_out * each


def counted(linear: LinearizedFunction) -> Work:
    """The operators of f; none where they cannot be watched. Cost: one evaluation, and some 20 µs an operator."""
    if linear.f.network.refuses_modes:
        return Work([])
    counter = _Counter(1.0 if linear.value.device.type == "cpu" else defaults.ACCELERATOR_SPEED)
    with torch.no_grad(), counter:
        linear.evaluate(linear.point)
    return Work(counter.costs)


class _Counter(Mode):
    """Counts the operators that compute something, which views do not."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed, self.costs = speed, list[Cost]()

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        self._count(op, args, result)
        return result

    def _count(self, op: Any, args: tuple[Any, ...], result: Any) -> None:
        results = result if isinstance(result, tuple | list) else (result,)
        tensors = [t for t in (*args, *results) if isinstance(t, Tensor)]
        first = op._schema.arguments[0] if op._schema.arguments else None
        if not tensors or (first is not None and first.alias_info is not None and not first.alias_info.is_write):
            return  # a view
        self.costs.append(_cost(op, [t for t in args if isinstance(t, Tensor)], args, tensors, self.speed))


def _cost(op: Any, operands: list[Tensor], args: tuple[Any, ...], tensors: list[Tensor], speed: float) -> Cost:
    """The cost of an operator, from its operands of any shapes, all arguments, and operands and results together."""
    machine, dtype = TYPICAL, tensors[-1].dtype
    packet = op.overloadpacket
    if packet in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm):
        a, b = operands[-2].shape, operands[-1].shape
        batch = a[0] if len(a) == 3 else 1
        # One more row multiplies the rows of the left factor: the backward pass of a product is a product of its size.
        return lambda rows: machine.gemm_seconds(rows * a[-2], a[-1], b[-1], batch, dtype) / speed
    if packet in (aten.convolution, aten._convolution):
        transposed, out = bool(args[6]), tensors[-1]
        weight, groups = operands[1], int(args[8])
        channels = (out.shape[1] // groups, operands[0].shape[1] // groups)
        spots = (operands[0] if transposed else out).numel() // (weight.shape[0] if transposed else out.shape[1])
        flops = 2.0 * spots * weight.numel()
        return lambda rows: rows * machine.conv_seconds(flops, channels, False, not transposed, dtype) / speed
    if any(part in op.name() for part in ("rnn", "lstm", "gru")):
        flops = 2.0 * sum(t.numel() for t in operands if t.dim() == 2) * operands[0].numel() / operands[0].shape[-1]
        return lambda rows: rows * flops / defaults.RECURRENT_FLOPS / speed
    moved = sum(t.numel() * t.element_size() for t in tensors)
    return lambda rows: machine.elementwise_seconds(rows * moved) / speed
