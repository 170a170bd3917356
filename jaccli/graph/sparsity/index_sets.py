"""A pool of index sets: each is stored once and named by an id; unions of many of them at once.

Which source elements an element of an activation can depend on is such a set. Neighbours, channels and heads share
most of theirs, so that an activation is an array of ids, and the pool holds few sets.
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
_MARK_BYTES = 2**22


class TooMuchWork(Exception):
    """The sets take longer to compute than they can save."""


class IndexSets:
    """A pool of subsets of ``0 … size - 1``: id 0 is the empty set, 1 is all, ``i + 2`` is {i}.

    Args:
        size: elements of the source.
        densest: sets with a larger share of the elements than this count as all of them.
        work: how many ids may be read in all before ``TooMuchWork`` is raised, some 15 ns each.

    Invariants: the elements of set i are ``_elements[start[i] : start[i] + count[i]]``, ascending; but those of set 1
    are not stored. ``_hashes`` is ascending, and ``_ids`` are the ids of the sets that they are the hashes of.
    """

    def __init__(self, size: int, densest: float = 1.0, work: float = float("inf")) -> None:
        self.size, self.most, self.work = size, int(densest * size), work
        self.start: IntArray = np.concatenate([np.zeros(_SINGLES, np.int64), np.arange(size)])
        self.count: IntArray = np.concatenate([[0, size], np.ones(size, np.int64)]).astype(np.int64)
        self._elements: IntArray = np.arange(2 * size)
        self._used = size
        self._hashes = np.zeros(0, np.uint64)
        self._ids = np.zeros(0, np.int64)

    def singles(self, shape: tuple[int, ...]) -> IntArray:
        """Ids of {0}, {1}, …, in a shape of ``size`` elements."""
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
        """Ids of the union of each segment of ``members``; no segment is empty.

        Args:
            members: ids of sets.
            starts: where the segments begin.
        """
        if not len(starts):
            return np.zeros(0, np.int64)
        self.spend(len(members))
        # A segment whose least and largest ids (the empty set aside) are equal holds one set, which is the union; one
        # with id 1 in it is everything. That settles most segments without a look at elements.
        unions: IntArray = np.maximum.reduceat(members, starts)
        low = np.minimum.reduceat(np.where(members == NOTHING, len(self.start), members), starts)
        unions[low == EVERYTHING] = EVERYTHING
        several = (low < unions) & (low != EVERYTHING)
        if several.any():
            lengths = np.diff(starts, append=len(members))
            owner = np.repeat(np.arange(np.count_nonzero(several)), lengths[several])
            unions[several] = self._unions(owner, members[np.repeat(several, lengths)])
        return unions

    def pairs(self, a: IntArray, b: IntArray) -> IntArray:
        """Ids of the unions of two arrays of sets, element by element."""
        self.spend(a.size / 8)
        unions = np.maximum(a, b)
        differ = (a != b) & (a != NOTHING) & (b != NOTHING)
        if differ.any():
            # A pair of ids as one number, so that equal pairs are united once.
            codes = a[differ] * len(self.start) + b[differ]
            first, back = distinct(codes)
            members = np.stack(np.divmod(codes[first], len(self.start)), 1).reshape(-1)
            unions[differ] = self.unite(members, np.arange(0, len(members), 2))[back]
        return unions

    def _unions(self, owner: IntArray, members: IntArray) -> IntArray:
        """Ids of the unions of the members of owners ``0, 0, 1, …``: equal collections are united once.

        Collections are compared by 64-bit hashes. With 10⁶ of them two different ones agree with a chance of 3e-8.
        """
        keys = np.sort(owner[members != NOTHING] * len(self.start) + members[members != NOTHING])
        keys = keys[_starts(keys)]
        self.spend(len(keys))
        owner, members = np.divmod(keys, len(self.start))
        starts = _starts(owner)
        first, back = distinct(np.add.reduceat(_hash(members), starts))
        lengths = np.diff(starts, append=len(owner))[first]
        chosen = members[_ranges(starts[first], lengths)]
        return self._united(np.repeat(np.arange(len(first)), lengths), chosen, len(first))[back]

    def _united(self, owner: IntArray, members: IntArray, groups: int) -> IntArray:
        """As ``_unions``, by marking elements in a table, block by block, so that the table stays in the cache."""
        block = max(1, _MARK_BYTES // self.size)
        ids = np.empty(groups, np.int64)
        edges = np.searchsorted(owner, np.arange(0, groups + block, block))
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            first, count = i * block, min(block, groups - i * block)
            sizes = self.count[members[low:high]]
            self.spend(float(sizes.sum()) + count * self.size / 32)
            marks = np.zeros(count * self.size, np.bool_)
            places = self._elements[_ranges(self.start[members[low:high]], sizes)]
            marks[np.repeat(owner[low:high] - first, sizes) * self.size + places] = True
            ids[first : first + count] = self._ids_of(*np.divmod(np.flatnonzero(marks), self.size))
        return ids

    def _ids_of(self, owner: IntArray, elements: IntArray) -> IntArray:
        """Ids of the sets of elements of owners ``0, 0, 1, …``, new ones added to the pool."""
        starts = _starts(owner)
        counts = np.diff(starts, append=len(owner))
        ids = np.full(len(starts), EVERYTHING)
        small = np.flatnonzero((counts <= self.most) & (counts < self.size))
        if len(small):
            hashes = np.add.reduceat(_hash(elements), starts)[small]
            first, back = distinct(hashes)
            hashes = hashes[first]
            # Known sets are found by bisection in the sorted hashes; the others are inserted where they belong.
            place = np.searchsorted(self._hashes, hashes)
            new = np.append(self._hashes, hashes[:1])[place] != hashes
            new[place == len(self._hashes)] = True
            small_ids = np.append(self._ids, 0)[place]
            small_ids[new] = len(self.start) + np.arange(np.count_nonzero(new))
            ids[small] = small_ids[back]
            self._hashes = np.insert(self._hashes, place[new], hashes[new])
            self._ids = np.insert(self._ids, place[new], small_ids[new])
            chosen = small[first[new]]
            self._add(elements[_ranges(starts[chosen], counts[chosen])], counts[chosen])
        return ids

    def _add(self, elements: IntArray, counts: IntArray) -> None:
        first, self._used = self._used, self._used + len(elements)
        # Doubled when full, so that n additions copy O(n) elements in all.
        if self._used > len(self._elements):
            self._elements = np.concatenate([self._elements[:first], np.empty(2 * self._used - first, np.int64)])
        self._elements[first : self._used] = elements
        self.start = np.concatenate([self.start, first + np.cumsum(counts) - counts])
        self.count = np.concatenate([self.count, counts])

    def rows(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """``indptr`` and sorted ``indices`` of these sets, as of a matrix in compressed rows."""
        counts = self.count[ids]
        # The elements of set 1 are not stored (``size`` of them): here they are appended behind the others.
        start = np.where(ids == EVERYTHING, self._used, self.start[ids])
        elements = np.concatenate([self._elements[: self._used], np.arange(self.size)])
        return np.concatenate([[0], np.cumsum(counts)]), elements[_ranges(start, counts)]


def _starts(owner: IntArray) -> IntArray:
    """Where the runs of a sorted array begin."""
    return np.flatnonzero(np.diff(owner, prepend=-1))


def _ranges(start: IntArray, count: IntArray) -> IntArray:
    """``start[0], start[0] + 1, …`` (``count[0]`` of them), ``start[1], …``."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - ends + count, count)


def _hash(integers: IntArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes (splitmix64, G. Steele et al. 2014); the hash of a set is the sum of those of its elements."""
    x: Any = integers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return hashes


def kinds(rows: BoolArray) -> tuple[IntArray, IntArray]:
    """Rows that occur, by the place of the first of each, and for every row which of them it is: ``rows (n, m)``."""
    weights = _hash(np.arange(rows.shape[1]))
    return distinct(np.where(rows, weights, np.uint64(0)).sum(1, dtype=np.uint64))


def distinct(values: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Where each value stands first, in ascending order of values, and for every element which of them it is.

    ``np.unique`` would do, but imports masked arrays, for longer than a pattern takes.
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = np.ones(len(values), np.bool_)
    first[1:] = ascending[1:] != ascending[:-1]
    back = np.empty(len(values), np.int64)
    back[order] = np.cumsum(first) - 1
    return order[first], back
