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
class Free:
    """An axis of the dims that is stored in full."""

    size: int


@dataclass(frozen=True)
class Link:
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

    def shared(self, low: int) -> Link:
        """The window that ``low`` neighbouring ends have together; the next such group starts as far on."""
        return replace(self, stride=self.stride * low, width=self.width + self.stride * (low - 1))


Atom = Free | Link


@dataclass(frozen=True)
class End:
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

    def split(self, low: int) -> tuple[End, End]:
        """As ``high x low``."""
        assert self.divisible(low)
        high = (self.key[0], self.key[1] * low)
        return End(high, self.full // low, self.start // low, self.size // low), End(self.key, low)


@dataclass(frozen=True)
class Form:
    """Ends, dims, and the linked ends along which the data does not vary (stored with size 1)."""

    ends: tuple[End, ...]
    dims: tuple[tuple[Atom, ...], ...]
    flat: frozenset[Key] = frozenset()

    @cached_property
    def links(self) -> dict[Key, tuple[int, int, Link]]:
        """Key → where its link is among the dims, and the link."""
        return {
            atom.key: (d, a, atom)
            for d, atoms in enumerate(self.dims)
            for a, atom in enumerate(atoms)
            if isinstance(atom, Link)
        }

    @cached_property
    def end(self) -> dict[Key, End]:
        """Ends by key."""
        return {end.key: end for end in self.ends}

    @cached_property
    def layout(self) -> tuple[Label, ...]:
        """Labels of the data axes: an end's key with -1 in front, or the place of an atom."""
        linked = [(-1, *e.key) for e in self.ends if e.key in self.links]
        others = [(-1, *e.key) for e in self.ends if e.key not in self.links]
        columns = [
            (d, a)
            for d, atoms in enumerate(self.dims)
            for a, atom in enumerate(atoms)
            if isinstance(atom, Free) or atom.width > 1
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
        atom = self.dims[label[0]][label[1]]
        return atom.size if isinstance(atom, Free) else atom.width

    @property
    def numel(self) -> int:
        """Elements stored."""
        return math.prod(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The activation that the vectors live on."""
        return tuple(math.prod(atom.size for atom in atoms) for atoms in self.dims)

    def with_dim(self, dim: int, atoms: tuple[Atom, ...]) -> Form:
        """With other atoms in one dimension."""
        return replace(self, dims=exchanged(self.dims, dim, atoms))

    def plain(self, atom: Atom) -> bool:
        """Whether an atom is free, or linked one to one with a whole end."""
        if isinstance(atom, Free):
            return True
        end = self.end[atom.key]
        return end.whole and atom.width == 1 and atom.stride == 1 and atom.offset == 0 and atom.size == end.size


def exchanged(items: tuple[T, ...], place: int, *new: T) -> tuple[T, ...]:
    """With others in one place."""
    return (*items[:place], *new, *items[place + 1 :])


def identity(shape: tuple[int, ...]) -> Form:
    """Every axis linked with itself; axes of size 1 are left out."""
    ends = tuple(End((d, 1), n) for d, n in enumerate(shape) if n != 1)
    dims = tuple((Link((d, 1), n),) if n != 1 else () for d, n in enumerate(shape))
    return Form(ends, dims, frozenset(e.key for e in ends))
