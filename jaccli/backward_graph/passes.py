"""Passes through an autograd graph that exists: J by rows or by columns, and backward passes to compare it with."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.autograd.products import NoSecondDerivative, vjp, vjps
from jaccli.autograd.sample_mixing import reaches_silent_samples
from jaccli.autograd.seeds import gaussian, one_hot, spans
from jaccli.autograd.walk import graph_nodes, is_once_differentiable, result_sizes
from jaccli.errors import UnsupportedError
from jaccli.linear_maps.agreement import tolerance
from jaccli.linear_maps.norms import norm
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped


@dataclass(frozen=True)
class AutogradGraph:
    """The graph from the inputs to one output.

    Args:
        output: ``(batch, *shape)``, or any shape without ``samples``.
        inputs: likewise.
        samples: the first dimension of every tensor counts samples; without, the whole tensor is one sample.
        create_graph: results are to be differentiated again.
        reached: filled with the positions of the inputs that a pass arrived at.
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    samples: bool
    create_graph: bool
    reached: set[int] = field(default_factory=set)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.output.shape[0] if self.samples else 1

    @property
    def n_out(self) -> int:
        """Elements of a sample's output."""
        return self.size(self.output)

    def size(self, tensor: Tensor) -> int:
        """Elements of a sample of a tensor, ``(batch, …)``, or of any shape without ``samples``."""
        return math.prod(tensor.shape[int(self.samples) :])

    def vjps(self, u: Shaped[Tensor, "k batch n_out"]) -> list[Shaped[Tensor, "k batch _"]]:
        """Jᵀ times k cotangents at once, ``(k, batch, n_out)`` → for each input ``(k, batch, n_in)``."""
        rows: list[Tensor | None]
        if len(u) == 1:
            # Without vmap: it imports sympy, and some operators have no batching rule.
            one = vjp(self.output, self.inputs, u.reshape(self.output.shape), self.create_graph)
            # An embedding with sparse=True has a sparse gradient.
            rows = [row if row is None else row.to_dense()[None] for row in one]
        else:
            rows = [*vjps(self.output, self.inputs, u.reshape(-1, *self.output.shape), self.create_graph)]
        self.reached.update(i for i, row in enumerate(rows) if row is not None)
        shapes = [(len(u), self.batch, self.size(source)) for source in self.inputs]
        # Expanded from one zero: an input that no path reaches takes no memory.
        return [
            source.new_zeros(()).expand(shape) if row is None else row.reshape(shape)
            for row, source, shape in zip(rows, self.inputs, shapes, strict=True)
        ]

    def widest(self) -> int:
        """Bytes of the widest result between inputs and output.

        Raises:
            UnsupportedError: a gradient that has no derivative, which torch would leave out without an error.
        """
        widest = self.output.numel()
        # Both in one walk: a graph may have a hundred thousand nodes.
        for node in graph_nodes(self.output, beyond=self.inputs):
            if is_once_differentiable(node):
                raise UnsupportedError(
                    "the graph leads through the gradient of a function that is marked once_differentiable",
                    "expected functions whose gradient has a derivative too",
                )
            widest = max([widest, *result_sizes(node)])
        return widest * self.output.element_size()


@dataclass(frozen=True)
class AdjointCheck:
    """Plain backward passes, each with a random cotangent on some of the samples, that J is compared with.

    They use neither vmap nor a transposed graph, so that what those get wrong shows.

    Args:
        graph: from the inputs to one output.
        u: cotangents, ``(k, batch, n_out)``.
        rows: Jᵀu of each input, ``(k, batch, n_in)``.
        seconds: what the last pass took.
    """

    graph: AutogradGraph
    u: Tensor
    rows: list[Tensor]
    seconds: float

    @classmethod
    def of(cls, graph: AutogradGraph, u: Shaped[Tensor, "k batch n_out"]) -> AdjointCheck:
        """Make a pass for each of ``u``, ``(k, batch, n_out)``."""
        passes, start = [], 0.0
        # Only the last one is timed: the first pass of a process also starts threads and loads kernels.
        for one in u:
            start = time.perf_counter()
            passes.append(graph.vjps(one[None]))
        seconds = time.perf_counter() - start
        return cls(graph, u, [torch.cat(rows).detach() for rows in zip(*passes, strict=True)], seconds)

    def samples_mix(self) -> bool:
        """Whether the cotangents of some samples give gradients of others, which of independent samples are zeros."""
        return any(reaches_silent_samples(self.u, rows) for rows in self.rows)

    def disagreement(self, jacobians: Sequence[Tensor]) -> float:
        """The relative difference of uᵀJ from the passes, where it is more than rounding; else 0.

        ``jacobians`` has J of each input, ``(batch, n_out, n_in)``.
        """
        rows = [torch.einsum("kbo,boi->kbi", self.u.to(j), j.detach()) for j in jacobians]
        error = self._relative(jacobians, rows)
        eps = max(torch.finfo(t.dtype).eps for t in (self.graph.output, *self.graph.inputs))
        return error if error > tolerance(eps) else 0.0

    def noise(self, jacobians: Sequence[Tensor]) -> float:
        """Rounding in the same units: the passes against a third of those with three times the cotangents.

        ``jacobians`` as of ``disagreement``, ``(batch, n_out, n_in)`` each.
        """
        # Three and not two: a power of two only shifts exponents, so that nothing would be rounded otherwise.
        return self._relative(jacobians, [rows / 3 for rows in AdjointCheck.of(self.graph, 3 * self.u).rows])

    def _relative(self, jacobians: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        """The largest difference of others from the passes' rows, in units of ‖J‖_F ‖u‖ of a sample.

        ``jacobians`` are ``(batch, n_out, n_in)``, ``others`` ``(k, batch, n_in)``, for each input.
        """
        worst = 0.0
        for j, rows, other in zip(jacobians, self.rows, others, strict=True):
            norm_u = norm(self.u.to(j), (-1,))
            size = norm(j.detach(), (1, 2)) * norm_u
            error = norm(rows - other, (-1,)) / size.clamp(min=torch.finfo(torch.float64).tiny)
            # J not finite where the pass is: wrong. The other way round the pass overflowed, and tells nothing.
            missed = rows.isfinite().all(-1) & ~j.isfinite().all((1, 2)) if j.numel() else torch.zeros_like(norm_u > 0)
            error = torch.where(missed, torch.inf, error)[(norm_u > 0) & (missed | error.isfinite())]
            worst = max(worst, float(error.max())) if error.numel() else worst
        return worst


def cotangents(graph: AutogradGraph, chosen: Bool[Tensor, "k batch"]) -> Shaped[Tensor, "k batch n_out"]:
    """Random cotangents ``(k, batch, n_out)``, zero for samples that ``chosen`` ``(k, batch)`` leaves out."""
    u = gaussian((*chosen.shape, graph.n_out), 0, graph.output.detach())
    return u * chosen[..., None].to(u.device)


def by_rows(graph: AutogradGraph, mixes: bool, chunk: int) -> list[Shaped[Tensor, "batch n_out _"]]:
    """J of each input, ``(batch, n_out, n_in)``, by one pass for each row, ``chunk`` of them at once.

    Args:
        graph: from the inputs to one output.
        mixes: samples mix: each sample has passes of its own, and J is its own block.
        chunk: rows of a batched pass.
    """
    batch, n_out = graph.batch, graph.n_out
    # Where samples mix, the batch is one sample of batch * n_out outputs, of whose rows only the own block is kept.
    groups, total = (1, batch * n_out) if mixes else (batch, n_out)
    # Rows with a graph are concatenated: written into one tensor, each would add a node that copies all of J.
    width = 0 if graph.create_graph else total
    jacobians = [x.new_empty(groups, width, graph.size(x)) for x in graph.inputs]
    parts: list[list[Tensor]] = [[] for _ in jacobians]
    for start, stop in spans(total, chunk):
        u = one_hot(start, stop, 1 if mixes else batch, total, graph.output).reshape(-1, batch, n_out)
        seed, sample = torch.arange(stop - start, device="cpu"), torch.arange(start, stop, device="cpu") // n_out
        for jacobian, part, images in zip(jacobians, parts, graph.vjps(u), strict=True):
            rows = images[seed, sample][None] if mixes else images.movedim(0, 1)
            if graph.create_graph:
                part.append(rows)
            else:
                jacobian[:, start:stop] = rows
    whole = [torch.cat(part, 1) for part in parts] if graph.create_graph else jacobians
    return [j.reshape(batch, n_out, j.shape[-1]) for j in whole]


def by_columns(graph: AutogradGraph, mixes: bool, chunk: int) -> list[Shaped[Tensor, "batch n_out _"]]:
    """As ``by_rows``, by one pass for each column through Jᵀu, which is linear in u: see ``DoubleVjp``.

    Raises:
        NotImplementedError: a gradient has no second derivative.
    """
    u = graph.output.new_zeros(graph.batch, graph.n_out).requires_grad_()
    with torch.enable_grad():
        rows = [row[0] for row in replace(graph, create_graph=True).vjps(u[None])]
    jacobians = []
    for i, row in enumerate(rows):
        if i in graph.reached and row.numel():
            transposed = AutogradGraph(row, (u,), True, graph.create_graph)
            transposed.widest()  # raises where torch would leave out a derivative that does not exist
            (columns,) = by_rows(transposed, mixes, chunk)
            if not transposed.reached:
                raise NoSecondDerivative
            jacobians.append(columns.mT.to(row))
        else:  # no path leads there, or nothing is to be computed
            jacobians.append(row.new_zeros(graph.batch, graph.n_out, row.shape[-1]))
    return jacobians


def missing_graph(target: Tensor, sources: Sequence[Tensor]) -> str | None:
    """Where the backward pass from ``target`` leaves no graph of itself, in words; None where it leaves one.

    In a pass whose cotangent requires gradients every gradient does, since it depends on the cotangent. One that is
    not zero and does not was made under ``no_grad``, by a tensor hook, or outside of torch. Cost: a backward pass.

    Args:
        target: of any shape.
        sources: of any shapes, tensors of its graph.
    """
    u = gaussian(target.shape, 7, target.detach()).requires_grad_()
    without_graph: list[str] = []
    with ExitStack() as stack, torch.enable_grad():
        for node in graph_nodes(target):
            stack.callback(node.register_prehook(_GraphWatch(node.name(), without_graph)).remove)
        try:
            rows = vjp(target, sources, u, create_graph=True)
        except (RuntimeError, NotImplementedError) as error:
            reraise_out_of_memory(error)
            return reason(error)
    if any(_is_constant(row) for row in rows):
        without_graph.append("its end")
    if any(is_once_differentiable(node) for node in graph_nodes(*(row for row in rows if row is not None))):
        return "a function of the model is marked once_differentiable"
    return f"a backward pass leaves no graph of itself at {without_graph[0]}" if without_graph else None


@dataclass(frozen=True)
class _GraphWatch:
    """A hook of one operator, that adds its name to ``without_graph`` if a gradient arrives there without a graph."""

    name: str
    without_graph: list[str]

    def __call__(self, grads: Sequence[Tensor | None]) -> None:
        """Of gradients by the operator's results, of any shapes."""
        if any(_is_constant(grad) for grad in grads):
            self.without_graph.append(self.name)


def _is_constant(grad: Shaped[Tensor, "*shape"] | None) -> bool:
    return grad is not None and not grad.requires_grad and bool((grad != 0).any())
