"""Products with J through a captured graph: any number of vectors at once, no pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.graph.elimination.bracketing import Chain
from jaccli.graph.elimination.cuts import active_nodes
from jaccli.graph.elimination.sweep import sample_vectors
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block, whole
from jaccli.graph.rules.derivatives import derivatives
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import gap_where_it_fails

if TYPE_CHECKING:
    from jaxtyping import Shaped


class Products:
    """JV and JᵀU by the derivatives of the graph's operators, which are computed once.

    Args:
        graph: f, captured at the point.

    Raises:
        CaptureGap: an operator has no rule.
    """

    @gap_where_it_fails()
    def __init__(self, graph: Graph) -> None:
        nodes = active_nodes(graph.nodes, graph.source, graph.target)
        maps_of = derivatives(nodes, graph.target)
        self._segments = Chain(nodes, graph.source, graph.target, maps_of).segments
        self._source, self._target = graph.source.tensor, graph.target.tensor
        # Without segments no path leads to the target, or it is the source, and J is the identity.
        self._is_zero = not self._segments and graph.source is not graph.target

    @gap_where_it_fails()
    def push(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``, in the dtype of ``v``."""
        return self._swept(v, self._source, self._target, (segment.push for segment in self._segments))

    @gap_where_it_fails()
    def pull(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``, in the dtype of ``u``."""
        return self._swept(u, self._target, self._source, (segment.pull for segment in reversed(self._segments)))

    def _swept(
        self, vectors: Tensor, start: Tensor, end: Tensor, sweeps: Iterable[Callable[[Block], Block | None]]
    ) -> Tensor:
        """Vectors ``(batch, n, k)`` over one activation, swept through the segments to the other: ``(batch, m, k)``."""
        batch, _, k = vectors.shape
        with torch.no_grad():
            block: Block | None = sample_vectors(start.shape, k, vectors.to(start.dtype).mT)
            for sweep in sweeps:
                block = sweep(block) if block is not None else None
            if block is None or self._is_zero:
                return vectors.new_zeros(batch, end[0].numel(), k)
            return matrix(whole(block)).mT.to(vectors.dtype)
