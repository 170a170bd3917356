"""Slices of one dimension, and their transposes: parts put at their places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, merged, widened, zero_padded
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout, SeedAxis
from jaccli.graph.maps.base import Primitive


@dataclass(frozen=True)
class _Places(Primitive):
    """``start, start + step, …``: ``count`` elements of dimension ``dim`` of size ``full``."""

    dim: int
    full: int
    start: int
    count: int
    step: int = 1

    @property
    def index(self) -> slice:
        """The elements."""
        return slice(self.start, self.start + self.step * (self.count - 1) + 1, self.step)


class Slice(_Places):
    """``y[i] = x[start + step i]`` along one dimension.

    A dimension that is banded as a whole stays so: of a diagonal the seed axis is narrowed, since all other seed
    elements give zero; of windows those elements that are cut off stick out.
    """

    @property
    def T(self) -> Embed:
        return Embed(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, block: Block) -> Block | None:
        if self.count == self.full:
            return block
        axis = _band(block.layout, self.dim)
        if axis is not None and self.step == 1:
            if axis.width == axis.stride == 1:
                return self._of_diagonal(block, axis)
            if self.count > 1:
                moved = replace(axis, offset=axis.offset - self.start, size=self.count, zero_padded=False)
                return block.relabelled(block.layout.with_dim(self.dim, (moved,)))
        block = merged(block, self.dim)
        layout = block.layout.with_dim(self.dim, (DenseAxis(self.count),) if self.count > 1 else ())
        place = block.layout.labels.index((self.dim, 0))
        index = self.start if self.count == 1 else self.index
        return block.view(layout, lambda data: data[(slice(None),) * place + (index,)])

    def _of_diagonal(self, block: Block, axis: BandedAxis) -> Block | None:
        old = block.layout
        seed = old.seed_axis[axis.key]
        # Seed elements ``low`` to ``high`` reach the slice; vectors of all others become zero.
        low = max(0, self.start - axis.offset)
        high = min(seed.size, self.start + self.count - axis.offset)
        if high <= low:
            return None
        narrow = replace(seed, start=seed.start + low, size=high - low)
        layout = replace(old, seed_axes=tuple(narrow if e is seed else e for e in old.seed_axes))
        if self.count == 1:
            # One seed element is left: its axis of the primal has size 1, and goes.
            layout = replace(layout.with_dim(self.dim, ()), broadcast=old.broadcast - {axis.key})
        else:
            moved = replace(axis, offset=axis.offset + low - self.start, size=self.count)
            layout = layout.with_dim(self.dim, (moved,))

        def compute(data: Tensor) -> Tensor:
            if axis.key not in old.broadcast:
                data = data.narrow(old.labels.index((-1, *axis.key)), low, high - low)
            return arranged(data, old.labels, layout.labels)

        return block.view(layout, compute)


class Embed(_Places):
    """The transpose of ``Slice``: the elements at their places, zeros elsewhere."""

    @property
    def T(self) -> Slice:
        return Slice(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, block: Block) -> Block:
        if self.count == self.full:
            return block
        axis = _band(block.layout, self.dim)
        # Windows wider than 1 would have to spread their elements by the step, which a banded axis does not store.
        if axis is None or (axis.width > 1 and self.step > 1):
            return assembled([(block, self)])
        block = zero_padded(block)
        moved = replace(
            axis,
            size=self.full,
            offset=self.start + self.step * axis.offset,
            stride=self.step * axis.stride,
            zero_padded=True,
        )
        return block.relabelled(block.layout.with_dim(self.dim, (moved,)))


def _band(layout: Layout, dim: int) -> BandedAxis | None:
    """The banded axis that is all of a dimension; None where it is not stored so."""
    axes = layout.primal_axes[dim]
    return axes[0] if len(axes) == 1 and isinstance(axes[0], BandedAxis) else None


def assembled(pieces: list[tuple[Block, Embed]]) -> Block:
    """The sum of embedded blocks of one layout that do not overlap: one tensor, each written once.

    Args:
        pieces: blocks over the slices, and where these belong; all in one dimension, with one step.
    """
    embed = pieces[0][1]
    blocks = [merged(block, e.dim) for block, e in pieces]
    seed_axes = tuple(
        reduce(SeedAxis.covering, axes) for axes in zip(*(b.layout.seed_axes for b in blocks), strict=True)
    )
    blocks = [widened(b, seed_axes) for b in blocks]
    broadcast = frozenset.intersection(*(b.layout.broadcast for b in blocks))
    layout = replace(blocks[0].layout.with_dim(embed.dim, (DenseAxis(embed.full),)), broadcast=broadcast)
    if isinstance(blocks[0].data, CostModel):
        blocks[0].data.move(2 * layout.numel, layout.numel)
        return Block(layout, blocks[0].data)
    return Block.of(layout, _put_together([(b.tensor, e) for b, (_, e) in zip(blocks, pieces, strict=True)], layout))


def _put_together(pieces: list[tuple[Tensor, Embed]], layout: Layout) -> Tensor:
    """Data ``(*layout.sizes,)`` with each piece at its place, and zeros elsewhere."""
    data, embed = pieces[0]
    axis = layout.labels.index((embed.dim, 0))
    # They do not overlap, so that their sizes add up.
    covered = sum(e.count for _, e in pieces)
    if covered == embed.full and all(e.step == 1 for _, e in pieces):
        pieces = sorted(pieces, key=lambda piece: piece[1].start)
        return torch.cat([_expanded(part, layout, axis) for part, _ in pieces], axis)
    out = data.new_zeros(layout.sizes) if covered < embed.full else data.new_empty(layout.sizes)
    for part, e in pieces:
        out[(slice(None),) * axis + (e.index,)] = part
    return out


def _expanded(data: Tensor, layout: Layout, axis: int) -> Tensor:
    """Data repeated to ``(*layout.sizes,)`` along the axes on which it does not vary, but for ``axis``."""
    sizes = list(layout.sizes)
    sizes[axis] = data.shape[axis]
    return data.expand(sizes)
