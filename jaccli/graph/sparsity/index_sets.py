"""Sets of elements of the source, each kept once and called by a number, and unions of many of them.

What an element of an activation can depend on is such a set. Neighbours, channels and heads share most of
theirs, so that an activation is an array of numbers, and few sets stand behind them.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NOTHING = 0
EVERYTHING = 1
_SINGLES = 2
# Bytes of the table in which elements are marked: it should stay in the cache.
_MARKS = 2**22


class TooMuchWork(Exception):
    """The sets take longer to find than they can save."""


class IndexSets:
    """A pool of sets of ``0 … size - 1``: number 0 is empty, 1 is all, ``i + 2`` is {i}.

    Args:
        size: elements of the source.
        densest: sets with a larger share of the elements than this count as all of them.
        work: numbers that may be looked at in all before ``TooMuchWork`` is raised, some 15 ns each.
    """

    def __init__(self, size: int, densest: float = 1.0, work: float = float("inf")) -> None:
        self.size, self.most, self.work = size, int(densest * size), work
        self.start: IntArray = np.concatenate([np.zeros(_SINGLES, np.int64), np.arange(size)])
        self.count: IntArray = np.concatenate([[0, size], np.ones(size, np.int64)]).astype(np.int64)
        self._elements: IntArray = np.arange(2 * size)
        self._used = size
        self._names = np.zeros(0, np.uint64)  # of the sets made here, ascending, and their numbers
        self._numbers = np.zeros(0, np.int64)

    def singles(self, shape: tuple[int, ...]) -> IntArray:
        """Every element of the source with itself."""
        return np.arange(_SINGLES, _SINGLES + self.size).reshape(shape)

    def spend(self, work: float) -> None:
        """Count work.

        Raises:
            TooMuchWork: more than was allowed.
        """
        self.work -= work
        if self.work < 0:
            raise TooMuchWork

    def unite(self, members: IntArray, starts: IntArray) -> IntArray:
        """The union of each segment of ``members``; none of them is empty.

        Args:
            members: numbers of sets.
            starts: where the segments begin.
        """
        if not len(starts):
            return np.zeros(0, np.int64)
        self.spend(len(members))
        found: IntArray = np.maximum.reduceat(members, starts)
        low = np.minimum.reduceat(np.where(members == NOTHING, len(self.start), members), starts)
        found[low == EVERYTHING] = EVERYTHING
        several = (low < found) & (low != EVERYTHING)
        if several.any():
            lengths = np.diff(starts, append=len(members))
            owner = np.repeat(np.arange(np.count_nonzero(several)), lengths[several])
            found[several] = self._unions(owner, members[np.repeat(several, lengths)])
        return found

    def pairs(self, a: IntArray, b: IntArray) -> IntArray:
        """The union element by element."""
        self.spend(a.size / 8)
        found = np.maximum(a, b)
        differ = (a != b) & (a != NOTHING) & (b != NOTHING)
        if differ.any():
            codes = a[differ] * len(self.start) + b[differ]
            first, back = distinct(codes)
            members = np.stack(np.divmod(codes[first], len(self.start)), 1).reshape(-1)
            found[differ] = self.unite(members, np.arange(0, len(members), 2))[back]
        return found

    def _unions(self, owner: IntArray, members: IntArray) -> IntArray:
        """Of sets with owners ``0, 0, 1, …``: equal collections are united once."""
        keys = np.sort(owner[members != NOTHING] * len(self.start) + members[members != NOTHING])
        keys = keys[_starts(keys)]
        self.spend(len(keys))
        owner, members = np.divmod(keys, len(self.start))
        starts = _starts(owner)
        first, back = distinct(np.add.reduceat(_mixed(members), starts))
        lengths = np.diff(starts, append=len(owner))[first]
        chosen = members[_ranges(starts[first], lengths)]
        return self._made(np.repeat(np.arange(len(first)), lengths), chosen, len(first))[back]

    def _made(self, owner: IntArray, members: IntArray, groups: int) -> IntArray:
        """Numbers of the unions, block by block, so that the marks stay in the cache."""
        block = max(1, _MARKS // self.size)
        numbers = np.empty(groups, np.int64)
        edges = np.searchsorted(owner, np.arange(0, groups + block, block))
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            first, count = i * block, min(block, groups - i * block)
            sizes = self.count[members[low:high]]
            self.spend(float(sizes.sum()) + count * self.size / 32)
            marks = np.zeros(count * self.size, np.bool_)
            places = self._elements[_ranges(self.start[members[low:high]], sizes)]
            marks[np.repeat(owner[low:high] - first, sizes) * self.size + places] = True
            numbers[first : first + count] = self._named(*np.divmod(np.flatnonzero(marks), self.size))
        return numbers

    def _named(self, owner: IntArray, elements: IntArray) -> IntArray:
        """Numbers of sets with owners ``0, 0, 1, …``, new ones added to the pool."""
        starts = _starts(owner)
        counts = np.diff(starts, append=len(owner))
        numbers = np.full(len(starts), EVERYTHING)
        small = np.flatnonzero((counts <= self.most) & (counts < self.size))
        if len(small):
            names = np.add.reduceat(_mixed(elements), starts)[small]
            first, back = distinct(names)
            names = names[first]
            place = np.searchsorted(self._names, names)
            fresh = np.append(self._names, names[:1])[place] != names
            fresh[place == len(self._names)] = True
            named = np.append(self._numbers, 0)[place]
            named[fresh] = len(self.start) + np.arange(np.count_nonzero(fresh))
            numbers[small] = named[back]
            self._names = np.insert(self._names, place[fresh], names[fresh])
            self._numbers = np.insert(self._numbers, place[fresh], named[fresh])
            chosen = small[first[fresh]]
            self._add(elements[_ranges(starts[chosen], counts[chosen])], counts[chosen])
        return numbers

    def _add(self, elements: IntArray, counts: IntArray) -> None:
        first, self._used = self._used, self._used + len(elements)
        if self._used > len(self._elements):
            self._elements = np.concatenate([self._elements[:first], np.empty(2 * self._used - first, np.int64)])
        self._elements[first : self._used] = elements
        self.start = np.concatenate([self.start, first + np.cumsum(counts) - counts])
        self.count = np.concatenate([self.count, counts])

    def rows(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """``indptr`` and sorted ``indices`` of these sets, as of a matrix in compressed rows."""
        counts = self.count[numbers]
        start = np.where(numbers == EVERYTHING, self._used, self.start[numbers])
        elements = np.concatenate([self._elements[: self._used], np.arange(self.size)])
        return np.concatenate([[0], np.cumsum(counts)]), elements[_ranges(start, counts)]


def _starts(owner: IntArray) -> IntArray:
    """Where the runs of a sorted array begin."""
    return np.flatnonzero(np.diff(owner, prepend=-1))


def _ranges(start: IntArray, count: IntArray) -> IntArray:
    """``start[0], start[0] + 1, …`` (``count[0]`` of them), ``start[1], …``."""
    seed_axes = np.cumsum(count)
    return np.arange(int(seed_axes[-1]) if len(seed_axes) else 0) + np.repeat(start - seed_axes + count, count)


def _mixed(numbers: IntArray) -> npt.NDArray[np.uint64]:
    """Numbers scattered over 64 bits, so that the sum of a set's names it (splitmix64, G. Steele et al. 2014)."""
    x: Any = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def kinds(rows: BoolArray) -> tuple[IntArray, IntArray]:
    """Rows that occur, by the place of the first of each, and for every row which of them it is."""
    weights = _mixed(np.arange(rows.shape[1]))
    names = np.where(rows, weights, np.uint64(0)).sum(1, dtype=np.uint64)
    return distinct(names)


def distinct(values: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Where each value stands first, in ascending order of values, and for every element which of them it is.

    ``np.unique`` would do, but imports masked arrays, for longer than a pattern takes.
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    fresh = np.ones(len(values), np.bool_)
    fresh[1:] = ascending[1:] != ascending[:-1]
    back = np.empty(len(values), np.int64)
    back[order] = np.cumsum(fresh) - 1
    return order[fresh], back
