"""Products with J through a captured graph: any number of vectors at once, no pass through the network."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.graph.elimination.bracketing import Chain
from jaccli.graph.elimination.cuts import active_nodes, segments
from jaccli.graph.elimination.sweep import sample_vectors
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block, whole
from jaccli.graph.rules.derivatives import derivatives
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import gap_where_it_fails


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
        self._segments = Chain(*segments(nodes, graph.source, graph.target, maps_of), maps_of).segments
        self._source, self._target = graph.source.tensor, graph.target.tensor
        self._is_zero = not self._segments and graph.source is not graph.target

    @gap_where_it_fails()
    def push(self, v: Tensor) -> Tensor:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``, in the dtype of ``v``."""
        with torch.no_grad():
            columns: Block | None = sample_vectors(self._source.shape, v.shape[2], v.to(self._source.dtype).mT)
            for segment in self._segments:
                columns = segment.push(columns) if columns is not None else None
            return self._result(columns, v, self._target)

    @gap_where_it_fails()
    def pull(self, u: Tensor) -> Tensor:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``, in the dtype of ``u``."""
        with torch.no_grad():
            rows: Block | None = sample_vectors(self._target.shape, u.shape[2], u.to(self._target.dtype).mT)
            for segment in reversed(self._segments):
                rows = segment.pull(rows) if rows is not None else None
            return self._result(rows, u, self._source)

    def _result(self, block: Block | None, vectors: Tensor, activation: Tensor) -> Tensor:
        """``(batch, size of the activation, k)`` of a block over it; None is zero."""
        batch, _, k = vectors.shape
        if block is None or self._is_zero:
            return vectors.new_zeros(batch, activation[0].numel(), k)
        return matrix(whole(block)).mT.to(vectors.dtype)
