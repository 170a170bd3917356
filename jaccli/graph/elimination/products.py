"""Products with J through a captured graph: any number of vectors at once, no pass through the network."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.graph.elimination.bracketing import Chain
from jaccli.graph.elimination.cuts import active_nodes, stretches
from jaccli.graph.elimination.sweep import derivatives
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block, whole
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout, SeedAxis
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import gap_where_it_fails


class Products:
    """JV and JᵀU by the derivatives of the graph's operators, which are computed once.

    Args:
        graph: f, captured at the point.

    Raises:
        CaptureGap: an operator is out of reach.
    """

    @gap_where_it_fails()
    def __init__(self, graph: Graph) -> None:
        nodes = active_nodes(graph.nodes, graph.source, graph.target)
        maps_of = derivatives(nodes, graph.target)
        cuts, parts = stretches(nodes, graph.source, graph.target, maps_of)
        self._chain = Chain(cuts, parts, maps_of)
        self._source, self._target = graph.source.tensor, graph.target.tensor
        self._same = graph.source is graph.target

    @gap_where_it_fails()
    def push(self, v: Tensor) -> Tensor:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``."""
        with torch.no_grad():
            columns: Block | None = _seeds(v, self._source)
            for stretch in self._chain.stretches:
                columns = stretch.push(columns) if columns is not None else None
            return self._vectors(columns, v, self._target)

    @gap_where_it_fails()
    def pull(self, u: Tensor) -> Tensor:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``."""
        with torch.no_grad():
            rows: Block | None = _seeds(u, self._target)
            for stretch in reversed(self._chain.stretches):
                rows = stretch.pull(rows) if rows is not None else None
            return self._vectors(rows, u, self._source)

    def _vectors(self, bundle: Block | None, given: Tensor, like: Tensor) -> Tensor:
        batch, _, k = given.shape
        if bundle is None or not (self._chain.stretches or self._same):
            return given.new_zeros(batch, like[0].numel(), k)
        return matrix(whole(bundle)).mT.to(given.dtype)


def _seeds(vectors: Tensor, activation: Tensor) -> Block:
    """k vectors of each sample over an activation: their ends are an activation ``(batch, k)``."""
    batch, _, k = vectors.shape
    linked = ((BandedAxis((0, 1), batch),) if batch != 1 else (),)
    seed_axes = tuple(SeedAxis((d, 1), n) for d, n in enumerate((batch, k)) if n != 1)
    form = Layout(seed_axes, (*linked, *((DenseAxis(n),) if n != 1 else () for n in activation.shape[1:])))
    return Block(form, vectors.to(activation.dtype).mT.reshape(form.sizes))
