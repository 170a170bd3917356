"""What each element of an activation can depend on: numbers of sets in the activation's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaccli.graph.sparsity.index_sets import NOTHING, BoolArray, IndexSets, IntArray, kinds


class SamplesMixed(Exception):
    """An element cannot be said to belong to one sample."""


@dataclass(frozen=True)
class DependencySets:
    """Numbers of sets, in the value's shape with the samples left out.

    Args:
        pool: the sets.
        sets: of one sample.
        dim: the dimension that the samples are in.
        inner: elements of that dimension that come after one step of the sample.
        batch: how many samples.
    """

    pool: IndexSets
    sets: IntArray
    dim: int
    inner: int
    batch: int

    def at(self, dim: int) -> bool:
        """Whether the samples are in this dimension."""
        return self.batch > 1 and dim == self.dim

    def apart(self, *dims: int) -> None:
        """Raises ``SamplesMixed`` if the samples are in one of these dimensions."""
        if any(self.at(d) for d in dims):
            raise SamplesMixed

    def made(self, sets: IntArray) -> DependencySets:
        """Other sets, the samples where they were."""
        return replace(self, sets=sets)

    def along(self, dim: int, links: Links | None = None, n_out: int = 1) -> DependencySets:
        """Unions along one dimension, see ``along``."""
        self.apart(dim)
        return self.made(along(self.pool, self.sets, dim, links, n_out))

    def any_sample(self, mask: BoolArray, axis: int, dim: int) -> BoolArray:
        """A mask true where it is so for any of the samples; ``axis`` of it is ``dim`` of the activation."""
        if not self.at(dim) or mask.shape[axis] == 1:
            return mask
        shape = mask.shape
        split = mask.reshape(*shape[:axis], -1, self.batch, self.inner, *shape[axis + 1 :])
        found: BoolArray = split.any(axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
        return found


@dataclass(frozen=True)
class Factors:
    """What is known of the numbers in a map.

    Args:
        nonzero: where a factor may be nonzero at some point, in the factor's shape; None for everywhere.
        index: a constant index; None if it hangs on the inputs.
    """

    nonzero: Callable[[Any], BoolArray | None]
    index: Callable[[Any], IntArray | None]


@dataclass(frozen=True)
class Links:
    """Along one dimension, which elements each new one takes: ``kind`` of row, and the rows' places."""

    kind: IntArray
    places: IntArray
    starts: IntArray

    @staticmethod
    def of(mask: BoolArray) -> Links:
        """Of a mask ``(n_out, n_in)``."""
        first, back = kinds(mask)
        row, places = np.nonzero(mask[first])
        return Links._of(row, places, len(first), back)

    @staticmethod
    def at(table: IntArray) -> Links:
        """Of indices ``(n_out, width)``, -1 for none."""
        row, column = np.nonzero(table >= 0)
        return Links._of(row, table[row, column], len(table), np.arange(len(table)))

    @staticmethod
    def _of(row: IntArray, places: IntArray, count: int, kind: IntArray) -> Links:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        number = np.zeros(count, np.int64)  # 0 for rows that take nothing
        number[row[starts]] = np.arange(1, len(starts) + 1)
        return Links(number[kind], places, starts)


@dataclass(frozen=True)
class Along:
    """A structure along one dimension that a primitive does not show: stands in for it."""

    dim: int
    links: Links


def along(pool: IndexSets, sets: IntArray, dim: int, links: Links | None, n_out: int = 1) -> IntArray:
    """Unions along one dimension: by links, or, without, of all of it, ``n_out`` times the same."""
    lines = np.moveaxis(sets, dim, -1)
    lead, n = lines.shape[:-1], lines.shape[-1]
    lines = np.ascontiguousarray(lines).reshape(-1, n)
    if links is None:
        one = pool.unite(lines.reshape(-1), np.arange(0, lines.size, n)).reshape(*lead, 1)
        return np.moveaxis(np.broadcast_to(one, (*lead, n_out)), -1, dim)
    operands = lines[:, links.places]
    starts = np.arange(len(lines))[:, None] * operands.shape[1] + links.starts
    found = np.full((len(lines), len(links.starts) + 1), NOTHING)
    found[:, 1:] = pool.unite(operands.reshape(-1), starts.reshape(-1)).reshape(len(lines), -1)
    return np.moveaxis(found[:, links.kind].reshape(*lead, -1), -1, dim)
