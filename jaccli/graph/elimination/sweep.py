"""Accumulation sweeps: blocks of cotangents pulled back, and of tangents pushed forward, through a segment.

A block holds vectors over one activation, one for each seed (see ``layout``). A sweep keeps, for every value that it
has reached, the contributions of the paths that led there:

    pull   target → source   rows of value v    = Σ over maps v → w:  (rows of w) · map        ∂target/∂v
    push   source → target   columns of value w = Σ over maps v → w:  map · (columns of v)     ∂w/∂source
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from jaccli.graph.elimination.cuts import MIXING, last_uses, mixes
from jaccli.graph.layout.algebra import product, total, transposed
from jaccli.graph.layout.block import Block, identity_block, materialized, without_ones
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout, SeedAxis
from jaccli.graph.maps.base import Primitive
from jaccli.graph.maps.elementwise import Mul, Scale, multiplied
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.maps.reshape import Permute, Reshape
from jaccli.graph.maps.slice import Embed, assembled
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value

_NAMES = {
    "matrix": ("matrix", "matrices"),
    "conv": ("convolution", "convolutions"),
    "projection": ("normalisation or softmax", "normalisations or softmaxes"),
    "gather": ("pooling", "poolings"),
    "pick": ("index", "indices"),
}


class Segment:
    """The active nodes between two cuts, with their derivatives."""

    def __init__(self, nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> None:
        self.nodes, self.source, self.target, self.maps_of = list(nodes), source, target, maps_of

    def contents(self) -> str:
        """The primitives that mix elements, by name and number: ``2 matrices, 1 index``."""
        steps = (step for node in self.nodes for m in self.maps_of[node] for step in m.steps)
        counts = Counter(type(step).__name__.lower() for step in steps if isinstance(step, MIXING))
        texts = (f"{n} {_NAMES.get(name, (name, name))[n > 1]}" for name, n in counts.items())
        return ", ".join(texts) or "diagonals and views"

    def pull(self, rows: Block, vertex: int | None = None) -> Block | None:
        """Rows over the target → rows over the source; None where they are zero.

        Args:
            rows: ∂y/∂target of some y.
            vertex: position of a node. Rows are pulled back only to the values that are alive before it, and
                multiplied with the columns pushed forward to them: for many rows and few columns, as in attention.
        """
        if vertex is None:
            return self._pulled(rows, 0).get(self.source)
        columns = self._pushed(identity_block(self.source.shape, _like(rows, self.source)), vertex)
        return _multiplied_at(self._pulled(rows, vertex), columns, self.source.shape)

    def push(self, columns: Block, seed_shape: tuple[int, ...] = (), vertex: int | None = None) -> Block | None:
        """Columns over the source → columns over the target; None where they are zero.

        Args:
            columns: ∂source/∂x of some x.
            seed_shape: of x, the activation that the columns belong to; needed with ``vertex``.
            vertex: as for ``pull``.
        """
        if vertex is None:
            return self._pushed(columns, len(self.nodes)).get(self.target)
        rows = self._pulled(identity_block(self.target.shape, _like(columns, self.target)), vertex)
        jacobian = _multiplied_at(rows, self._pushed(columns, vertex), seed_shape)
        return None if jacobian is None else transposed(jacobian, self.target.shape)

    def vertices(self, most: int) -> list[int]:
        """Positions before which several values are alive, after a node that mixes elements: the narrowest ones."""
        last = last_uses(self.nodes, self.maps_of, self.target)
        widths: dict[int, int] = {}
        alive = {self.source}
        for position, node in enumerate(self.nodes[:-1]):
            alive |= {v for v in node.outputs if v in last}
            alive = {v for v in alive if last.get(v, -1) > position}
            if len(alive) > 1 and mixes([node], self.maps_of):
                widths[position + 1] = sum(math.prod(v.shape) for v in alive if v is not self.source)
        return sorted(sorted(widths, key=lambda p: widths[p])[:most])

    def _pulled(self, rows: Block, stop: int) -> dict[Value, Block]:
        """Rows over every value that is alive before node ``stop``."""
        waiting: dict[Value, list[_Contribution]] = {self.target: [_Contribution(rows)]}
        for node in reversed(self.nodes[stop:]):
            sums = {out: _sum(waiting.pop(out)) for out in node.outputs if out in waiting}
            for out, block in sums.items():
                maps_to_out = [m for m in self.maps_of[node] if m.target is out]
                if block is not None and len(maps_to_out) > 1:
                    block = block.read_only()
                for m in maps_to_out:
                    image = _through(block, [step.T for step in reversed(m.steps)])
                    if image is not None:
                        waiting.setdefault(m.source, []).append(image)
        return _summed(waiting)

    def _pushed(self, columns: Block, stop: int) -> dict[Value, Block]:
        """Columns over every value that is alive before node ``stop``."""
        waiting: dict[Value, list[_Contribution]] = {self.source: [_Contribution(columns)]}
        sums: dict[Value, _Contribution | None] = {}
        uses = Counter(m.source for node in self.nodes for m in self.maps_of[node])
        uses_left = uses.copy()
        for m in (m for node in self.nodes[:stop] for m in self.maps_of[node]):
            if m.source not in sums:
                block = _sum(waiting.pop(m.source)) if m.source in waiting else None
                sums[m.source] = block if block is None or uses[m.source] == 1 else block.read_only()
            image = _through(sums[m.source], m.steps)
            uses_left[m.source] -= 1
            if not uses_left[m.source]:
                del sums[m.source]
            if image is not None:
                waiting.setdefault(m.target, []).append(image)
        return {**{v: block.scaled() for v, block in sums.items() if block is not None}, **_summed(waiting)}


def sample_vectors(shape: tuple[int, ...], count: int, data: Tensor | CostModel, shared: bool = False) -> Block:
    """``count`` vectors of each sample over an activation.

    Args:
        shape: of the activation, ``(batch, …)``.
        count: of vectors; seeds are an activation ``(batch, count)``.
        data: ``(batch, count, size)``, or, where ``shared``, ``(count, size)``; or the cost model of a dry run.
        shared: every sample has the same vectors.
    """
    batch = shape[0]
    axes = tuple(SeedAxis((d, 1), n) for d, n in enumerate((batch, count)) if n != 1)
    samples = (BandedAxis((0, 1), batch),) if batch != 1 else ()
    constant = frozenset({(0, 1)}) if shared and batch != 1 else frozenset()
    layout = Layout(axes, (samples, *((DenseAxis(n),) if n != 1 else () for n in shape[1:])), constant)
    return Block(layout, data if isinstance(data, CostModel) else data.reshape(layout.sizes))


def _multiplied_at(rows: dict[Value, Block], columns: dict[Value, Block], shape: tuple[int, ...]) -> Block | None:
    """Σ rows of v · columns of v over the values v that both have reached; ``shape`` is that of the columns' seeds."""
    terms = [product(rows[v], columns[v], shape) for v in rows if v in columns]
    return reduce(total, terms) if terms else None


def _summed(waiting: dict[Value, list[_Contribution]]) -> dict[Value, Block]:
    sums = {value: _sum(contributions) for value, contributions in waiting.items()}
    return {value: block.scaled() for value, block in sums.items() if block is not None}


def _like(block: Block, value: Value) -> Tensor | CostModel:
    """The tensor whose dtype and device an identity takes; in a dry run the cost model."""
    return block.data if isinstance(block.data, CostModel) else value.tensor


@dataclass(frozen=True)
class _Contribution:
    """One contribution to a value, with what is still to be applied to it.

    Args:
        block: the vectors.
        factors: scalings not applied yet: several are multiplied first, at the size of the activation.
        embed: not applied yet, so that parts side by side become one tensor without zeros in between.
    """

    block: Block
    factors: tuple[Mul | Scale, ...] = ()
    embed: Embed | None = None

    def scaled(self) -> Block:
        """The vectors with the scalings applied."""
        return multiplied(materialized(self.block), self.factors)

    def read_only(self) -> _Contribution:
        """The same vectors, not to be written into, for several readers."""
        block = self.scaled()
        return _Contribution(Block(block.layout, block.data, False))


def _through(contribution: _Contribution | None, steps: Sequence[Primitive]) -> _Contribution | None:
    """A contribution behind a map; None where it is zero. A last ``Embed`` and last scalings are left to be applied."""
    if contribution is None:
        return None
    block, factors = contribution.block, contribution.factors
    for position, step in enumerate(steps):
        if isinstance(step, Mul | Scale):
            factors = (*factors, step)
            continue
        block, factors = multiplied(block, factors), ()
        if not isinstance(step, Matrix | Permute | Reshape):
            block = materialized(block)
        if position == len(steps) - 1 and isinstance(step, Embed) and not _is_banded(block, step.dim):
            return _Contribution(block, (), step)
        image = step.apply(block)
        if image is None:
            return None
        block = without_ones(image)
    return _Contribution(block, factors)


def _is_banded(block: Block, dim: int) -> bool:
    return any(isinstance(axis_factor, BandedAxis) for axis_factor in block.layout.primal_axes[dim])


def _sum(contributions: list[_Contribution]) -> _Contribution | None:
    """Their sum. Embedded ones in one dimension that do not overlap are put side by side instead of added."""
    if len(contributions) == 1 and contributions[0].embed is None:
        return contributions[0]
    embedded: dict[object, list[tuple[Block, Embed]]] = {}
    blocks = []
    for contribution in contributions:
        if contribution.embed is None:
            blocks.append(contribution.scaled())
            continue
        layout, dim = contribution.block.layout, contribution.embed.dim
        rest = (*layout.primal_axes[:dim], *layout.primal_axes[dim + 1 :])
        key = (dim, tuple(e.key for e in layout.seed_axes), rest, contribution.embed.step)
        embedded.setdefault(key, []).append((contribution.block, contribution.embed))
    for group in embedded.values():
        blocks.extend(assembled(layer) for layer in _without_overlap(group))
    # Blocks of the same seeds first: added to a wider range, a block is padded with zeros, and so is every later sum.
    alike: dict[object, list[Block]] = {}
    for block in blocks:
        alike.setdefault(block.layout.seed_axes, []).append(block)
    return _Contribution(reduce(total, [reduce(total, group) for group in alike.values()])) if blocks else None


def _without_overlap(group: list[tuple[Block, Embed]]) -> list[list[tuple[Block, Embed]]]:
    """Split into lists whose members do not overlap."""
    layers: list[tuple[set[int], list[tuple[Block, Embed]]]] = []
    for block, e in group:
        places = set(range(e.start, e.start + e.step * e.count, e.step))
        for used, layer in layers:
            if not used & places:
                layer.append((block, e))
                used |= places
                break
        else:
            layers.append((places, [(block, e)]))
    return [layer for _, layer in layers]
