"""Elementwise linear maps: factors, numbers, and changes of dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, OuterFactor, materialized, spread
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import BandedAxis
from jaccli.graph.maps.base import LazyTensor, Shape


@dataclass(frozen=True)
class Mul:
    """Elementwise scaling by a factor that broadcasts to the activation; ``shape`` is the factor's."""

    factor: LazyTensor
    shape: Shape

    @property
    def T(self) -> Mul:
        return self

    def apply(self, bundle: Block) -> Block:
        form = bundle.form
        full = {key for key, (d, _, _) in form.banded.items() if self.shape[d] != 1 or form.shape[d] == 1}
        dims = tuple(
            tuple(replace(x, clean=True) if isinstance(x, BandedAxis) and x.key in full else x for x in axis_factors)
            for axis_factors in form.dims
        )
        new = replace(form, dims=dims, flat=form.flat - full)
        meter.move(form.numel + new.numel)
        if bundle.data is None:
            return Block(new, None)
        factor = self.factor.tensor.to(bundle.data.dtype)
        windows = any(x.width > 1 for _, _, x in form.banded.values())
        if factor.dim() == 4 and windows:
            factor = factor.contiguous(memory_format=torch.channels_last)  # as windows lie
        factor, labels = spread(form, factor)
        factor = _laid_out_as(arranged(factor, labels, form.layout), bundle.data)
        if bundle.fresh and form.flat == new.flat:
            return bundle.made(new, bundle.data.mul_(factor))
        if math.prod(form.sizes) == 1:
            return bundle.made(new, (bundle.data * factor).expand(new.sizes))
        data = bundle.data
        if 2 * data.numel() <= new.numel and (not data.is_contiguous() or windows):
            seed_axes = sum(label[0] == -1 for label in form.layout)
            order = sorted(_memory_order(factor), key=lambda d: d >= seed_axes)
            data = _in_order(data, order)  # the product lies in memory as its first factor does
        return bundle.made(new, data * factor)


@dataclass(frozen=True)
class Scale:
    """Multiplication by a number."""

    factor: float

    @property
    def T(self) -> Scale:
        return self

    def apply(self, bundle: Block) -> Block:
        if self.factor == 1:
            return bundle
        meter.move(2 * bundle.form.numel)
        if bundle.data is None:
            return bundle
        return bundle.made(bundle.form, bundle.data * self.factor)


@dataclass(frozen=True)
class Cast:
    """Numbers in another dtype, where a model changes it: the vectors are those of the new activation."""

    old: torch.dtype
    new: torch.dtype

    @property
    def T(self) -> Cast:
        return Cast(self.new, self.old)

    def apply(self, bundle: Block) -> Block:
        meter.move(2 * bundle.form.numel)
        data = bundle.data
        if data is None or data.dtype == self.new:
            return bundle
        return bundle.made(bundle.form, data.to(self.new))


def multiplied(bundle: Block, factors: Sequence[Mul | Scale]) -> Block:
    """Scaled by all factors, which are multiplied with each other first: they are the smaller."""
    number = math.prod(f.factor for f in factors if isinstance(f, Scale))
    tensors = [f for f in factors if isinstance(f, Mul)]
    if bundle.outer is not None and (tensors or number != 1):
        bundle = materialized(bundle) if tensors else _smaller_scaled(bundle, bundle.outer, number)
        number = number if tensors else 1.0
    if not tensors:
        return Scale(number).apply(bundle)
    if len(tensors) == 1 and number == 1:
        return tensors[0].apply(bundle)
    shape = tuple(max(sizes) for sizes in zip(*(f.shape for f in tensors), strict=True))

    def make() -> Tensor:
        whole = tensors[0].factor.tensor if number == 1 else tensors[0].factor.tensor * number
        for f in tensors[1:]:
            whole = whole * f.factor.tensor
        return whole

    return Mul(LazyTensor(make), shape).apply(bundle)


def _smaller_scaled(bundle: Block, outer: tuple[OuterFactor, OuterFactor], number: float) -> Block:
    """Of two factors that are not multiplied yet the smaller one times a number."""
    small, large = sorted(outer, key=lambda f: f.numel)
    meter.move(2 * small.numel)
    scaled = replace(small, tensor=None if small.tensor is None else small.tensor * number)
    return replace(bundle, outer=(large, scaled))


def _laid_out_as(factor: Tensor, data: Tensor) -> Tensor:
    """A small factor with its axes in memory in the order of the data's: else every access of it strides."""
    if factor.numel() * 2 > data.numel() or factor.dim() < 3 or data.is_contiguous():
        return factor
    return _in_order(factor, _memory_order(data))


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """The same in memory with its axes in another order."""
    back = [order.index(d) for d in range(len(order))]
    return tensor.permute(order).contiguous().permute(back)


def _memory_order(data: Tensor) -> list[int]:
    """Axes from the slowest to the fastest; a repeated one, which has no place in memory, after the one before it."""
    strides = data.stride()
    order = sorted((d for d in range(data.dim()) if strides[d]), key=lambda d: -strides[d])
    for d in (d for d in range(data.dim()) if not strides[d]):
        order.insert(order.index(d - 1) + 1 if d else 0, d)
    return order
