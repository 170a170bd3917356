"""J from few passes: rows (or columns) of one colour are pulled back (pushed forward) as one vector.

In the result of a colour's pass every column (row) has entries of one row (column) at most, so that J is read
off by indices that are known from the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jaccli.defaults import WORKING_SET
from jaccli.graph.elimination.sweep import Segment
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout, SeedAxis
from jaccli.graph.rules.registry import Map
from jaccli.graph.sparsity.coloring import By, Coloring, coloring, fewest
from jaccli.graph.sparsity.index_sets import IntArray
from jaccli.graph.sparsity.pattern import DENSEST, Pattern, pattern
from jaccli.graph.trace.ir import Node, Value

# More passes than this share of the rows (or columns) save nothing over all of them.
_MOST_PASSES = 0.5


@dataclass
class Compressed:
    """J of a stretch of a graph by coloured passes.

    Args:
        stretch: the active nodes between two values whose dimension 0 is the samples.
        pattern: of one sample's J.
        coloring: of its rows or columns.
        chunk: colours that go through the network at once.
        seconds: predicted.
        peak: elements of the largest intermediate result.
    """

    stretch: Segment
    pattern: Pattern
    coloring: Coloring
    chunk: int
    seconds: float = 0.0
    peak: int = 0
    _seeds: Tensor = field(init=False)
    _places: Tensor = field(init=False)
    _sources: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Made before any run, so that they are constants where a run is traced.
        like = self._start.tensor
        groups, size = self.coloring.groups, len(self.coloring.groups)
        filled = np.flatnonzero(groups >= 0)
        seeds = np.zeros((self.passes, size), np.float32)
        seeds[groups[filled], filled] = 1
        self._seeds = torch.from_numpy(seeds).to(like)
        self._places, self._sources = (torch.from_numpy(x).to(like.device) for x in self._indices())

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
        return self.stretch.target if self._by_row else self.stretch.source

    def describe(self) -> str:
        """``49 VJPs instead of 1024``."""
        rows, columns = self.pattern.shape
        return f"{self.passes} VJPs instead of {rows}" if self._by_row else f"{self.passes} JVPs instead of {columns}"

    def run(self) -> Tensor:
        """J at the point of the capture, ``(batch, n_out, n_in)``. Operators only: it can be traced.

        Raises:
            ValueError: samples mix.
        """
        start, like = self._start, self.stretch.target.tensor
        batch = start.shape[0]
        n_out, n_in = self.pattern.shape
        parts = []
        for first in range(0, self.passes, self.chunk):
            count = min(self.chunk, self.passes - first)
            bundle = self._through(_bundle(start.shape, count, self._seeds[first : first + count]))
            end = n_in if self._by_row else n_out
            parts.append(like.new_zeros(batch, count, end) if bundle is None else matrix(bundle))
        if not parts:
            return like.new_zeros(batch, n_out, n_in)
        packed = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self._unpacked(packed.to(like.dtype))

    def predict(self) -> tuple[float, int]:
        """Seconds and elements of the largest intermediate result, by a dry run of one chunk."""
        start = self._start
        batch, count = start.shape[0], min(self.chunk, self.passes)
        cost = CostModel.of(start.tensor.device, start.tensor.dtype)
        self._through(_bundle(start.shape, count, cost))
        seconds, peak = cost.seconds * -(-self.passes // self.chunk), cost.peak
        cost.reset()
        full = batch * math.prod(self.pattern.shape)
        cost.move(full + 3 * batch * self.pattern.nnz, full)
        return seconds + cost.seconds, peak

    def _through(self, bundle: Block) -> Block | None:
        return self.stretch.pull(bundle) if self._by_row else self.stretch.push(bundle)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Entries put at their places: ``packed (batch, colours, n_in or n_out)``."""
        n_out, n_in = self.pattern.shape
        batch = packed.shape[0]
        out = packed.new_zeros(batch, n_out * n_in)
        out.index_copy_(1, self._places, packed.reshape(batch, -1).index_select(1, self._sources))
        return out.view(batch, n_out, n_in)

    def _indices(self) -> tuple[IntArray, IntArray]:
        """Of every entry: where it is in J, and where among the results of the passes."""
        (n_out, n_in), rows, columns = self.pattern.shape, self.pattern.rows, self.pattern.indices
        if self._by_row:
            return rows * n_in + columns, self.coloring.groups[rows] * n_in + columns
        return rows * n_in + columns, self.coloring.groups[columns] * n_out + rows


def _bundle(shape: tuple[int, ...], count: int, seeds: Tensor | CostModel) -> Block:
    """Vectors over one activation, the same for every sample: samples linked, then one axis of vectors."""
    key = (0, 1)
    vectors = SeedAxis((len(shape), 1), count)
    inner = tuple((DenseAxis(n),) if n != 1 else () for n in shape[1:])
    if shape[0] == 1:
        form = Layout((vectors,), ((), *inner))
    else:
        form = Layout((SeedAxis(key, shape[0]), vectors), ((BandedAxis(key, shape[0]),), *inner), frozenset({key}))
    return Block(form, seeds if isinstance(seeds, CostModel) else seeds.reshape(form.sizes))


def compressed_plan(
    source: Value,
    target: Value,
    nodes: Sequence[Node],
    maps_of: dict[Node, list[Map]],
    densest: float = DENSEST,
    work: float | None = None,
) -> Compressed | None:
    """The quickest coloured passes between two values; None where J is too dense or its pattern not known.

    Args:
        source: dimension 0 is the samples.
        target: likewise.
        nodes: the active nodes between them, in order.
        maps_of: their derivatives.
        densest: the largest share of entries of a J worth colouring.
        work: what may be spent on the pattern, see ``pattern``.

    Cost: the pattern, its colouring, and two dry runs; nothing of the point is used or kept.
    """
    found = pattern(nodes, maps_of, source, target, densest, work)
    if found is None:
        return None
    stretch = Segment(nodes, source, target, maps_of)
    sizes: dict[By, int] = {"row": found.shape[0], "column": found.shape[1]}
    plans = []
    for by, size in sizes.items():
        if fewest(found, by) > _MOST_PASSES * min(sizes.values()):
            continue
        colours = coloring(found, target.shape[1:], source.shape[1:], by)
        if colours.count <= _MOST_PASSES * min(sizes.values()) and colours.count < size:
            plans.append(_planned(Compressed(stretch, found, colours, max(colours.count, 1))))
    return min(plans, key=lambda plan: plan.seconds) if plans else None


def _planned(plan: Compressed) -> Compressed:
    """With a chunk that fits the working set, and what it costs."""
    plan.seconds, plan.peak = plan.predict()
    most = WORKING_SET // plan.stretch.target.tensor.element_size()
    if plan.peak > most and plan.passes > 1:
        plan.chunk = max(1, plan.chunk * most // plan.peak)
        plan.seconds, plan.peak = plan.predict()
    return plan
