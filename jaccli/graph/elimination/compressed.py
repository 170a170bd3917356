"""J from few passes: rows (or columns) of one colour are pulled back (pushed forward) as one vector.

    pattern ─→ colours ─→ seeds (colours, n_out) ─→ one sweep ─→ packed (batch, colours, n_in) ─→ J

No column (row) of J has entries in two rows (columns) of one colour. So every entry of J stands alone in the packed
result, at an index that is known from the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jaccli.defaults import WORKING_SET
from jaccli.graph.elimination.sweep import Segment, sample_vectors
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.rules.registry import Map
from jaccli.graph.sparsity.coloring import By, Coloring, coloring, fewest
from jaccli.graph.sparsity.index_sets import IntArray
from jaccli.graph.sparsity.pattern import Pattern, pattern
from jaccli.graph.trace.ir import Node, Value

# With more passes than this share of the rows and of the columns, nothing is saved.
_MOST_PASSES = 0.5


@dataclass
class Compressed:
    """J of a segment by coloured passes.

    Args:
        segment: the active nodes between two values whose dimension 0 is the samples.
        pattern: of one sample's J.
        coloring: of its rows or columns.
        chunk: colours that go through the network at once.
        seconds: predicted.
        peak: elements of the largest intermediate result.
    """

    segment: Segment
    pattern: Pattern
    coloring: Coloring
    chunk: int
    seconds: float = 0.0
    peak: int = 0
    _seeds: Tensor = field(init=False)
    _in_matrix: Tensor = field(init=False)
    _in_packed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Made before any run, so that they are constants where a run is traced.
        like = self._start.tensor
        groups, size = self.coloring.groups, len(self.coloring.groups)
        filled = np.flatnonzero(groups >= 0)
        seeds = np.zeros((self.passes, size), np.float32)
        seeds[groups[filled], filled] = 1
        self._seeds = torch.from_numpy(seeds).to(like)
        self._in_matrix, self._in_packed = (torch.from_numpy(x).to(like.device) for x in self._indices())

    @property
    def passes(self) -> int:
        """How many vectors of each sample go through the network."""
        return self.coloring.count

    @property
    def _by_row(self) -> bool:
        return self.coloring.by == "row"

    @property
    def _start(self) -> Value:
        """Where the passes begin."""
        return self.segment.target if self._by_row else self.segment.source

    def describe(self) -> str:
        """``49 VJPs instead of 1024``."""
        rows, columns = self.pattern.shape
        return f"{self.passes} VJPs instead of {rows}" if self._by_row else f"{self.passes} JVPs instead of {columns}"

    def run(self) -> Tensor:
        """J at the point of the capture, ``(batch, n_out, n_in)``. Operators only: it can be traced.

        Raises:
            ValueError: samples mix.
        """
        start, like = self._start, self.segment.target.tensor
        batch = start.shape[0]
        n_out, n_in = self.pattern.shape
        parts = []
        for first in range(0, self.passes, self.chunk):
            count = min(self.chunk, self.passes - first)
            seeds = self._seeds[first : first + count]
            block = self._through(sample_vectors(start.shape, count, seeds, shared=True))
            end = n_in if self._by_row else n_out
            parts.append(like.new_zeros(batch, count, end) if block is None else matrix(block))
        if not parts:
            return like.new_zeros(batch, n_out, n_in)
        packed = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self._unpacked(packed.to(like.dtype))

    def predict(self) -> tuple[float, int]:
        """Seconds and elements of the largest intermediate result, by a dry run of one chunk."""
        start = self._start
        batch, count = start.shape[0], min(self.chunk, self.passes)
        cost = CostModel.of(start.tensor.device, start.tensor.dtype)
        self._through(sample_vectors(start.shape, count, cost, shared=True))
        seconds, peak = cost.seconds * -(-self.passes // self.chunk), cost.peak
        cost.reset()
        full = batch * math.prod(self.pattern.shape)
        cost.move(full + 3 * batch * self.pattern.nnz, full)
        return seconds + cost.seconds, peak

    def _through(self, block: Block) -> Block | None:
        return self.segment.pull(block) if self._by_row else self.segment.push(block)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Entries put at their places: ``packed (batch, colours, n_in or n_out)`` → ``(batch, n_out, n_in)``."""
        n_out, n_in = self.pattern.shape
        batch = packed.shape[0]
        out = packed.new_zeros(batch, n_out * n_in)
        out.index_copy_(1, self._in_matrix, packed.reshape(batch, -1).index_select(1, self._in_packed))
        return out.view(batch, n_out, n_in)

    def _indices(self) -> tuple[IntArray, IntArray]:
        """Of every entry: its index in J, flattened, and its index in the packed result, flattened."""
        (n_out, n_in), rows, columns = self.pattern.shape, self.pattern.rows, self.pattern.indices
        if self._by_row:
            return rows * n_in + columns, self.coloring.groups[rows] * n_in + columns
        return rows * n_in + columns, self.coloring.groups[columns] * n_out + rows


def compressed_plan(
    source: Value, target: Value, nodes: Sequence[Node], maps_of: dict[Node, list[Map]]
) -> Compressed | None:
    """The cheapest coloured passes between two values; None where J is too dense or its pattern unknown.

    Args:
        source: dimension 0 is the samples.
        target: likewise.
        nodes: the active nodes between them, in order.
        maps_of: their derivatives.

    Cost: the pattern, its colourings, and up to four dry runs; nothing of the point is used or kept.
    """
    entries = pattern(nodes, maps_of, source, target)
    if entries is None:
        return None
    segment = Segment(nodes, source, target, maps_of)
    sizes: dict[By, int] = {"row": entries.shape[0], "column": entries.shape[1]}
    most = _MOST_PASSES * min(sizes.values())
    plans = []
    for by, size in sizes.items():
        if fewest(entries, by) > most:
            continue
        colours = coloring(entries, by, (target if by == "row" else source).shape[1:])
        if colours.count <= most and colours.count < size:
            plans.append(_chunked(Compressed(segment, entries, colours, max(colours.count, 1))))
    return min(plans, key=lambda plan: plan.seconds) if plans else None


def _chunked(plan: Compressed) -> Compressed:
    """With a chunk whose intermediate results fit the working set, and its predicted cost."""
    plan.seconds, plan.peak = plan.predict()
    most = WORKING_SET // plan.segment.target.tensor.element_size()
    if plan.peak > most and plan.passes > 1:
        plan.chunk = max(1, plan.chunk * most // plan.peak)
        plan.seconds, plan.peak = plan.predict()
    return plan
