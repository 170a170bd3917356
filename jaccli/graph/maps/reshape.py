"""Linear maps that give an activation another shape: views, broadcasts and their transposes, sums."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaccli.graph.layout.block import (
    Block,
    OuterFactor,
    cleaned,
    densify,
    materialized,
    split_axis_factor,
    without_ones,
)
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Label, Layout
from jaccli.graph.layout.windows import in_cells
from jaccli.graph.maps.base import Shape


@dataclass(frozen=True)
class Reshape:
    """Another shape, elements in the same order."""

    old: Shape
    new: Shape

    @property
    def T(self) -> Reshape:
        return Reshape(self.new, self.old)

    def apply(self, bundle: Block) -> Block:
        if self.old == self.new:
            return bundle
        if bundle.outer is not None:
            return self._regrouped(bundle, bundle.outer) or self.apply(materialized(bundle))
        bundle = without_ones(bundle)
        dims: list[tuple[AxisFactor, ...]] = []
        position = 0  # of the atom that comes next, in reading order
        for want in self.new:
            have: list[AxisFactor] = []
            got = 1
            while got < want:
                d, a = _place(bundle.form, position)
                axis_factor = bundle.form.dims[d][a]
                need = want // got
                if want % got or (axis_factor.size % need and need % axis_factor.size):
                    return self._merged(bundle)
                if not bundle.form.plain(axis_factor) and axis_factor.size > need:
                    assert isinstance(axis_factor, BandedAxis)
                    bundle = in_cells(bundle, d, a, axis_factor.size // need) or densify(bundle, [axis_factor.key])
                    axis_factor = bundle.form.dims[d][a]
                if axis_factor.size > need:
                    bundle = split_axis_factor(bundle, d, a, axis_factor.size // need)
                    axis_factor = bundle.form.dims[d][a]
                have.append(axis_factor)
                got *= axis_factor.size
                position += 1
            if got != want:
                return self._merged(bundle)
            dims.append(tuple(have))
        form = replace(bundle.form, dims=tuple(dims))
        return bundle.made(form, bundle.data, bundle.fresh)

    def _regrouped(self, bundle: Block, outer: tuple[OuterFactor, OuterFactor]) -> Block | None:
        """The same axes in other dimensions; None where axes have to be split or joined."""
        old = bundle.form
        new = self.apply(Block(old, None)).form
        places = [
            [(d, a) for d, axis_factors in enumerate(form.dims) for a in range(len(axis_factors))]
            for form in (old, new)
        ]
        axis_factors = [[axis_factor for each in form.dims for axis_factor in each] for form in (old, new)]
        if axis_factors[0] != axis_factors[1] or old.seed_axes != new.seed_axes or old.flat != new.flat:
            return None
        names: dict[Label, Label] = dict(zip(*places, strict=True))
        a, b = (factor.relabelled(lambda x: names.get(x, x)) for factor in outer)
        return Block(new, None, outer=(a, b))

    def _merged(self, bundle: Block) -> Block:
        """Where the two shapes cut the elements at different places: those dims in full, as one axis."""
        start_old = start_new = 0
        dims: list[tuple[AxisFactor, ...]] = []
        old, new = list(self.old), list(self.new)
        while start_old < len(old) or start_new < len(new):
            stop_old, stop_new = start_old + 1, start_new + 1
            a = math.prod(old[start_old:stop_old])
            b = math.prod(new[start_new:stop_new])
            while a != b:
                if a < b and stop_old < len(old):
                    a, stop_old = a * old[stop_old], stop_old + 1
                else:
                    b, stop_new = b * new[stop_new], stop_new + 1
            if (old[start_old:stop_old], stop_new - start_new) == ([b], 1):
                dims.append(bundle.form.dims[start_old])
            else:
                keys = [
                    x.key
                    for axis_factors in bundle.form.dims[start_old:stop_old]
                    for x in axis_factors
                    if isinstance(x, BandedAxis)
                ]
                bundle = densify(bundle, keys)
                dims.extend((DenseAxis(n),) if n != 1 else () for n in new[start_new:stop_new])
            start_old, start_new = stop_old, stop_new
        form = replace(bundle.form, dims=tuple(dims))
        return bundle.regarded(form)


def _place(form: Layout, position: int) -> tuple[int, int]:
    for d, axis_factors in enumerate(form.dims):
        if position < len(axis_factors):
            return d, position
        position -= len(axis_factors)
    raise IndexError(position)


@dataclass(frozen=True)
class Permute:
    """Dimensions in another order."""

    order: Shape

    @property
    def T(self) -> Permute:
        return Permute(tuple(self.order.index(d) for d in range(len(self.order))))

    def apply(self, bundle: Block) -> Block:
        form = replace(bundle.form, dims=tuple(bundle.form.dims[d] for d in self.order))
        if bundle.outer is not None:
            place = self.T.order
            a, b = (f.relabelled(lambda x: x if x[0] == -1 else (place[x[0]], x[1])) for f in bundle.outer)
            return Block(form, None, outer=(a, b))
        if bundle.data is None:
            return Block(form, None)
        moved: list[Label] = [x if x[0] == -1 else (self.order[x[0]], x[1]) for x in form.layout]
        order = [bundle.form.layout.index(x) for x in moved]
        data = bundle.data if order == sorted(order) else bundle.data.permute(order)
        return bundle.made(form, data, bundle.fresh)


@dataclass(frozen=True)
class Expand:
    """Dimensions of size 1 repeated: ``old`` to ``new``, of as many dimensions."""

    old: Shape
    new: Shape

    @property
    def T(self) -> SumTo:
        return SumTo(self.new, self.old)

    def apply(self, bundle: Block) -> Block:
        if self.old == self.new:
            return bundle
        grown = [d for d, (m, n) in enumerate(zip(self.old, self.new, strict=True)) if m != n]
        form = replace(
            bundle.form,
            dims=tuple((DenseAxis(self.new[d]),) if d in grown else x for d, x in enumerate(bundle.form.dims)),
        )
        if bundle.data is None:
            return Block(form, None)
        return bundle.made(form, arranged(bundle.data, bundle.form.layout, form.layout).expand(form.sizes), False)


@dataclass(frozen=True)
class SumTo:
    """Sums over the dimensions that become 1: the transpose of ``Expand``."""

    old: Shape
    new: Shape

    @property
    def T(self) -> Expand:
        return Expand(self.new, self.old)

    def apply(self, bundle: Block) -> Block:
        if self.old == self.new:
            return bundle
        bundle = cleaned(bundle)
        gone = [d for d, (m, n) in enumerate(zip(self.old, self.new, strict=True)) if m != n]
        old = bundle.form
        keys = frozenset(x.key for d in gone for x in old.dims[d] if isinstance(x, BandedAxis))
        form = Layout(old.seed_axes, tuple(() if d in gone else x for d, x in enumerate(old.dims)), old.flat - keys)
        meter.move(old.numel + form.numel)
        data = bundle.data
        if data is None:
            return Block(form, None)
        axes = [axis for axis, label in enumerate(old.layout) if label[0] in gone]
        labels = [label for label in old.layout if label[0] not in gone]
        if axes:
            data = data.sum(axes)
        data = arranged(data, labels, form.layout)
        return bundle.made(form, data.expand(form.sizes), bool(axes) and tuple(data.shape) == form.sizes)
