"""What each element of an activation can depend on, through the linear maps of a graph.

Every primitive makes one footprint of another, by its structure and by constants alone, so that the result
holds at every point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.elementwise import Cast, Mul, Scale
from jaccli.graph.maps.gather import Drop, Gather, Pick, Scatter
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.maps.reshape import Expand, Permute, Reshape, SumTo
from jaccli.graph.maps.slice import Embed, Slice
from jaccli.graph.sparsity.dependency import Along, DependencySets, Factors, Links, SamplesMixed, along
from jaccli.graph.sparsity.index_sets import NOTHING, BoolArray, IndexSets, IntArray, kinds

# Different masks along parallel dimensions (heads) are followed one by one up to so many.
_MOST_MASKS = 64


@singledispatch
def reach(step: Any, foot: DependencySets, factors: Factors) -> DependencySets:  # noqa: ARG001 - nothing is known of it
    """The footprint behind a primitive.

    Raises:
        SamplesMixed: samples cannot be told apart any more, or nothing is known of the primitive.
        TooMuchWork: the pool's work is spent.
    """
    raise SamplesMixed


@reach.register
def _(step: Along, foot: DependencySets, _: Factors) -> DependencySets:
    return foot.along(step.dim, step.links)


@reach.register
def _(step: Mul, foot: DependencySets, factors: Factors) -> DependencySets:
    mask = factors.nonzero(step)
    if mask is None:
        return foot
    return foot.made(np.where(foot.any_sample(mask, foot.dim, foot.dim), foot.sets, NOTHING))


@reach.register
def _(step: Scale, foot: DependencySets, _: Factors) -> DependencySets:
    return foot if step.factor != 0 else foot.made(np.zeros_like(foot.sets))


@reach.register
def _(step: Cast, foot: DependencySets, _: Factors) -> DependencySets:  # noqa: ARG001 - numbers change, places do not
    return foot


@reach.register
def _(step: Reshape, foot: DependencySets, _: Factors) -> DependencySets:
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
            return replace(foot, sets=foot.sets.reshape(shape), dim=dim, inner=inner)
        behind *= size
    raise SamplesMixed


@reach.register
def _(step: Permute, foot: DependencySets, _: Factors) -> DependencySets:
    dim = step.order.index(foot.dim) if step.order else 0
    return replace(foot, sets=foot.sets.transpose(step.order), dim=dim)


@reach.register
def _(step: Expand, foot: DependencySets, _: Factors) -> DependencySets:
    shape = [n if m == 1 and n != 1 else k for m, n, k in zip(step.old, step.new, foot.sets.shape, strict=True)]
    return foot.made(np.broadcast_to(foot.sets, shape))


@reach.register
def _(step: SumTo, foot: DependencySets, _: Factors) -> DependencySets:
    gone = [d for d, (m, n) in enumerate(zip(step.old, step.new, strict=True)) if m != n]
    foot.apart(*gone)
    sets = np.moveaxis(foot.sets, gone, range(-len(gone), 0))
    lead = sets.shape[: sets.ndim - len(gone)]
    return foot.made(
        along(foot.pool, sets.reshape(*lead, -1), -1, None).reshape(
            [1 if d in gone else n for d, n in enumerate(foot.sets.shape)]
        )
    )


def _range(step: Slice | Embed, foot: DependencySets) -> tuple[slice, int]:
    """The slice of one sample, and the size of the dimension it is cut from."""
    if not foot.at(step.dim):
        return slice(step.start, step.start + step.step * (step.count - 1) + 1, step.step), step.full
    one = foot.batch * foot.inner
    if step.step != 1 or step.start % one or step.count % one:
        raise SamplesMixed
    low, count = step.start // foot.batch, step.count // foot.batch
    return slice(low, low + count), step.full // foot.batch


@reach.register
def _(step: Slice, foot: DependencySets, _: Factors) -> DependencySets:
    part = _range(step, foot)[0]
    return foot.made(foot.sets[(slice(None),) * step.dim + (part,)])


@reach.register
def _(step: Embed, foot: DependencySets, _: Factors) -> DependencySets:
    part, full = _range(step, foot)
    shape = foot.sets.shape
    sets = np.full((*shape[: step.dim], full, *shape[step.dim + 1 :]), NOTHING)
    sets[(slice(None),) * step.dim + (part,)] = foot.sets
    return foot.made(sets)


@reach.register
def _(step: Pick, foot: DependencySets, _: Factors) -> DependencySets:
    foot.apart(step.dim)
    return foot.made(foot.sets.take(step.index.cpu().numpy(), step.dim))


@reach.register
def _(step: Drop, foot: DependencySets, _: Factors) -> DependencySets:
    foot.apart(step.dim)
    mask = np.zeros((step.full, step.index.numel()), np.bool_)
    mask[step.index.cpu().numpy(), np.arange(step.index.numel())] = True
    return foot.along(step.dim, Links.of(mask))


@reach.register
def _(step: Gather, foot: DependencySets, factors: Factors) -> DependencySets:
    foot.apart(step.dim)
    index = factors.index(step)
    if index is not None:
        one = _of_one_sample(index, foot)
        if one is not None:
            return foot.made(np.take_along_axis(foot.sets, one, step.dim))
    return foot.along(step.dim, None, step.shape[step.dim])


def _of_one_sample(index: IntArray, foot: DependencySets) -> IntArray | None:
    """An index that is the same for every sample, of one."""
    if foot.batch == 1:
        return index
    shape, dim = index.shape, foot.dim
    split = np.moveaxis(index.reshape(*shape[:dim], -1, foot.batch, foot.inner, *shape[dim + 1 :]), dim + 1, 0)
    if not (split == split[:1]).all():
        return None
    one: IntArray = split[0].reshape(*shape[:dim], shape[dim] // foot.batch, *shape[dim + 1 :])
    return one


@reach.register
def _(step: Scatter, foot: DependencySets, _: Factors) -> DependencySets:
    return foot.along(step.dim, None, step.full)


@reach.register
def _(step: Projection, foot: DependencySets, factors: Factors) -> DependencySets:
    n = foot.sets.shape[step.dim]
    mask = factors.nonzero(step)
    if mask is None:
        return foot.along(step.dim, None, n)
    mask = foot.any_sample(mask, foot.dim, foot.dim)
    found = foot.made(np.where(mask, foot.sets, NOTHING)).along(step.dim, None, n)
    return foot.made(np.where(mask, found.sets, NOTHING))


@reach.register
def _(step: Matrix, foot: DependencySets, factors: Factors) -> DependencySets:
    foot.apart(step.dim)
    mask = factors.nonzero(step)
    if mask is None:
        return foot.along(step.dim, None, step.shape[-1])
    for axis, d in enumerate(step.parallel):
        mask = foot.any_sample(mask, axis, d)
    lead = mask.shape[:-2]
    flat = mask.reshape(-1, *mask.shape[-2:])
    first, back = kinds(flat.reshape(len(flat), -1))
    if len(first) > _MOST_MASKS:
        return foot.along(step.dim, None, step.shape[-1])
    if len(first) == 1:
        return foot.along(step.dim, Links.of(flat[0].T))
    return foot.made(_by_kind(foot, step, [Links.of(flat[i].T) for i in first], back.reshape(lead)))


def _by_kind(foot: DependencySets, step: Matrix, links: Sequence[Links], kind: IntArray) -> IntArray:
    """Unions along a dimension by links that differ along the parallel ones."""
    others = [d for d in range(foot.sets.ndim) if d != step.dim and d not in step.parallel]
    order = [*step.parallel, *others, step.dim]
    moved = foot.sets.transpose(order)
    kind = np.broadcast_to(kind, moved.shape[: len(step.parallel)])
    out = np.full((*moved.shape[:-1], step.shape[-1]), NOTHING)
    for number, each in enumerate(links):
        out[kind == number] = along(foot.pool, moved[kind == number], -1, each)
    return out.transpose(np.argsort(order))


@reach.register
def _(step: Conv, foot: DependencySets, factors: Factors) -> DependencySets:
    if foot.batch > 1 and foot.dim != 0:
        raise SamplesMixed
    inner, outer = _both_shapes(step)
    n_in, n_out = inner[1] // step.groups, outer[1] // step.groups
    tables = [_taps(step, d) for d in range(len(step.kernel))]
    sets = foot.sets.reshape(-1, step.groups, n_in, *inner[2:])
    mask = factors.nonzero(step)
    if mask is None:
        found = np.repeat(_box(foot.pool, along(foot.pool, sets, 2, None)[:, :, 0], tables), n_out, 1)
    else:
        mask = mask.reshape(step.groups, step.y[1] // step.groups, step.x[1] // step.groups, -1)
        mask = mask.swapaxes(1, 2) if step.adjoint else mask  # (group, channel out, channel in, tap)
        masked = (_masked(foot.pool, sets[:, g], mask[g], tables, step.kernel) for g in range(step.groups))
        found = np.concatenate(list(masked), 1)
    return foot.made(found.reshape(-1, *outer[1:]))


def _both_shapes(step: Conv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (step.y, step.x) if step.adjoint else (step.x, step.y)


def _taps(step: Conv, d: int) -> IntArray:
    """``(n_out, kernel)``: which position each tap of each output position reads, -1 for none."""
    inner, outer = (seed_axes[d + 2] for seed_axes in _both_shapes(step))
    places, taps = np.arange(outer)[:, None], step.dilation[d] * np.arange(step.kernel[d])
    if not step.adjoint:
        table = places * step.stride[d] - step.padding[d] + taps
    else:
        table, rest = np.divmod(places + step.padding[d] - taps, step.stride[d])
        table = np.where(rest == 0, table, -1)
    return np.where((table >= 0) & (table < inner), table, -1)


def _box(pool: IndexSets, sets: IntArray, tables: Sequence[IntArray]) -> IntArray:
    """Every tap of a kernel: one direction after the other. ``sets (n, channels, *space)``."""
    for d, table in enumerate(tables):
        sets = along(pool, sets, d + 2, Links.at(table))
    return sets


def _masked(
    pool: IndexSets, sets: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
) -> IntArray:
    """The channels of one group: ``sets (n, channels, *space)``, ``mask (channels out, channels in, taps)``."""
    first, back = kinds(mask.reshape(len(mask), -1))
    return np.stack([_convolved(pool, sets, mask[i], tables, kernel) for i in first], 1)[:, back]


def _convolved(
    pool: IndexSets, sets: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
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
        mask = np.ones((1, len(mask[0])), np.bool_) & mask.any(0)
    channel, tap = np.nonzero(mask)
    padded = np.pad(sets, [(0, 0), (0, 0), *[(0, 1)] * len(tables)])  # -1 reads an empty set
    where: list[slice | IntArray] = [slice(None), channel]
    for d, (table, at) in enumerate(zip(tables, np.unravel_index(tap, kernel), strict=True)):
        where.append(table[:, at].reshape([*(n if e == d else 1 for e, n in enumerate(space)), len(tap)]))
    members = np.ascontiguousarray(padded[tuple(where)]).reshape(-1)
    return pool.unite(members, np.arange(0, len(members), len(tap))).reshape(len(sets), *space)
