"""What each element of an activation can depend on, through the linear maps of a graph.

A ``Footprint`` holds, for one sample, the number of a set of source elements for every element of a value.
Every primitive makes one footprint of another, by its structure and by constants alone, so that the result
holds at every point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np

from jaccli.graph.convolution import Conv
from jaccli.graph.primitives import (
    Drop,
    Embed,
    Expand,
    Gather,
    Matrix,
    Mul,
    Permute,
    Pick,
    Projection,
    Reshape,
    Scale,
    Scatter,
    Slice,
    SumTo,
)
from jaccli.graph.sets import NOTHING, BoolArray, IntArray, Sets, kinds

# Different masks along parallel dimensions (heads) are followed one by one up to so many.
_MOST_MASKS = 64


class SamplesMixed(Exception):
    """An element cannot be said to belong to one sample."""


@dataclass(frozen=True)
class Footprint:
    """Numbers of sets, in the value's shape with the samples left out.

    Args:
        sets: of one sample.
        dim: the dimension that the samples are in.
        inner: elements of that dimension that come after one step of the sample.
        batch: how many samples.
    """

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

    def made(self, sets: IntArray) -> Footprint:
        """Other sets, the samples where they were."""
        return replace(self, sets=sets)

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


def along(pool: Sets, sets: IntArray, dim: int, links: Links | None, n_out: int = 1) -> IntArray:
    """Unions along one dimension: by links, or, without, of all of it, ``n_out`` times the same."""
    lines = np.moveaxis(sets, dim, -1)
    lead, n = lines.shape[:-1], lines.shape[-1]
    lines = np.ascontiguousarray(lines).reshape(-1, n)
    if links is None:
        one = pool.unite(lines.reshape(-1), np.arange(0, lines.size, n)).reshape(*lead, 1)
        return np.moveaxis(np.broadcast_to(one, (*lead, n_out)), -1, dim)
    taken = lines[:, links.places]
    starts = np.arange(len(lines))[:, None] * taken.shape[1] + links.starts
    found = np.full((len(lines), len(links.starts) + 1), NOTHING)
    found[:, 1:] = pool.unite(taken.reshape(-1), starts.reshape(-1)).reshape(len(lines), -1)
    return np.moveaxis(found[:, links.kind].reshape(*lead, -1), -1, dim)


@singledispatch
def reach(step: Any, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    """The footprint behind a primitive.

    Raises:
        SamplesMixed: samples cannot be told apart any more, or nothing is known of the primitive.
        TooMuchWork: the pool's work is spent.
    """
    raise SamplesMixed


@reach.register
def _(step: Along, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    return foot.made(along(pool, foot.sets, step.dim, step.links))


@reach.register
def _(step: Mul, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    mask = factors.nonzero(step)
    if mask is None:
        return foot
    return foot.made(np.where(foot.any_sample(mask, foot.dim, foot.dim), foot.sets, NOTHING))


@reach.register
def _(step: Scale, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    return foot if step.factor != 0 else foot.made(np.zeros_like(foot.sets))


@reach.register
def _(step: Reshape, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    if foot.batch == 1:
        return replace(foot, sets=foot.sets.reshape(step.new), dim=0)
    after = foot.inner * math.prod(step.old[foot.dim + 1 :])
    behind = 1
    for dim in reversed(range(len(step.new))):
        size = step.new[dim]
        if after < behind * size:
            inner = after // behind
            if after % behind or size % (foot.batch * inner):
                raise SamplesMixed
            shape = (*step.new[:dim], size // foot.batch, *step.new[dim + 1 :])
            return Footprint(foot.sets.reshape(shape), dim, inner, foot.batch)
        behind *= size
    raise SamplesMixed


@reach.register
def _(step: Permute, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    dim = step.order.index(foot.dim) if step.order else 0
    return replace(foot, sets=foot.sets.transpose(step.order), dim=dim)


@reach.register
def _(step: Expand, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    shape = [n if m == 1 and n != 1 else k for m, n, k in zip(step.old, step.new, foot.sets.shape, strict=True)]
    return foot.made(np.broadcast_to(foot.sets, shape))


@reach.register
def _(step: SumTo, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    gone = [d for d, (m, n) in enumerate(zip(step.old, step.new, strict=True)) if m != n]
    foot.apart(*gone)
    sets = np.moveaxis(foot.sets, gone, range(-len(gone), 0))
    lead = sets.shape[: sets.ndim - len(gone)]
    return foot.made(
        along(pool, sets.reshape(*lead, -1), -1, None).reshape(
            [1 if d in gone else n for d, n in enumerate(foot.sets.shape)]
        )
    )


def _range(step: Slice | Embed, foot: Footprint) -> tuple[slice, int]:
    """The slice of one sample, and the size of the dimension it is cut from."""
    if not foot.at(step.dim):
        return slice(step.start, step.start + step.step * (step.count - 1) + 1, step.step), step.full
    one = foot.batch * foot.inner
    if step.step != 1 or step.start % one or step.count % one:
        raise SamplesMixed
    low, count = step.start // foot.batch, step.count // foot.batch
    return slice(low, low + count), step.full // foot.batch


@reach.register
def _(step: Slice, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    part, _ = _range(step, foot)
    return foot.made(foot.sets[(slice(None),) * step.dim + (part,)])


@reach.register
def _(step: Embed, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    part, full = _range(step, foot)
    shape = foot.sets.shape
    sets = np.full((*shape[: step.dim], full, *shape[step.dim + 1 :]), NOTHING)
    sets[(slice(None),) * step.dim + (part,)] = foot.sets
    return foot.made(sets)


@reach.register
def _(step: Pick, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    return foot.made(foot.sets.take(step.index.cpu().numpy(), step.dim))


@reach.register
def _(step: Drop, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    mask = np.zeros((step.full, step.index.numel()), np.bool_)
    mask[step.index.cpu().numpy(), np.arange(step.index.numel())] = True
    return foot.made(along(pool, foot.sets, step.dim, Links.of(mask)))


@reach.register
def _(step: Gather, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    index = factors.index(step)
    if index is not None:
        one = _of_one_sample(index, foot)
        if one is not None:
            return foot.made(np.take_along_axis(foot.sets, one, step.dim))
    return foot.made(along(pool, foot.sets, step.dim, None, step.shape[step.dim]))


def _of_one_sample(index: IntArray, foot: Footprint) -> IntArray | None:
    """An index that is the same for every sample, of one."""
    if foot.batch == 1:
        return index
    shape, dim = index.shape, foot.dim
    split = np.moveaxis(index.reshape(*shape[:dim], -1, foot.batch, foot.inner, *shape[dim + 1 :]), dim + 1, 0)
    if not (split == split[:1]).all():
        return None
    return split[0].reshape(*shape[:dim], shape[dim] // foot.batch, *shape[dim + 1 :])


@reach.register
def _(step: Scatter, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    return foot.made(along(pool, foot.sets, step.dim, None, step.full))


@reach.register
def _(step: Projection, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    n = foot.sets.shape[step.dim]
    mask = factors.nonzero(step)
    if mask is None:
        return foot.made(along(pool, foot.sets, step.dim, None, n))
    mask = foot.any_sample(mask, foot.dim, foot.dim)
    sets = along(pool, np.where(mask, foot.sets, NOTHING), step.dim, None, n)
    return foot.made(np.where(mask, sets, NOTHING))


@reach.register
def _(step: Matrix, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    foot.apart(step.dim)
    mask = factors.nonzero(step)
    if mask is None:
        return foot.made(along(pool, foot.sets, step.dim, None, step.shape[-1]))
    for axis, d in enumerate(step.parallel):
        mask = foot.any_sample(mask, axis, d)
    lead = mask.shape[:-2]
    flat = mask.reshape(-1, *mask.shape[-2:])
    first, back = kinds(flat.reshape(len(flat), -1))
    if len(first) > _MOST_MASKS:
        return foot.made(along(pool, foot.sets, step.dim, None, step.shape[-1]))
    if len(first) == 1:
        return foot.made(along(pool, foot.sets, step.dim, Links.of(flat[0].T)))
    return foot.made(_by_kind(pool, foot.sets, step, [Links.of(flat[i].T) for i in first], back.reshape(lead)))


def _by_kind(pool: Sets, sets: IntArray, step: Matrix, links: Sequence[Links], kind: IntArray) -> IntArray:
    """Unions along a dimension by links that differ along the parallel ones."""
    others = [d for d in range(sets.ndim) if d != step.dim and d not in step.parallel]
    order = [*step.parallel, *others, step.dim]
    moved = sets.transpose(order)
    kind = np.broadcast_to(kind, moved.shape[: len(step.parallel)])
    out = np.full((*moved.shape[:-1], step.shape[-1]), NOTHING)
    for number, each in enumerate(links):
        out[kind == number] = along(pool, moved[kind == number], -1, each)
    return out.transpose(np.argsort(order))


@reach.register
def _(step: Conv, foot: Footprint, pool: Sets, factors: Factors) -> Footprint:
    if foot.batch > 1 and foot.dim != 0:
        raise SamplesMixed
    inner, outer = _both_shapes(step)
    n_in, n_out = inner[1] // step.groups, outer[1] // step.groups
    tables = [_taps(step, d) for d in range(len(step.kernel))]
    sets = foot.sets.reshape(-1, step.groups, n_in, *inner[2:])
    mask = factors.nonzero(step)
    if mask is None:
        found = np.repeat(_box(pool, along(pool, sets, 2, None)[:, :, 0], tables), n_out, 1)
    else:
        mask = mask.reshape(step.groups, step.y[1] // step.groups, step.x[1] // step.groups, -1)
        mask = mask.swapaxes(1, 2) if step.adjoint else mask  # (group, channel out, channel in, tap)
        found = np.concatenate([_masked(pool, sets[:, g], mask[g], tables, step.kernel) for g in range(step.groups)], 1)
    return foot.made(found.reshape(-1, *outer[1:]))


def _both_shapes(step: Conv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (step.y, step.x) if step.adjoint else (step.x, step.y)


def _taps(step: Conv, d: int) -> IntArray:
    """``(n_out, kernel)``: which position each tap of each output position reads, -1 for none."""
    inner, outer = (ends[d + 2] for ends in _both_shapes(step))
    places, taps = np.arange(outer)[:, None], step.dilation[d] * np.arange(step.kernel[d])
    if not step.adjoint:
        table = places * step.stride[d] - step.padding[d] + taps
    else:
        table, rest = np.divmod(places + step.padding[d] - taps, step.stride[d])
        table = np.where(rest == 0, table, -1)
    return np.where((table >= 0) & (table < inner), table, -1)


def _box(pool: Sets, sets: IntArray, tables: Sequence[IntArray]) -> IntArray:
    """Every tap of a kernel: one direction after the other. ``sets (n, channels, *space)``."""
    for d, table in enumerate(tables):
        sets = along(pool, sets, d + 2, Links.at(table))
    return sets


def _masked(
    pool: Sets, sets: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
) -> IntArray:
    """The channels of one group: ``sets (n, channels, *space)``, ``mask (channels out, channels in, taps)``."""
    first, back = kinds(mask.reshape(len(mask), -1))
    return np.stack([_convolved(pool, sets, mask[i], tables, kernel) for i in first], 1)[:, back]


def _convolved(
    pool: Sets, sets: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
) -> IntArray:
    """One output channel: ``mask (channels in, taps)``."""
    channels, taps = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    space = tuple(len(table) for table in tables)
    if not len(channels):
        return np.zeros((len(sets), *space), np.int64)
    if mask[np.ix_(channels, taps)].all():  # the same taps of every channel
        sets = along(pool, sets[:, channels], 1, None)
        if len(taps) == mask.shape[1]:
            return _box(pool, sets, tables)[:, 0]
        mask = mask.any(0, keepdims=True)
    channel, tap = np.nonzero(mask)
    padded = np.pad(sets, [(0, 0), (0, 0), *[(0, 1)] * len(tables)])  # -1 reads an empty set
    where: list[IntArray] = [channel]
    for d, (table, at) in enumerate(zip(tables, np.unravel_index(tap, kernel), strict=True)):
        where.append(table[:, at].reshape([*(n if e == d else 1 for e, n in enumerate(space)), len(tap)]))
    members = np.ascontiguousarray(padded[(slice(None), *where)]).reshape(-1)
    return pool.unite(members, np.arange(0, len(members), len(tap))).reshape(len(sets), *space)
