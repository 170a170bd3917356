"""Accumulation sweeps: blocks of cotangents pulled back, and of tangents pushed forward, through a segment.

A block holds vectors over one activation, one for each seed (see ``layout``). A sweep keeps, for every value that it
has reached, the contributions of the paths that led there:

    pull   target → source   rows of value v    = Σ over maps v → w:  (rows of w) · map        ∂target/∂v
    push   source → target   columns of value w = Σ over maps v → w:  map · (columns of v)     ∂w/∂source
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from jaccli.graph.elimination.cuts import MIXING
from jaccli.graph.layout.algebra import total
from jaccli.graph.layout.block import Block, materialized, without_ones
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

    def pull(self, rows: Block) -> Block | None:
        """Rows over the target → rows over the source; None where they are zero. ``rows``: ∂y/∂target of some y."""
        waiting: dict[Value, list[_Contribution]] = {self.target: [_Contribution(rows)]}
        for node in reversed(self.nodes):
            sums = {out: _sum(waiting.pop(out)) for out in node.outputs if out in waiting}
            for out, block in sums.items():
                # A block that several maps read must not be overwritten by the first (an owned buffer is reused).
                maps_to_out = [m for m in self.maps_of[node] if m.target is out]
                if block is not None and len(maps_to_out) > 1:
                    block = block.read_only()
                for m in maps_to_out:
                    image = _through(block, [step.T for step in reversed(m.steps)])
                    if image is not None:
                        waiting.setdefault(m.source, []).append(image)
        return _total(waiting.get(self.source, []))

    def push(self, columns: Block) -> Block | None:
        """Columns over the source → columns over the target; None where they are zero.

        ``columns``: ∂source/∂x of some x.
        """
        waiting: dict[Value, list[_Contribution]] = {self.source: [_Contribution(columns)]}
        sums: dict[Value, _Contribution | None] = {}
        # Forward, a value is complete when its first reader comes: nodes are in topological order.
        uses = Counter(m.source for node in self.nodes for m in self.maps_of[node])
        uses_left = uses.copy()
        for m in (m for node in self.nodes for m in self.maps_of[node]):
            if m.source not in sums:
                block = _sum(waiting.pop(m.source)) if m.source in waiting else None
                sums[m.source] = block if block is None or uses[m.source] == 1 else block.read_only()
            image = _through(sums[m.source], m.steps)
            uses_left[m.source] -= 1
            if not uses_left[m.source]:
                del sums[m.source]
            if image is not None:
                waiting.setdefault(m.target, []).append(image)
        return _total(waiting.get(self.target, []))


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


def _total(contributions: list[_Contribution]) -> Block | None:
    contribution = _sum(contributions)
    return None if contribution is None else contribution.scaled()


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
        # Scalings do not commute with what mixes or moves elements: they are applied before it, all at once.
        block, factors = multiplied(block, factors), ()
        # These three take a lazy outer product as it is; for all others it is computed.
        if not isinstance(step, Matrix | Permute | Reshape):
            block = materialized(block)
        # A banded axis stays narrow when it is embedded: there is no zero to be saved.
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
    # Alone, it keeps its scalings: more may follow, and all of them are multiplied first, at the activation's size.
    if len(contributions) == 1 and contributions[0].embed is None:
        return contributions[0]
    embedded: dict[object, list[tuple[Block, Embed]]] = {}
    blocks = []
    for contribution in contributions:
        if contribution.embed is None:
            blocks.append(contribution.scaled())
            continue
        layout, dim = contribution.block.layout, contribution.embed.dim
        # Only blocks that agree in all but the embedded dimension can be put side by side.
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
    # First fit: parts of a split never overlap and make one layer; windows that overlap make a few.
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
