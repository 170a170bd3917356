"""Columns of J by forward-mode passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.products import batching_imported
from jaccli.methods.base import Method, MethodGap, MethodTask, SelectionInput, attempt
from jaccli.runtime.kernels import unfused

# Its name in notes, the function, and the context that it runs in.
_Variant = tuple[str, Callable[[Tensor], Tensor], AbstractContextManager[None]]


class Forward(Method):
    """Columns in chunks of Jacobian-vector products, vectorised by vmap.

    Where vmap has no rule for an operator, the columns are computed one by one; where a fused recurrent layer has no
    forward-mode formula, from its operators.

    Cost: n_in forward passes with tangents in n_in / chunk calls.
    Source: forward-mode differentiation by dual numbers (Wengert 1964), as in ``torch.func.jacfwd``.
    """

    name = "forward"
    by = "column"
    batched = True
    needs_plain_attention = True
    kind = "forward"
    drawback = "{n_in} forward passes through the whole network"
    fallbacks = ("reverse", "loop")

    def fill(self, task: MethodTask) -> None:
        gaps: list[str] = []
        for label, push, context in self._variants(task):
            try:
                with context:
                    attempt(self._run, task, push)
            except MethodGap as gap:
                gaps.append(f"{label}: {gap}")
                continue
            task.notes.extend(f"forward mode, {gap}; went on {label}" for gap in gaps[-1:])
            return
        raise MethodGap(f"forward mode has no formula for this model: {gaps[0].split(': ', 1)[1]}")

    def _variants(self, task: MethodTask) -> list[_Variant]:
        """Functions from seeds ``(k, batch, n_in)`` to columns ``(k, batch, n_out)``, the fastest first."""
        linear = task.linear

        def one_by_one(seeds: Tensor) -> Tensor:
            return torch.stack([linear.jvp(seed) for seed in seeds])

        variants: list[_Variant] = [
            ("vectorised", linear.jvps, nullcontext()),
            ("column by column", one_by_one, nullcontext()),
        ]
        if task.out.device.type != "cpu" or torch.backends.mkldnn.is_available():
            variants.append(("column by column without fused recurrent layers", one_by_one, unfused()))
        return variants

    def predict(self, inputs: SelectionInput) -> float | None:
        f = inputs.linear.f
        if f.n_in >= defaults.FORWARD_COLUMNS * f.n_out:
            return None
        imports = 0.0 if batching_imported() else defaults.FUNCTORCH_IMPORT
        return inputs.work.forward(f.n_in, inputs.chunk_of("forward")) + imports

    def _run(self, task: MethodTask, push: Callable[[Tensor], Tensor]) -> None:
        """Fill J by ``push``, ``(k, batch, n_in)`` → ``(k, batch, n_out)``."""
        for group, columns, seeds in task.chunks(task.linear.f.n_in):
            task.out[group, :, columns] = push(seeds)[:, group].permute(1, 2, 0)
