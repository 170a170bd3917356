"""What a method is: it fills J from products with J."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from jaccli.graph import Bracketing, EliminationPlan
from jaccli.linearization.linearization import LinearizedFunction
from jaccli.names import MethodName
from jaccli.runtime.torch_errors import is_out_of_memory, reason

__all__ = ["Method", "MethodGap", "MethodTask", "Tick", "is_out_of_memory", "perturbed", "reason", "spans"]

Tick = Callable[[int], None]


class MethodGap(Exception):
    """A method cannot do this model; the message says why. Another method may."""


@dataclass
class MethodTask:
    """One J to fill.

    Args:
        linear: f at the point, with its products.
        out: ``(batch, n_out, n_in)``, overwritten.
        chunk: how many rows, columns or copies go through the network at once.
        samples_mix: whether a sample's target hangs on other samples: then J[b] is the diagonal
            block, and each sample needs passes of its own.
        tick: told how many rows or columns were finished.
        notes: filled with what a reader should know of how it went.
        error_estimate: filled by a method that is not exact: relative Frobenius error.
        engine: f captured as a graph, where that was done before.
        bracket: how to multiply out its chain, where that is known.
    """

    linear: LinearizedFunction
    out: Tensor
    chunk: int
    samples_mix: bool = False
    tick: Tick = lambda done: None
    notes: list[str] = field(default_factory=list)
    error_estimate: float | None = None
    engine: EliminationPlan | None = None
    bracketing: Bracketing | None = None

    def groups(self) -> list[slice]:
        """Which samples may share a pass: all of them, or each its own."""
        batch = self.linear.batch
        return [slice(b, b + 1) for b in range(batch)] if self.samples_mix else [slice(0, batch)]

    def seeds(self, start: int, stop: int, size: int, group: slice) -> Tensor:
        """One-hot vectors ``start:stop`` for the samples of a group, zero for others: ``(k, batch, size)``."""
        seeds = self.out.new_zeros(stop - start, self.linear.batch, size)
        seeds[:, group, start:stop] = torch.eye(stop - start, dtype=seeds.dtype, device=seeds.device).unsqueeze(1)
        return seeds


class Method(Protocol):
    """A way to obtain J.

    Attributes:
        name: as on the command line.
        by: what it takes one pass for each of.
        needs_graph: whether the forward pass must be recorded for backward passes.
    """

    name: MethodName
    by: Literal["row", "column"]
    needs_graph: bool

    def fill(self, task: MethodTask) -> None:
        """Fill ``task.out``.

        Raises:
            MethodGap: the model has an operator that the method cannot do.
        """


def spans(size: int, chunk: int) -> list[tuple[int, int]]:
    """``0:size`` in pieces of at most ``chunk``."""
    return [(start, min(start + chunk, size)) for start in range(0, size, max(chunk, 1))]


def perturbed(point: Tensor) -> Tensor:
    """A point nearby: every value some percent smaller, which keeps to the range that a model may insist on.

    Samples of zeros are moved away from zero.
    """
    generator = torch.Generator().manual_seed(1)
    share = 0.02 + 0.08 * torch.rand(point.shape, generator=generator).to(point)
    zero = (point == 0).reshape(point.shape[0], -1).all(1).reshape(-1, *[1] * (point.dim() - 1))
    return torch.where(zero, share, point * (1 - share))
