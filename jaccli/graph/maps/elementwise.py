"""Elementwise linear maps: factors, numbers, and changes of dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, OuterProduct, materialized
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import Layout
from jaccli.graph.layout.spread import laid_out
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class Mul(Primitive):
    """Elementwise multiplication by a factor that broadcasts to the activation.

    Args:
        factor: of the activation's shape, with 1 where it does not vary.
        shape: of the factor.
    """

    factor: LazyTensor
    shape: Shape

    @property
    def T(self) -> Mul:
        return self

    def layout(self, old: Layout) -> Layout:
        """Along banded axes where the factor varies the data does too; ``spread`` pads the factor with zeros there."""
        full = [x for d, _, x in old.banded.values() if self.shape[d] != 1 or old.shape[d] == 1]
        new = old
        for axis in full:
            if not axis.zero_padded:
                new = new.with_band(replace(axis, zero_padded=True))
        broadcast = old.broadcast - {axis.key for axis in full}
        return new if broadcast == old.broadcast else replace(new, broadcast=broadcast)

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        cost.move(old.numel + new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        old, data = block.layout, block.tensor
        factor = self.factor.tensor.to(data.dtype)
        windows = bool(old.window_keys())
        if factor.dim() == 4 and windows:
            factor = factor.contiguous(memory_format=torch.channels_last)  # as windows lie in memory
        factor = _ordered_like(laid_out(old, factor), data)
        # In place only where the factor does not make the data larger.
        if block.owned and old.broadcast == new.broadcast:
            return Block.of(new, data.mul_(factor))
        # The identity, of which one number is stored: the product is the factor, however large.
        if math.prod(old.sizes) == 1:
            return Block.of(new, (data * factor).expand(new.sizes))
        if 2 * data.numel() <= new.numel and (not data.is_contiguous() or windows):
            seed_axes = sum(label[0] == -1 for label in old.labels)
            order = sorted(_memory_order(factor), key=lambda d: d >= seed_axes)
            data = _in_order(data, order)  # the product lies in memory as its first factor does
        return Block.of(new, data * factor)


@dataclass(frozen=True)
class Scale(Primitive):
    """Multiplication by a number."""

    factor: float

    @property
    def T(self) -> Scale:
        return self

    def apply(self, block: Block) -> Block:
        if self.factor == 1:
            return block
        moved = 2 * block.layout.numel
        return block.step(block.layout, lambda data: data * self.factor, moved, owned=block.owned)


@dataclass(frozen=True)
class Cast(Primitive):
    """Numbers in another dtype, where a model changes it: the vectors are those of the new activation."""

    old: torch.dtype
    new: torch.dtype

    @property
    def T(self) -> Cast:
        return Cast(self.new, self.old)

    def apply(self, block: Block) -> Block:
        if isinstance(block.data, Tensor) and block.data.dtype == self.new:
            return block
        moved = 2 * block.layout.numel
        return block.step(block.layout, lambda data: data.to(self.new), moved, owned=block.owned)


def multiplied(block: Block, factors: Sequence[Mul | Scale]) -> Block:
    """The block times all factors, which are multiplied with each other first: they are the smaller."""
    number = math.prod(f.factor for f in factors if isinstance(f, Scale))
    tensors = [f for f in factors if isinstance(f, Mul)]
    if isinstance(block.data, OuterProduct) and (tensors or number != 1):
        if not tensors:
            return replace(block, data=_smaller_scaled(block.data, number))
        block = materialized(block)
    if not tensors:
        return Scale(number).apply(block)
    # One factor is used as it is: its tensor is computed once for all blocks. A product is computed for this block.
    if len(tensors) == 1 and number == 1:
        factor = tensors[0]
    else:
        shape = tuple(max(sizes) for sizes in zip(*(f.shape for f in tensors), strict=True))
        factor = Mul(LazyTensor(lambda: _product(tensors, number)), shape)
    result = factor.apply(block)
    assert result is not None
    return result


def _product(tensors: Sequence[Mul], number: float) -> Tensor:
    """All factors and a number multiplied, of the shape that the factors broadcast to, ``(*shape,)``."""
    result = tensors[0].factor.tensor
    if number != 1:
        result = result * number
    for f in tensors[1:]:
        result = result * f.factor.tensor
    return result


def _smaller_scaled(outer: OuterProduct, number: float) -> OuterProduct:
    """A product that is put off times a number: its smaller factor is multiplied."""
    small, large = sorted((outer.a, outer.b), key=lambda f: f.numel)
    if isinstance(small.data, CostModel):
        small.data.move(2 * small.numel)
        return OuterProduct(large, small)
    return OuterProduct(large, replace(small, data=small.data * number))


def _ordered_like(factor: Shaped[Tensor, "*shape"], data: Shaped[Tensor, "*sizes"]) -> Shaped[Tensor, "*shape"]:
    """A small factor with its axes in memory in the order of the data's: else every access of it strides."""
    if factor.numel() * 2 > data.numel() or factor.dim() < 3 or data.is_contiguous():
        return factor
    return _in_order(factor, _memory_order(data))


def _in_order(tensor: Shaped[Tensor, "*shape"], order: list[int]) -> Shaped[Tensor, "*shape"]:
    """The same tensor with its axes in memory in another order, slowest first."""
    back = [order.index(d) for d in range(len(order))]
    return tensor.permute(order).contiguous().permute(back)


def _memory_order(data: Shaped[Tensor, "*shape"]) -> list[int]:
    """Axes from the slowest to the fastest; a repeated one, which has no place in memory, after the one before it."""
    strides = data.stride()
    order = sorted((d for d in range(data.dim()) if strides[d]), key=lambda d: -strides[d])
    for d in (d for d in range(data.dim()) if not strides[d]):
        order.insert(order.index(d - 1) + 1 if d else 0, d)
    return order
