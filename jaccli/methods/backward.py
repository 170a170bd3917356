"""Rows of J by backward passes: one at a time, batched, or in copies of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from jaccli.errors import JaccliError
from jaccli.linear_maps.agreement import values_agree
from jaccli.methods.base import Method, MethodGap, MethodTask, is_out_of_memory, perturbed, reason, spans
from jaccli.names import MethodName


class Loop(Method):
    """One vector-Jacobian product per output with a one-hot cotangent. Cost: n_out backward passes."""

    name: MethodName = "loop"
    by: Literal["row", "column"] = "row"
    needs_graph = True

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        for group in task.groups():
            seed = task.out.new_zeros(linear.batch, linear.f.n_out)
            for row in range(linear.f.n_out):
                seed[group, row] = 1
                task.out[group, row] = _attempt(linear.vjp, seed)[group]
                seed[group, row] = 0
                task.tick(1)


class Reverse(Method):
    """Rows in chunks, each chunk one batched backward pass (vmap over cotangents).

    Cost: n_out backward passes' work in n_out / chunk calls. A backward pass that vmap cannot do
    goes on row by row.
    """

    name: MethodName = "reverse"
    by: Literal["row", "column"] = "row"
    needs_graph = True

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        for group in task.groups():
            for start, stop in spans(linear.f.n_out, task.chunk):
                seeds = task.seeds(start, stop, linear.f.n_out, group)
                rows = _attempt(linear.vjps, seeds)
                task.out[group, start:stop] = rows[:, group].movedim(0, 1)
                task.tick(stop - start)


class Replicate(Method):
    """Copies of the batch, one per output, and the identity sent back in one backward pass.

    Cost: n_out forward and backward passes' work in n_out / chunk calls, and the activations of
    ``chunk`` copies. The model must take any number of samples and treat each on its own.
    """

    name: MethodName = "replicate"
    by: Literal["row", "column"] = "row"
    needs_graph = False

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        if task.samples_mix:
            raise MethodGap("samples mix in this model: copies of the batch would change each other")
        check_tiling(task)
        for start, stop in spans(linear.f.n_out, task.chunk):
            copies = stop - start
            f = linear.f.tiled(copies)
            with torch.enable_grad():
                points = torch.cat([linear.point] * copies).requires_grad_()
                value = _attempt(f, points)
            seeds = task.seeds(start, stop, linear.f.n_out, slice(None)).reshape(value.shape)
            linear.passes["forward"] += copies
            linear.passes["vjp"] += copies
            grad = _attempt(_gradient, value, points, seeds)
            task.out[:, start:stop] = grad.reshape(copies, linear.batch, -1).movedim(0, 1)
            task.tick(copies)


class Functional(Method):
    """``torch.autograd.functional.jacobian`` of the sum over samples: its loop over outputs."""

    name: MethodName = "functional"
    by: Literal["row", "column"] = "row"
    needs_graph = False

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        jacobian = torch.autograd.functional.jacobian
        linear.passes["forward"] += 1
        linear.passes["vjp"] += linear.f.n_out
        batch, n_out, n_in = linear.shape

        def summed(h: Tensor) -> Tensor:
            return linear.f(h).reshape(batch, n_out).sum(0)

        with torch.enable_grad():
            if task.samples_mix:
                full = _attempt(jacobian, linear.f, linear.point).reshape(batch, n_out, batch, n_in)
                task.out.copy_(full.diagonal(dim1=0, dim2=2).movedim(-1, 0))
            else:
                rows = _attempt(jacobian, summed, linear.point)
                task.out.copy_(rows.reshape(n_out, batch, n_in).movedim(0, 1))
        task.tick(n_out)


def check_tiling(task: MethodTask) -> None:
    """Whether copies of the batch leave each other's values alone. Cost: an evaluation of three.

    Raises:
        MethodGap: the model is bound to its number of samples.
    """
    linear = task.linear
    if linear.f.source.slot.dim is None or linear.f.target.slot.dim is None:
        raise MethodGap("the activation has no dimension for samples")
    other = perturbed(linear.point)
    try:
        with torch.no_grad():
            values = linear.evaluate(torch.cat([other, linear.point, other]), copies=3)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MethodGap(f"the model does not take copies of the batch: {reason(error)}") from None
    # Other samples around it: identical copies would not show what one does to the next.
    same = values.shape[0] == 3 * linear.batch and values.shape[1:] == linear.value.shape[1:]
    eps = linear.recorded_pass.rounding if linear.recorded_pass is not None else 0.0
    if not same or not values_agree(values[linear.batch : 2 * linear.batch], linear.value, eps):
        raise MethodGap("with copies of the batch the model gives other values")


def _gradient(value: Tensor, point: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(value, point, cotangent)[0]


def _attempt(call: Callable[..., Tensor], *args: Any) -> Tensor:
    """Run a pass; an error of torch becomes a gap, but for memory, which another method would not mend."""
    try:
        return call(*args)
    except JaccliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MethodGap(reason(error)) from error
