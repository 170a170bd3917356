"""How a bundle of vectors lies in memory: which axes it shares with the activation it lives on.

A bundle holds, for every element of one activation (its *ends*: the target when cotangents are pulled
back, the source when tangents are pushed on), a vector over another activation (its *dims*). Often the
two share axes: sample b of the one depends on sample b of the other only, token t on token t, and pixel
p on the pixels around p. Such axes are *linked* and stored once, so that J of a per-token layer is a
block a token, and that of a convolution a window a pixel. The identity has every axis linked, and
nothing stored at all.

Data axes, in this order: linked ends, other ends, then what is not linked of the dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

Key = tuple[int, int]
Label = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class DenseAxis:
    """An axis of the dims that is stored in full."""

    size: int


@dataclass(frozen=True)
class BandedAxis:
    """An axis of the dims that is tied to an end: end p reaches ``offset + stride p`` and ``width - 1`` after it.

    Args:
        key: the end.
        size: of the axis in the activation; windows may stick out of it.
        clean: what sticks out is known to be zero.
    """

    key: Key
    size: int
    offset: int = 0
    stride: int = 1
    width: int = 1
    clean: bool = True

    def shared(self, low: int) -> BandedAxis:
        """The window that ``low`` neighbouring ends have together; the next such group starts as far on."""
        return replace(self, stride=self.stride * low, width=self.width + self.stride * (low - 1))


AxisFactor = DenseAxis | BandedAxis


@dataclass(frozen=True)
class SeedAxis:
    """An axis of the ends, or a range of it; elsewhere the bundle is zero.

    Args:
        key: its dimension in the activation, and its stride there where a dimension was split.
        full: size of the whole axis.
    """

    key: Key
    full: int
    start: int = 0
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            object.__setattr__(self, "size", self.full)

    @property
    def whole(self) -> bool:
        """Not a part."""
        return self.size == self.full

    def divisible(self, low: int) -> bool:
        """Whether it, and its range, are made of whole groups of ``low``."""
        return not any(n % low for n in (self.full, self.start, self.size))

    def split(self, low: int) -> tuple[SeedAxis, SeedAxis]:
        """As ``high x low``."""
        assert self.divisible(low)
        high = (self.key[0], self.key[1] * low)
        return SeedAxis(high, self.full // low, self.start // low, self.size // low), SeedAxis(self.key, low)


@dataclass(frozen=True)
class Layout:
    """Ends, dims, and the linked ends along which the data does not vary (stored with size 1)."""

    seed_axes: tuple[SeedAxis, ...]
    dims: tuple[tuple[AxisFactor, ...], ...]
    flat: frozenset[Key] = frozenset()

    @cached_property
    def banded(self) -> dict[Key, tuple[int, int, BandedAxis]]:
        """Key → where its link is among the dims, and the link."""
        return {
            axis_factor.key: (d, a, axis_factor)
            for d, axis_factors in enumerate(self.dims)
            for a, axis_factor in enumerate(axis_factors)
            if isinstance(axis_factor, BandedAxis)
        }

    @cached_property
    def end(self) -> dict[Key, SeedAxis]:
        """Ends by key."""
        return {end.key: end for end in self.seed_axes}

    @cached_property
    def layout(self) -> tuple[Label, ...]:
        """Labels of the data axes: an end's key with -1 in front, or the place of an atom."""
        linked = [(-1, *e.key) for e in self.seed_axes if e.key in self.banded]
        others = [(-1, *e.key) for e in self.seed_axes if e.key not in self.banded]
        columns = [
            (d, a)
            for d, axis_factors in enumerate(self.dims)
            for a, axis_factor in enumerate(axis_factors)
            if isinstance(axis_factor, DenseAxis) or axis_factor.width > 1
        ]
        return (*linked, *others, *columns)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the data axes."""
        return tuple(self._size(label) for label in self.layout)

    def _size(self, label: Label) -> int:
        if label[0] == -1:
            key = (label[1], label[2])
            return 1 if key in self.flat else self.end[key].size
        axis_factor = self.dims[label[0]][label[1]]
        return axis_factor.size if isinstance(axis_factor, DenseAxis) else axis_factor.width

    @property
    def numel(self) -> int:
        """Elements stored."""
        return math.prod(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The activation that the vectors live on."""
        return tuple(math.prod(axis_factor.size for axis_factor in axis_factors) for axis_factors in self.dims)

    def with_dim(self, dim: int, axis_factors: tuple[AxisFactor, ...]) -> Layout:
        """With other atoms in one dimension."""
        return replace(self, dims=exchanged(self.dims, dim, axis_factors))

    def plain(self, axis_factor: AxisFactor) -> bool:
        """Whether an atom is free, or linked one to one with a whole end."""
        if isinstance(axis_factor, DenseAxis):
            return True
        end = self.end[axis_factor.key]
        return (
            end.whole
            and axis_factor.width == 1
            and axis_factor.stride == 1
            and axis_factor.offset == 0
            and axis_factor.size == end.size
        )


def exchanged(items: tuple[T, ...], place: int, *new: T) -> tuple[T, ...]:
    """With others in one place."""
    return (*items[:place], *new, *items[place + 1 :])


def identity(shape: tuple[int, ...]) -> Layout:
    """Every axis linked with itself; axes of size 1 are left out."""
    seed_axes = tuple(SeedAxis((d, 1), n) for d, n in enumerate(shape) if n != 1)
    dims = tuple((BandedAxis((d, 1), n),) if n != 1 else () for d, n in enumerate(shape))
    return Layout(seed_axes, dims, frozenset(e.key for e in seed_axes))
