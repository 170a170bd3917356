"""Linear maps that give an activation another shape: views, broadcasts and their transposes, sums."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaccli.graph.layout.block import (
    Block,
    OuterProduct,
    densify,
    materialized,
    split_axis_factor,
    without_ones,
    zero_padded,
)
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Label, Layout
from jaccli.graph.layout.windows import in_cells
from jaccli.graph.maps.base import Primitive, Shape


@dataclass(frozen=True)
class _ShapeChange(Primitive):
    """From shape ``old`` to shape ``new``."""

    old: Shape
    new: Shape

    def apply(self, block: Block) -> Block | None:
        return block if self.old == self.new else super().apply(block)


class Reshape(_ShapeChange):
    """Another shape, elements in the same order.

    Axis factors are split until each new dimension is a product of whole ones; then they only change dimensions.
    Where the shapes cut the elements at places that do not divide each other, the dimensions between two common cuts
    are stored in full.
    """

    @property
    def T(self) -> Reshape:
        return Reshape(self.new, self.old)

    def apply(self, block: Block) -> Block:
        if isinstance(block.data, OuterProduct):
            return self._relabelled(block.layout, block.data) or self.apply(materialized(block))
        block = without_ones(block)
        primal_axes: list[tuple[AxisFactor, ...]] = []
        position = 0  # of the next axis factor, in reading order
        for size in self.new:
            block, axes = _split_off(block, position, size)
            if axes is None:
                return self._merged(block)
            primal_axes.append(axes)
            position += len(axes)
        return block.relabelled(replace(block.layout, primal_axes=tuple(primal_axes)))

    def _relabelled(self, old: Layout, outer: OuterProduct) -> Block | None:
        """The same axes in other dimensions; None where axes have to be split or joined."""
        # The layout after the reshape, by an abstract block: no product is multiplied out to find it.
        cost = outer.a.data if isinstance(outer.a.data, CostModel) else CostModel.unread()
        new = self.apply(Block(old, cost)).layout
        axes = [[axis for axes in layout.primal_axes for axis in axes] for layout in (old, new)]
        if axes[0] != axes[1] or old.seed_axes != new.seed_axes or old.broadcast != new.broadcast:
            return None
        names: dict[Label, Label] = dict(zip(_places(old), _places(new), strict=True))
        a, b = (factor.relabelled(lambda x: names.get(x, x)) for factor in (outer.a, outer.b))
        return Block(new, OuterProduct(a, b))

    def _merged(self, block: Block) -> Block:
        """Dimensions between common cuts in full, as one axis, which is then cut anew."""
        primal_axes: list[tuple[AxisFactor, ...]] = []
        for dims, new in _common_cuts(self.old, self.new):
            if len(dims) == 1 and new == (self.old[dims[0]],):
                primal_axes.append(block.layout.primal_axes[dims[0]])
            else:
                block = densify(block, block.layout.banded_keys(*dims))
                primal_axes.extend((DenseAxis(n),) if n != 1 else () for n in new)
        return block.reinterpreted(replace(block.layout, primal_axes=tuple(primal_axes)))


def _split_off(block: Block, position: int, size: int) -> tuple[Block, tuple[AxisFactor, ...] | None]:
    """The axis factors from a position on that multiply to ``size``; the last is split where it is larger.

    Returns:
        The block, with that axis split; the axis factors, or None where no number of them multiplies to the size.
    """
    axes: tuple[AxisFactor, ...] = ()
    product = 1
    while product < size:
        d, a = _places(block.layout)[position + len(axes)]
        axis, missing = block.layout.primal_axes[d][a], size // product
        # The next axis factor neither divides what is missing nor is a multiple of it.
        if size % product or (axis.size % missing and missing % axis.size):
            return block, None
        if axis.size > missing:
            if isinstance(axis, BandedAxis) and not block.layout.plain(axis):
                block = in_cells(block, d, a, axis.size // missing) or densify(block, [axis.key])
            # ``in_cells`` has split the axis already; after ``densify`` it is one axis still.
            if block.layout.primal_axes[d][a].size > missing:
                block = split_axis_factor(block, d, a, axis.size // missing)
            axis = block.layout.primal_axes[d][a]
        axes = (*axes, axis)
        product *= axis.size
    return block, axes if product == size else None


def _places(layout: Layout) -> list[tuple[int, int]]:
    """Dimension, and place in it, of every axis factor in reading order."""
    return [(d, a) for d, axes in enumerate(layout.primal_axes) for a in range(len(axes))]


def _common_cuts(old: Shape, new: Shape) -> list[tuple[range, Shape]]:
    """The smallest runs of dimensions with equal products: the old dimensions, and the new sizes."""
    runs = []
    start_old = start_new = 0
    while start_old < len(old) or start_new < len(new):
        stop_old, stop_new = start_old + 1, start_new + 1
        a, b = math.prod(old[start_old:stop_old]), math.prod(new[start_new:stop_new])
        # Both runs grow, the smaller product first, until their products agree.
        while a != b:
            if a < b and stop_old < len(old):
                a, stop_old = a * old[stop_old], stop_old + 1
            else:
                b, stop_new = b * new[stop_new], stop_new + 1
        runs.append((range(start_old, min(stop_old, len(old))), new[start_new:stop_new]))
        start_old, start_new = stop_old, stop_new
    return runs


@dataclass(frozen=True)
class Permute(Primitive):
    """Dimensions in another order: dimension d of the result is dimension ``order[d]``."""

    order: Shape

    @property
    def T(self) -> Permute:
        return Permute(tuple(self.order.index(d) for d in range(len(self.order))))

    def apply(self, block: Block) -> Block | None:
        if not isinstance(block.data, OuterProduct):
            return super().apply(block)
        place = self.T.order
        a, b = (f.relabelled(lambda x: x if x[0] == -1 else (place[x[0]], x[1])) for f in (block.data.a, block.data.b))
        return Block(self.layout(block.layout), OuterProduct(a, b))

    def layout(self, old: Layout) -> Layout:
        return replace(old, primal_axes=tuple(old.primal_axes[d] for d in self.order))

    def compute(self, block: Block, new: Layout) -> Block:
        # Labels of the result by their names in the block: its dimension d is dimension ``order[d]`` there.
        sources: list[Label] = [x if x[0] == -1 else (self.order[x[0]], x[1]) for x in new.labels]
        order = [block.layout.labels.index(x) for x in sources]
        data = block.tensor if order == sorted(order) else block.tensor.permute(order)
        return Block.of(new, data, block.owned)


class Expand(_ShapeChange):
    """Dimensions of size 1 repeated; the shapes have as many dimensions."""

    @property
    def T(self) -> SumTo:
        return SumTo(self.new, self.old)

    def layout(self, old: Layout) -> Layout:
        sizes = zip(self.old, self.new, old.primal_axes, strict=True)
        return replace(old, primal_axes=tuple(axes if m == n else (DenseAxis(n),) for m, n, axes in sizes))

    def compute(self, block: Block, new: Layout) -> Block:
        data = arranged(block.tensor, block.layout.labels, new.labels)
        return Block.of(new, data.expand(new.sizes), owned=False)


class SumTo(_ShapeChange):
    """Sums over the dimensions that become 1: the transpose of ``Expand``."""

    @property
    def T(self) -> Expand:
        return Expand(self.new, self.old)

    @property
    def _summed(self) -> list[int]:
        return [d for d, (m, n) in enumerate(zip(self.old, self.new, strict=True)) if m != n]

    def prepared(self, block: Block) -> Block:
        return zero_padded(block)

    def layout(self, old: Layout) -> Layout:
        summed = self._summed
        primal_axes = tuple(() if d in summed else axes for d, axes in enumerate(old.primal_axes))
        return Layout(old.seed_axes, primal_axes, old.broadcast - set(old.banded_keys(*summed)))

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        cost.move(old.numel + new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        data, summed = block.tensor, self._summed
        axes = [axis for axis, label in enumerate(block.layout.labels) if label[0] in summed]
        labels = [label for label in block.layout.labels if label[0] not in summed]
        if axes:
            data = data.sum(axes)
        data = arranged(data, labels, new.labels)
        return Block.of(new, data.expand(new.sizes), bool(axes) and tuple(data.shape) == new.sizes)
