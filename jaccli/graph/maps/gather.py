"""Indices into one dimension, the same everywhere or from place to place, and their transposes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from jaccli.graph.layout.block import Block, densify, merged, spread, without_ones
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import DenseAxis
from jaccli.graph.maps.base import LazyTensor, Shape


@dataclass(frozen=True)
class Pick:
    """``index_select`` in one dimension of size ``full``."""

    dim: int
    full: int
    index: Tensor

    @property
    def T(self) -> Drop:
        return Drop(self.dim, self.full, self.index)

    def apply(self, bundle: Block) -> Block:
        bundle = merged(bundle, self.dim)
        count = self.index.numel()
        form = bundle.form.with_dim(self.dim, (DenseAxis(count),) if count != 1 else ())
        meter.move(2 * form.numel)
        if bundle.data is None:
            return Block(form, None)
        data = bundle.data.index_select(bundle.form.layout.index((self.dim, 0)), self.index)
        return bundle.made(form, data.reshape(form.sizes))


@dataclass(frozen=True)
class Drop:
    """The transpose of ``Pick``: each element is added at its place."""

    dim: int
    full: int
    index: Tensor

    @property
    def T(self) -> Pick:
        return Pick(self.dim, self.full, self.index)

    def apply(self, bundle: Block) -> Block:
        bundle = merged(bundle, self.dim)
        form = bundle.form.with_dim(self.dim, (DenseAxis(self.full),))
        meter.move(2 * form.numel + bundle.form.numel)
        if bundle.data is None:
            return Block(form, None)
        out = bundle.data.new_zeros(form.sizes)
        return bundle.made(form, out.index_add_(form.layout.index((self.dim, 0)), self.index, bundle.data))


@dataclass(frozen=True)
class Gather:
    """``gather`` in one dimension of size ``full``, by indices that differ from place to place."""

    dim: int
    full: int
    index: LazyTensor
    shape: Shape

    @property
    def T(self) -> Scatter:
        return Scatter(self.dim, self.full, self.index, self.shape)

    def apply(self, bundle: Block) -> Block:
        bundle = _in_full(bundle, self.dim)
        count = self.shape[self.dim]
        new = bundle.form.with_dim(self.dim, (DenseAxis(count),))
        new = replace(new, flat=frozenset())
        meter.move(3 * new.numel)
        if bundle.data is None:
            return without_ones(Block(new, None))
        axis = new.layout.index((self.dim, 0))
        index = arranged(*spread(new, self.index.tensor), new.layout).expand(new.sizes)
        sizes = list(new.sizes)
        sizes[axis] = self.full
        return without_ones(bundle.made(new, bundle.data.expand(sizes).gather(axis, index)))


@dataclass(frozen=True)
class Scatter:
    """The transpose of ``Gather``: each element is added where its index says."""

    dim: int
    full: int
    index: LazyTensor
    shape: Shape

    @property
    def T(self) -> Gather:
        return Gather(self.dim, self.full, self.index, self.shape)

    def apply(self, bundle: Block) -> Block:
        bundle = _in_full(bundle, self.dim)
        form = replace(bundle.form.with_dim(self.dim, (DenseAxis(self.full),)), flat=frozenset())
        old = replace(bundle.form, flat=frozenset())
        meter.move(3 * old.numel + form.numel)
        if bundle.data is None:
            return without_ones(Block(form, None))
        index = arranged(*spread(old, self.index.tensor), old.layout).expand(old.sizes)
        out = bundle.data.new_zeros(form.sizes)
        out.scatter_add_(form.layout.index((self.dim, 0)), index, bundle.data.expand(old.sizes))
        return without_ones(bundle.made(form, out))


def _in_full(bundle: Block, dim: int) -> Block:
    """One axis for this dimension, also where it has size 1; no windows anywhere."""
    keys = [
        key
        for key, (_, _, axis_factor) in bundle.form.banded.items()
        if not bundle.form.plain(axis_factor) and axis_factor.width > 1
    ]
    return merged(densify(bundle, keys), dim)
