"""Indices into one dimension, the same everywhere or from place to place, and their transposes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from jaccli.graph.layout.block import Block, densify, merged
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import DenseAxis, Layout
from jaccli.graph.layout.spread import laid_out
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class _Indexed(Primitive):
    """Elements of one dimension by an index.

    Args:
        dim: the dimension.
        full: its size in x.
        index: int64, each from 0 to ``full - 1``.
    """

    dim: int
    full: int
    index: Int[Tensor, "n"]

    def prepared(self, block: Block) -> Block:
        return merged(block, self.dim)


class Pick(_Indexed):
    """``index_select``: ``y[i] = x[index[i]]``."""

    @property
    def T(self) -> Drop:
        return Drop(self.dim, self.full, self.index)

    def layout(self, old: Layout) -> Layout:
        count = self.index.numel()
        return old.with_dim(self.dim, (DenseAxis(count),) if count != 1 else ())

    def charge(self, cost: CostModel, _old: Layout, new: Layout) -> None:
        cost.move(2 * new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        data = block.tensor.index_select(block.layout.labels.index((self.dim, 0)), self.index)
        return Block.of(new, data.reshape(new.sizes))


class Drop(_Indexed):
    """The transpose of ``Pick``: ``x[index[i]] += y[i]``."""

    @property
    def T(self) -> Pick:
        return Pick(self.dim, self.full, self.index)

    def layout(self, old: Layout) -> Layout:
        return old.with_dim(self.dim, (DenseAxis(self.full),))

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        cost.move(2 * new.numel + old.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        out = block.tensor.new_zeros(new.sizes)
        # A sum: positions may repeat, and each adds to the same element.
        return Block.of(new, out.index_add_(new.labels.index((self.dim, 0)), self.index, block.tensor))


@dataclass(frozen=True)
class _IndexedEverywhere(Primitive):
    """Elements of one dimension by indices that differ from place to place.

    Args:
        dim: the dimension.
        full: its size in x.
        index: of y's shape, int64; other dimensions may have size 1.
        shape: of y.
    """

    dim: int
    full: int
    index: LazyTensor
    shape: Shape

    def prepared(self, block: Block) -> Block:
        """One dense axis for this dimension, also where it has size 1; no windows anywhere."""
        return merged(densify(block, block.layout.window_keys()), self.dim)


class Gather(_IndexedEverywhere):
    """``gather``: ``y[…, i, …] = x[…, index[…, i, …], …]``."""

    @property
    def T(self) -> Scatter:
        return Scatter(self.dim, self.full, self.index, self.shape)

    def layout(self, old: Layout) -> Layout:
        return replace(old.with_dim(self.dim, (DenseAxis(self.shape[self.dim]),)), broadcast=frozenset())

    def charge(self, cost: CostModel, _old: Layout, new: Layout) -> None:
        cost.move(3 * new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        axis = new.labels.index((self.dim, 0))
        index = laid_out(new, self.index.tensor).expand(new.sizes)
        sizes = list(new.sizes)
        sizes[axis] = self.full
        return Block.of(new, block.tensor.expand(sizes).gather(axis, index))


class Scatter(_IndexedEverywhere):
    """The transpose of ``Gather``: each element is added where its index says."""

    @property
    def T(self) -> Gather:
        return Gather(self.dim, self.full, self.index, self.shape)

    def layout(self, old: Layout) -> Layout:
        return replace(old.with_dim(self.dim, (DenseAxis(self.full),)), broadcast=frozenset())

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        cost.move(3 * replace(old, broadcast=frozenset()).numel + new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        old = replace(block.layout, broadcast=frozenset())
        index = laid_out(old, self.index.tensor).expand(old.sizes)
        out = block.tensor.new_zeros(new.sizes)
        out.scatter_add_(new.labels.index((self.dim, 0)), index, block.tensor.expand(old.sizes))
        return Block.of(new, out)
