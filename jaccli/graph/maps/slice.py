"""Slices of one dimension, and their transposes: pieces put at their places."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, cleaned, densify, merged, widened
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Layout


@dataclass(frozen=True)
class Slice:
    """``start, start + step, …``: ``count`` elements of one dimension of size ``full``."""

    dim: int
    full: int
    start: int
    count: int
    step: int = 1

    @property
    def T(self) -> Embed:
        return Embed(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, bundle: Block) -> Block | None:
        if self.count == self.full:
            return bundle
        axis_factors = bundle.form.dims[self.dim]
        if len(axis_factors) == 1 and isinstance(axis_factors[0], BandedAxis):
            axis_factor = axis_factors[0]
            if axis_factor.width == 1 and axis_factor.stride == 1 and self.step == 1:
                return self._narrowed(bundle, axis_factor)
            if self.step == 1 and self.count > 1:  # windows reach out of what is left
                moved = replace(axis_factor, offset=axis_factor.offset - self.start, size=self.count, clean=False)
                return bundle.made(bundle.form.with_dim(self.dim, (moved,)), bundle.data, bundle.fresh)
            bundle = densify(bundle, [axis_factor.key])
        bundle = merged(bundle, self.dim)
        return self._picked(bundle)

    def _narrowed(self, bundle: Block, axis_factor: BandedAxis) -> Block | None:
        end = bundle.form.end[axis_factor.key]
        low = max(0, self.start - axis_factor.offset)
        high = min(end.size, self.start + self.count - axis_factor.offset)
        if high <= low:
            return None
        seed_axes = tuple(
            replace(e, start=e.start + low, size=high - low) if e is end else e for e in bundle.form.seed_axes
        )
        kept: tuple[AxisFactor, ...] = (
            replace(axis_factor, offset=axis_factor.offset + low - self.start, size=self.count),
        )
        flat = bundle.form.flat
        if self.count == 1:
            kept, flat = (), flat - {axis_factor.key}
        old = bundle.form
        form = Layout(seed_axes, (*old.dims[: self.dim], kept, *old.dims[self.dim + 1 :]), flat)
        data = bundle.data
        if data is None:
            return Block(form, None)
        if axis_factor.key not in old.flat:
            data = data.narrow(old.layout.index((-1, *axis_factor.key)), low, high - low)
        return bundle.made(form, arranged(data, old.layout, form.layout), bundle.fresh)

    def _picked(self, bundle: Block) -> Block:
        form = bundle.form.with_dim(self.dim, (DenseAxis(self.count),) if self.count > 1 else ())
        if bundle.data is None:
            return Block(form, None)
        axis = bundle.form.layout.index((self.dim, 0))
        stop = self.start + self.step * (self.count - 1) + 1
        if self.count == 1:
            return bundle.made(form, bundle.data.select(axis, self.start), bundle.fresh)
        cut = (slice(None),) * axis + (slice(self.start, stop, self.step),)
        return bundle.made(form, bundle.data[cut], bundle.fresh)


@dataclass(frozen=True)
class Embed:
    """The transpose of ``Slice``: the elements at their places, zeros elsewhere."""

    dim: int
    full: int
    start: int
    count: int
    step: int = 1

    @property
    def T(self) -> Slice:
        return Slice(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, bundle: Block) -> Block:
        if self.count == self.full:
            return bundle
        axis_factors = bundle.form.dims[self.dim]
        if (
            len(axis_factors) == 1
            and isinstance(axis_factors[0], BandedAxis)
            and (axis_factors[0].width == 1 or self.step == 1)
        ):
            bundle = cleaned(bundle)
            (axis_factor,) = bundle.form.dims[self.dim]
            assert isinstance(axis_factor, BandedAxis)
            moved = replace(
                axis_factor,
                size=self.full,
                offset=self.start + self.step * axis_factor.offset,
                stride=self.step * axis_factor.stride,
                clean=True,
            )
            return bundle.made(bundle.form.with_dim(self.dim, (moved,)), bundle.data, bundle.fresh)
        return assembled([(bundle, self)])


def assembled(pieces: list[tuple[Block, Embed]]) -> Block:
    """The sum of embedded bundles of one form that do not overlap: one tensor, each written once."""
    first, embed = pieces[0]
    free = [(merged(b, e.dim), e) for b, e in pieces]
    seed_axes = tuple(
        replace(
            e,
            start=(low := min(b.form.seed_axes[i].start for b, _ in free)),
            size=max(b.form.seed_axes[i].start + b.form.seed_axes[i].size for b, _ in free) - low,
        )
        for i, e in enumerate(free[0][0].form.seed_axes)
    )
    free = [(widened(b, seed_axes), e) for b, e in free]
    flat = frozenset.intersection(*(b.form.flat for b, _ in free))
    form = replace(free[0][0].form.with_dim(embed.dim, (DenseAxis(embed.full),)), flat=flat)
    meter.move(2 * form.numel, fresh=form.numel)
    if any(b.data is None for b, _ in free):
        return Block(form, None)
    axis = form.layout.index((embed.dim, 0))
    covered = sum(e.count for _, e in free)
    data = free[0][0].data
    assert data is not None
    if covered == embed.full and all(e.step == 1 for _, e in free):
        order = sorted(free, key=lambda piece: piece[1].start)
        parts = [_expanded(b, form, axis) for b, _ in order]
        return first.made(form, torch.cat(parts, axis))
    out = data.new_zeros(form.sizes) if covered < embed.full else data.new_empty(form.sizes)
    for bundle, e in free:
        stop = e.start + e.step * (e.count - 1) + 1
        assert bundle.data is not None
        out[(slice(None),) * axis + (slice(e.start, stop, e.step),)] = bundle.data
    return first.made(form, out)


def _expanded(bundle: Block, form: Layout, axis: int) -> Tensor:
    assert bundle.data is not None
    sizes = list(form.sizes)
    sizes[axis] = bundle.data.shape[axis]
    return bundle.data.expand(sizes)
