"""Rows of J by backward passes: one at a time, batched, or in copies of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.autograd.seeds import spans
from jaccli.linear_maps.agreement import values_agree
from jaccli.linearization.activation_memory import ActivationMemory
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.methods.base import Method, MethodGap, MethodTask, SelectionInput, attempt
from jaccli.planning.linearize.linearization import Linearization
from jaccli.planning.linearize.nearby import perturbed
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory


class Loop(Method):
    """One vector-Jacobian product for each output, with a one-hot cotangent: the definition of a row of J.

    Cost: n_out backward passes through the recorded graph, and memory for one.
    """

    name = "loop"
    drawback = "{n_out} backward passes, one by one"
    needs_graph = True
    fallbacks = ("forward",)

    def predict(self, inputs: SelectionInput) -> float | None:
        return inputs.work.loop(inputs.linear.f.n_out)

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        for group in task.groups():
            seed = task.out.new_zeros(linear.batch, linear.f.n_out)
            for row in range(linear.f.n_out):
                seed[group, row] = 1
                # Where samples mix, a row has entries at the other samples too: those are not of this sample's block.
                task.out[group, row] = attempt(linear.vjp, seed)[group]
                seed[group, row] = 0
                task.tick(1)


class Reverse(Method):
    """Rows in chunks, each chunk one batched backward pass (vmap over cotangents).

    An operator without a batching rule runs row by row.

    Cost: the work of n_out backward passes, in n_out / chunk calls.
    Source: ``is_grads_batched`` of ``torch.autograd.grad``, as in ``torch.func.jacrev``.
    """

    name = "reverse"
    drawback = "{n_out} backward passes through the whole network"
    needs_graph = True
    batched = True
    needs_plain_attention = True
    fallbacks = ("loop", "forward")

    def predict(self, inputs: SelectionInput) -> float | None:
        return inputs.work.reverse(inputs.linear.f.n_out, inputs.chunk_of("reverse"))

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        for group, rows, seeds in task.chunks(linear.f.n_out):
            task.out[group, rows] = attempt(linear.vjps, seeds)[:, group].movedim(0, 1)


class Replicate(Method):
    """Copies of the batch, one for each output, and one backward pass with the identity as cotangent.

    The model must accept any number of samples and treat each on its own.

    Cost: the work of n_out forward and backward passes, in n_out / chunk calls, and the activations of ``chunk``
    copies.
    """

    name = "replicate"
    drawback = "{n_out} backward passes, and as many copies of the input"
    fallbacks = ("reverse", "loop", "forward")

    def why_not(self, linearization: Linearization) -> str | None:
        if linearization.samples_mix:
            return "samples mix in this model: copies of the batch would change each other"
        return None

    def row_bytes(self, linear: LinearizedFunction, sizes: ActivationMemory) -> int:
        return super().row_bytes(linear, sizes) + sizes.total

    def fill(self, task: MethodTask) -> None:
        linear = task.linear
        check_tiling(task)
        for start, stop in spans(linear.f.n_out, task.chunk):
            copies = stop - start
            f = linear.f.tiled(copies)
            with torch.enable_grad():
                points = torch.cat([linear.point] * copies).requires_grad_()
                value = attempt(f, points)
            seeds = task.seeds(start, stop, linear.f.n_out, slice(None)).reshape(value.shape)
            linear.passes["forward"] += copies
            linear.passes["vjp"] += copies
            (grad,) = attempt(torch.autograd.grad, value, points, seeds)
            task.out[:, start:stop] = grad.reshape(copies, linear.batch, -1).movedim(0, 1)
            task.tick(copies)


class Functional(Method):
    """``torch.autograd.functional.jacobian`` of the sum over samples, or of all samples where they mix.

    Cost: a forward pass of its own, and n_out backward passes; batch * n_out where samples mix.
    """

    name = "functional"
    drawback = "{n_out} backward passes, one by one"
    fallbacks = ("reverse", "loop", "forward")

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
                # The sum over samples would add what each target owes to the other samples.
                full = attempt(jacobian, linear.f, linear.point).reshape(batch, n_out, batch, n_in)
                task.out.copy_(full.diagonal(dim1=0, dim2=2).movedim(-1, 0))
            else:
                rows = attempt(jacobian, summed, linear.point)
                task.out.copy_(rows.reshape(n_out, batch, n_in).movedim(0, 1))
        task.tick(n_out)


def check_tiling(task: MethodTask) -> None:
    """Check that copies of the batch do not change each other's values. Cost: an evaluation of three copies.

    Raises:
        MethodGap: the model accepts no other number of samples, or its values change with it.
    """
    linear = task.linear
    if linear.f.source.view.dim is None or linear.f.target.view.dim is None:
        raise MethodGap("the activation has no dimension for samples")
    # The copy in the middle is between other samples: identical copies would not show what one does to the next.
    other = perturbed(linear.point)
    try:
        with torch.no_grad():
            values = linear.evaluate(torch.cat([other, linear.point, other]), copies=3)
    except Exception as error:
        reraise_out_of_memory(error)
        raise MethodGap(f"the model does not take copies of the batch: {reason(error)}") from None
    same = values.shape[0] == 3 * linear.batch and values.shape[1:] == linear.value.shape[1:]
    eps = linear.recorded_pass.rounding if linear.recorded_pass is not None else 0.0
    if not same or not values_agree(values[linear.batch : 2 * linear.batch], linear.value, eps):
        raise MethodGap("with copies of the batch the model gives other values")
