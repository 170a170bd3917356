"""How a block of vectors lies in memory: which axes it shares with the activation that it belongs to.

A *block* holds one vector for every element of an activation, the *seed*: the target's elements when cotangents
are pulled back, the source's when tangents are pushed forward. Each vector lives on another activation, the
*primal*. So a block is a matrix with a row for every seed element and a column for every primal element, and both
indices have as many axes as their activation. Often this matrix is mostly zero, because row and column share axes:
sample b depends on sample b only, token t on token t, pixel p on the pixels around p. A ``Layout`` says which axes
are shared; a shared axis is stored once.

Three kinds of axes
    * a *seed axis* (``SeedAxis``): an axis of the seed, or a range of it; outside the range the block is zero;
    * a *dense axis* (``DenseAxis``): an axis of the primal that is stored in full;
    * a *banded axis* (``BandedAxis``): an axis of the primal that is tied to a seed axis. Seed element p reaches
      the elements ``offset + stride p``, …, ``offset + stride p + width - 1`` of it: its *window*. With width 1 the
      axis is diagonal and needs no axis of its own in the data.

    A dense or banded axis is an *axis factor*: a dimension of the primal is a product of several of them, slowest
    first, after a reshape has joined or split dimensions. ``primal_axes`` has one tuple of axis factors for each
    dimension; a dimension of size 1 has none.

Data axes, in this order
    1. seed axes that a banded axis is tied to;
    2. the other seed axes;
    3. dense axes, and the windows of banded axes wider than 1, in the order of the primal.

    ``labels`` names them: ``(-1, dimension, stride)`` is a seed axis, ``(dimension, place)`` an axis factor.

Example: a linear layer on each of 2 tokens, 3 features → 4 features
    The seed is y of shape (2, 4), the primal x of shape (2, 3). Token t of y depends on token t of x only::

        Layout(
            seed_axes=(SeedAxis((0, 1), 2), SeedAxis((1, 1), 4)),
            primal_axes=((BandedAxis((0, 1), 2),), (DenseAxis(3),)),
        )

    Data of sizes (2, 4, 3), labels (-1, 0, 1), (-1, 1, 1), (1, 0): a 4 x 3 matrix for each token, 24 elements
    instead of the 48 of the full matrix. It is the layer's weight twice, so with ``broadcast={(0, 1)}`` sizes
    (1, 4, 3) are enough.

Example: a convolution of 8 pixels with 3 taps and padding 1
    The seed is y, the primal x, both of shape (8,). Pixel p of y depends on p - 1, p and p + 1 of x::

        Layout(
            seed_axes=(SeedAxis((0, 1), 8),),
            primal_axes=((BandedAxis((0, 1), 8, offset=-1, width=3, zero_padded=False),),),
        )

    Data of sizes (8, 3), labels (-1, 0, 1), (0, 0): element (p, w) is ∂y[p] / ∂x[p - 1 + w]. Windows 0 and 7 stick
    out of x; ``zero_padded=False`` says that what is stored there has no meaning and must be set to zero before it
    is summed. A convolution of stride 2 would have ``stride=2`` and 4 seed elements.

Invariants
    * a key names one seed axis, and at most one banded axis is tied to it;
    * a layout has no dense axis of size 1 once ``block.without_ones`` has been applied;
    * ``broadcast`` holds keys of banded axes only. Along them the data does not vary and has size 1;
    * sizes of the axis factors of a dimension multiply to its size.

The identity has every axis banded with width 1 and broadcast: a single 1 is stored.
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
    """An axis of the primal that is stored in full."""

    size: int


@dataclass(frozen=True)
class BandedAxis:
    """An axis of the primal tied to a seed axis: seed element p reaches ``offset + stride p`` and ``width - 1`` after.

    Args:
        key: of the seed axis.
        size: of the axis in the activation; windows may stick out of it.
        offset: first element of window 0, negative where it sticks out.
        stride: elements between the windows of neighbouring seed elements.
        width: of each window.
        zero_padded: the data is zero wherever a window sticks out.
    """

    key: Key
    size: int
    offset: int = 0
    stride: int = 1
    width: int = 1
    zero_padded: bool = True

    def shared(self, low: int) -> BandedAxis:
        """The window that ``low`` neighbouring seed elements have together, for each group of ``low``."""
        return replace(self, stride=self.stride * low, width=self.width + self.stride * (low - 1))

    def stop(self, count: int) -> int:
        """One past the last element that the first ``count`` windows reach."""
        return self.offset + self.stride * (count - 1) + self.width

    def inside(self, count: int) -> bool:
        """Whether none of the first ``count`` windows sticks out."""
        return self.offset >= 0 and self.stop(count) <= self.size


AxisFactor = DenseAxis | BandedAxis


@dataclass(frozen=True)
class SeedAxis:
    """An axis of the seed, or a range of it; outside the range the block is zero.

    Args:
        key: the seed's dimension, and the axis's stride in it: 1, or more where a dimension is split in several.
        full: size of the whole axis.
        start: first element of the range.
        size: of the range; all of the axis by default.
    """

    key: Key
    full: int
    start: int = 0
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            # The class is frozen: the default of one field is the value of another.
            object.__setattr__(self, "size", self.full)

    @property
    def whole(self) -> bool:
        """Whether the range is all of the axis."""
        return self.size == self.full

    def divisible(self, low: int) -> bool:
        """Whether the axis and its range consist of whole groups of ``low``."""
        return not any(n % low for n in (self.full, self.start, self.size))

    def covering(self, other: SeedAxis) -> SeedAxis:
        """The axis over the smallest range that contains both."""
        start, stop = min(self.start, other.start), max(self.start + self.size, other.start + other.size)
        return SeedAxis(self.key, self.full, start, stop - start)

    def split(self, low: int) -> tuple[SeedAxis, SeedAxis]:
        """The axis as two, ``high x low``."""
        assert self.divisible(low)
        high = (self.key[0], self.key[1] * low)
        return SeedAxis(high, self.full // low, self.start // low, self.size // low), SeedAxis(self.key, low)


@dataclass(frozen=True)
class Layout:
    """The axes of a block; see the module's docstring.

    Args:
        seed_axes: in the order of the seed's dimensions, slowest first.
        primal_axes: the axis factors of each dimension of the primal, slowest first.
        broadcast: keys of banded axes along which the data does not vary.
    """

    seed_axes: tuple[SeedAxis, ...]
    primal_axes: tuple[tuple[AxisFactor, ...], ...]
    broadcast: frozenset[Key] = frozenset()

    @cached_property
    def banded(self) -> dict[Key, tuple[int, int, BandedAxis]]:
        """Key → dimension and place of the banded axis, and the axis."""
        return {
            axis.key: (d, a, axis)
            for d, axes in enumerate(self.primal_axes)
            for a, axis in enumerate(axes)
            if isinstance(axis, BandedAxis)
        }

    @cached_property
    def seed_axis(self) -> dict[Key, SeedAxis]:
        """Key → seed axis."""
        return {axis.key: axis for axis in self.seed_axes}

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """Names of the data axes: ``(-1, *key)`` of a seed axis, ``(dimension, place)`` of an axis factor."""
        # Tied seed axes come first, since they are the batch of the products that ``contraction`` makes; the others are
        # their rows.
        tied = [(-1, *e.key) for e in self.seed_axes if e.key in self.banded]
        others = [(-1, *e.key) for e in self.seed_axes if e.key not in self.banded]
        columns = [
            (d, a)
            for d, axes in enumerate(self.primal_axes)
            for a, axis in enumerate(axes)
            if isinstance(axis, DenseAxis) or axis.width > 1
        ]
        return (*tied, *others, *columns)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the data axes."""
        return tuple(self._size(label) for label in self.labels)

    def _size(self, label: Label) -> int:
        if label[0] == -1:
            key = (label[1], label[2])
            # Along an axis in ``broadcast`` all seed elements have the same data, which is stored once.
            return 1 if key in self.broadcast else self.seed_axis[key].size
        axis = self.primal_axes[label[0]][label[1]]
        return axis.size if isinstance(axis, DenseAxis) else axis.width

    @property
    def numel(self) -> int:
        """Elements stored."""
        return math.prod(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the primal."""
        return tuple(math.prod(axis.size for axis in axes) for axes in self.primal_axes)

    def with_dim(self, dim: int, axes: tuple[AxisFactor, ...]) -> Layout:
        """Other axis factors in one dimension of the primal."""
        return Layout(self.seed_axes, exchanged(self.primal_axes, dim, axes), self.broadcast)

    def with_band(self, axis: BandedAxis) -> Layout:
        """Another banded axis in place of the one tied to the same seed axis."""
        d, a, _ = self.banded[axis.key]
        return self.with_dim(d, exchanged(self.primal_axes[d], a, axis))

    def banded_keys(self, *dims: int) -> list[Key]:
        """Keys of the banded axes in some dimensions of the primal."""
        return [axis.key for d in dims for axis in self.primal_axes[d] if isinstance(axis, BandedAxis)]

    def window_keys(self) -> list[Key]:
        """Keys of the banded axes whose windows are wider than 1."""
        return [key for key, (_, _, axis) in self.banded.items() if axis.width > 1]

    def plain(self, axis: BandedAxis) -> bool:
        """Whether a banded axis is the diagonal of a whole seed axis of its size."""
        seed = self.seed_axis[axis.key]
        return seed.whole and axis.width == 1 and axis.stride == 1 and axis.offset == 0 and axis.size == seed.size


def exchanged(items: tuple[T, ...], place: int, *new: T) -> tuple[T, ...]:
    """The items with one of them replaced by any number of others."""
    return (*items[:place], *new, *items[place + 1 :])


def identity(shape: tuple[int, ...]) -> Layout:
    """The identity on an activation: every axis is diagonal; axes of size 1 are left out."""
    seed_axes = tuple(SeedAxis((d, 1), n) for d, n in enumerate(shape) if n != 1)
    primal_axes = tuple((BandedAxis((d, 1), n),) if n != 1 else () for d, n in enumerate(shape))
    return Layout(seed_axes, primal_axes, frozenset(e.key for e in seed_axes))
