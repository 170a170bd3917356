"""Which source elements each element of an activation can depend on: ids of index sets, in the activation's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaccli.graph.sparsity.index_sets import NOTHING, BoolArray, IndexSets, IntArray, kinds


class SamplesMixed(Exception):
    """An element does not belong to one sample."""


@dataclass(frozen=True)
class DependencySets:
    """Ids of index sets, in the value's shape with the samples left out.

    Args:
        pool: the index sets.
        ids: of one sample.
        dim: the dimension of the activation that the samples are in.
        inner: how many elements of that dimension belong to one sample before the next sample begins.
        batch: how many samples.

    Invariant: dimension ``dim`` has ``groups * batch * inner`` elements. Element (group, sample, i) of it depends on
    that sample alone, on the same elements in every sample. What would break that raises ``SamplesMixed``. So the sets
    of one sample stand for all, and ``ids`` has ``groups * inner`` elements in that dimension.
    """

    pool: IndexSets
    ids: IntArray
    dim: int
    inner: int
    batch: int

    def has_samples_in(self, dim: int) -> bool:
        """Whether the samples are in this dimension."""
        return self.batch > 1 and dim == self.dim  # one sample alone cannot mix with others

    def refuse_samples_in(self, *dims: int) -> None:
        """Raises ``SamplesMixed`` if the samples are in one of these dimensions."""
        if any(self.has_samples_in(d) for d in dims):
            raise SamplesMixed

    def with_ids(self, ids: IntArray) -> DependencySets:
        """Other sets, the samples where they were."""
        return replace(self, ids=ids)

    def united_along(self, dim: int, links: Links | None = None, n_out: int = 1) -> DependencySets:
        """Unions along one dimension, see ``unite_along``."""
        self.refuse_samples_in(dim)
        return self.with_ids(unite_along(self.pool, self.ids, dim, links, n_out))

    def any_sample(self, mask: BoolArray, axis: int, dim: int) -> BoolArray:
        """A mask without samples: true where it is true for any of them; its ``axis`` is ``dim`` of the activation."""
        if not self.has_samples_in(dim) or mask.shape[axis] == 1:
            return mask
        shape = mask.shape
        split = mask.reshape(*shape[:axis], -1, self.batch, self.inner, *shape[axis + 1 :])
        any_of: BoolArray = split.any(axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
        return any_of


@dataclass(frozen=True)
class Factors:
    """What holds of the numbers in a map at every point.

    Args:
        nonzero: where a factor may be nonzero at some point, in the factor's shape; None for everywhere.
        index: a constant index; None if it depends on the inputs.
    """

    nonzero: Callable[[Any], BoolArray | None]
    index: Callable[[Any], IntArray | None]


@dataclass(frozen=True)
class Links:
    """Along one dimension, which input elements each output element depends on.

    Rows of output elements that are equal are kept once.

    Args:
        kind: ``(n_out,)``, number of the row of each output element; 0 is the empty row.
        places: the input elements of row 1, then of row 2, …
        starts: where each row begins in ``places``.
    """

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
    """Stands in for a primitive whose factors depend on the input, with what is known of it along one dimension."""

    dim: int
    links: Links


def unite_along(pool: IndexSets, ids: IntArray, dim: int, links: Links | None, n_out: int = 1) -> IntArray:
    """Ids of unions along one dimension: by links, or, without, of all of it, ``n_out`` times the same."""
    lines = np.moveaxis(ids, dim, -1)
    lead, n = lines.shape[:-1], lines.shape[-1]
    lines = np.ascontiguousarray(lines).reshape(-1, n)
    if links is None:
        one = pool.unite(lines.reshape(-1), np.arange(0, lines.size, n)).reshape(*lead, 1)
        return np.moveaxis(np.broadcast_to(one, (*lead, n_out)), -1, dim)
    # All lines at once: segments of one flat array, each line's behind those of the line before.
    members = lines[:, links.places]
    starts = np.arange(len(lines))[:, None] * members.shape[1] + links.starts
    # Column 0 is the empty row of ``links``: reduceat has no empty segments.
    rows = np.full((len(lines), len(links.starts) + 1), NOTHING)
    rows[:, 1:] = pool.unite(members.reshape(-1), starts.reshape(-1)).reshape(len(lines), -1)
    return np.moveaxis(rows[:, links.kind].reshape(*lead, -1), -1, dim)
