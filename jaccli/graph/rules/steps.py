"""What rules build maps from: primitives by shapes, left out where they would change nothing, and arguments as numbers.

``start``, ``count`` and ``step`` say which positions of a dimension of size ``full`` are meant: ``start + step i`` for
``i < count``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.graph.layout.layout import exchanged
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.gather import Pick
from jaccli.graph.maps.reshape import Expand, Reshape
from jaccli.graph.maps.slice import Embed, Slice
from jaccli.graph.trace.ir import Value

if TYPE_CHECKING:
    from jaxtyping import Int

Steps = tuple[Primitive, ...]


def from_front(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim % max(ndim, 1)


def per_dimension(argument: Any, n: int, default: Sequence[int] = ()) -> tuple[int, ...]:
    """An argument with one number for each of ``n`` directions, or one for all; the default where it is empty."""
    numbers = tuple(argument or default)
    return numbers * n if len(numbers) == 1 else numbers


def number_or_one(argument: Any) -> float:
    """A factor among the arguments; 1 where it is left out."""
    return 1.0 if argument is None else float(argument)


def on_one_dim(ndim: int, dim: int, size: int) -> Shape:
    """``(1, …, size, …, 1)``."""
    return tuple(size if d == dim else 1 for d in range(ndim))


def sliced(dim: int, full: int, start: int, count: int, step: int = 1) -> Steps:
    """A slice; nothing where it is all of the dimension."""
    return () if count == full and step == 1 else (Slice(dim, full, start, count, step),)


def embedded(dim: int, full: int, start: int, count: int, step: int = 1) -> Steps:
    """A range put at its place among zeros; nothing where it is all of the dimension."""
    return () if count == full else (Embed(dim, full, start, count, step),)


def reshaped(old: Shape, new: Shape) -> Steps:
    """A reshape; nothing where the shapes are equal."""
    return () if old == new else (Reshape(old, new),)


def expanded(old: Shape, new: Shape) -> Steps:
    """Copies along dimensions of size 1; nothing where the shapes are equal."""
    return () if old == new else (Expand(old, new),)


def broadcast(old: Shape, new: Shape) -> Steps:
    """From a shape to one that it broadcasts to, perhaps with more dimensions in front."""
    padded = (1,) * (len(new) - len(old)) + old
    return (*reshaped(old, padded), *expanded(padded, new))


def scaled(factor: float) -> Steps:
    """A multiplication by a number; nothing where it is 1."""
    return () if factor == 1 else (Scale(factor),)


def picked(shape: Shape, dim: int, index: Int[Tensor, "n"]) -> Steps:
    """The positions ``index`` of one dimension, ``shape`` → the same with n there."""
    # A layout has no dense axis of size 1 that an index could be applied to; all positions are 0 here.
    if shape[dim] == 1:
        return expanded(shape, exchanged(shape, dim, index.numel()))
    return (Pick(dim, shape[dim], index),)


def zeroed(out: Value, dim: int, shape: Shape, index: Int[Tensor, "n"]) -> Primitive:
    """The identity but for the positions ``index`` of one dimension of ``shape``, which become zero."""
    mask_shape = on_one_dim(len(shape), dim, shape[dim])

    def mask() -> Tensor:
        keep = torch.ones(shape[dim], dtype=out.tensor.dtype, device=out.tensor.device)
        return keep.index_fill(0, index, 0).reshape(mask_shape)

    return Mul(LazyTensor(mask), mask_shape)
