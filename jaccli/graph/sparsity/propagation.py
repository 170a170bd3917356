"""Propagation of dependency sets through the linear maps of a graph.

``propagate(primitive, dependency sets of its input, factors) → dependency sets of its output``: one function for each
primitive. Each uses the structure of the primitive and constants alone, so that the result holds at every point. An
output element depends on the union of what the input elements with a nonzero factor depend on.
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
from jaccli.graph.sparsity.dependency import Along, DependencySets, Factors, Links, SamplesMixed, unite_along
from jaccli.graph.sparsity.index_sets import NOTHING, BoolArray, IndexSets, IntArray, kinds

# Different masks along parallel dimensions (heads) are followed one by one up to this number of them.
_MOST_MASKS = 64


@singledispatch
def propagate(step: Any, deps: DependencySets, factors: Factors) -> DependencySets:  # noqa: ARG001 - the fallback
    """The dependency sets of a primitive's output.

    Raises:
        SamplesMixed: elements no longer belong to one sample each, or the primitive is unknown.
        TooMuchWork: the pool's limit of work is reached.
    """
    raise SamplesMixed


@propagate.register
def _(step: Along, deps: DependencySets, _: Factors) -> DependencySets:
    return deps.united_along(step.dim, step.links)


@propagate.register
def _(step: Mul, deps: DependencySets, factors: Factors) -> DependencySets:
    mask = factors.nonzero(step)
    if mask is None:
        return deps
    # The mask is of all samples: an element keeps its set if the factor may be nonzero for any of them.
    return deps.with_ids(np.where(deps.any_sample(mask, deps.dim, deps.dim), deps.ids, NOTHING))


@propagate.register
def _(step: Scale, deps: DependencySets, _: Factors) -> DependencySets:
    return deps if step.factor != 0 else deps.with_ids(np.zeros_like(deps.ids))


@propagate.register
def _(step: Cast, deps: DependencySets, _: Factors) -> DependencySets:  # noqa: ARG001 - numbers change, places do not
    return deps


@propagate.register
def _(step: Reshape, deps: DependencySets, _: Factors) -> DependencySets:
    if deps.batch == 1:
        return replace(deps, ids=deps.ids.reshape(step.new), dim=0)
    # Sample b holds the elements whose flat index, divided by ``after``, is b modulo the batch. Look for the new
    # dimension in which that stride lies; it must hold whole samples, or they would be spread over two dimensions.
    after = deps.inner * math.prod(step.old[deps.dim + 1 :])
    behind = 1
    for dim in reversed(range(len(step.new))):
        size = step.new[dim]
        if after < behind * size:
            inner = after // behind
            if after % behind or size % (deps.batch * inner):
                raise SamplesMixed
            shape = (*step.new[:dim], size // deps.batch, *step.new[dim + 1 :])
            return replace(deps, ids=deps.ids.reshape(shape), dim=dim, inner=inner)
        behind *= size
    raise SamplesMixed


@propagate.register
def _(step: Permute, deps: DependencySets, _: Factors) -> DependencySets:
    dim = step.order.index(deps.dim) if step.order else 0  # no order: a single number
    return replace(deps, ids=deps.ids.transpose(step.order), dim=dim)


@propagate.register
def _(step: Expand, deps: DependencySets, _: Factors) -> DependencySets:
    shape = [n if m == 1 and n != 1 else k for m, n, k in zip(step.old, step.new, deps.ids.shape, strict=True)]
    return deps.with_ids(np.broadcast_to(deps.ids, shape))


@propagate.register
def _(step: SumTo, deps: DependencySets, _: Factors) -> DependencySets:
    summed = [d for d, (m, n) in enumerate(zip(step.old, step.new, strict=True)) if m != n]
    deps.refuse_samples_in(*summed)
    ids = np.moveaxis(deps.ids, summed, range(-len(summed), 0))
    lead = ids.shape[: ids.ndim - len(summed)]
    shape = [1 if d in summed else n for d, n in enumerate(deps.ids.shape)]
    return deps.with_ids(unite_along(deps.pool, ids.reshape(*lead, -1), -1, None).reshape(shape))


def _places(step: Slice | Embed) -> tuple[slice, ...]:
    """The index of the slice in the activation that it is cut from."""
    return (slice(None),) * step.dim + (slice(step.start, step.start + step.step * (step.count - 1) + 1, step.step),)


@propagate.register
def _(step: Slice, deps: DependencySets, _: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    return deps.with_ids(deps.ids[_places(step)])


@propagate.register
def _(step: Embed, deps: DependencySets, _: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    ids = np.full((*deps.ids.shape[: step.dim], step.full, *deps.ids.shape[step.dim + 1 :]), NOTHING)
    ids[_places(step)] = deps.ids
    return deps.with_ids(ids)


@propagate.register
def _(step: Pick, deps: DependencySets, _: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    return deps.with_ids(deps.ids.take(step.index.cpu().numpy(), step.dim))


@propagate.register
def _(step: Drop, deps: DependencySets, _: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    mask = np.zeros((step.full, step.index.numel()), np.bool_)
    mask[step.index.cpu().numpy(), np.arange(step.index.numel())] = True
    return deps.united_along(step.dim, Links.of(mask))


@propagate.register
def _(step: Gather, deps: DependencySets, factors: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    index = factors.index(step)
    # An index that depends on the input (of a maximum) may point anywhere along the dimension.
    if index is not None:
        one = _of_one_sample(index, deps)
        if one is not None:
            return deps.with_ids(np.take_along_axis(deps.ids, one, step.dim))
    return deps.united_along(step.dim, None, step.shape[step.dim])


def _of_one_sample(index: IntArray, deps: DependencySets) -> IntArray | None:
    """The index of one sample, where it is the same for every sample; else None."""
    if deps.batch == 1:
        return index
    shape, dim = index.shape, deps.dim
    split = np.moveaxis(index.reshape(*shape[:dim], -1, deps.batch, deps.inner, *shape[dim + 1 :]), dim + 1, 0)
    if not (split == split[:1]).all():
        return None
    one: IntArray = split[0].reshape(*shape[:dim], shape[dim] // deps.batch, *shape[dim + 1 :])
    return one


@propagate.register
def _(step: Scatter, deps: DependencySets, _: Factors) -> DependencySets:
    return deps.united_along(step.dim, None, step.full)


@propagate.register
def _(step: Projection, deps: DependencySets, factors: Factors) -> DependencySets:
    n = deps.ids.shape[step.dim]
    mask = factors.nonzero(step)
    if mask is None:
        return deps.united_along(step.dim, None, n)
    mask = deps.any_sample(mask, deps.dim, deps.dim)
    # Of a softmax with masked places: these are zero, and neither depend on others nor do others on them.
    united = deps.with_ids(np.where(mask, deps.ids, NOTHING)).united_along(step.dim, None, n)
    return deps.with_ids(np.where(mask, united.ids, NOTHING))


@propagate.register
def _(step: Matrix, deps: DependencySets, factors: Factors) -> DependencySets:
    deps.refuse_samples_in(step.dim)
    mask = factors.nonzero(step)
    if mask is None:
        return deps.united_along(step.dim, None, step.shape[-1])
    for axis, d in enumerate(step.parallel):
        mask = deps.any_sample(mask, axis, d)
    lead = mask.shape[:-2]
    flat = mask.reshape(-1, *mask.shape[-2:])
    first, back = kinds(flat.reshape(len(flat), -1))
    if len(first) > _MOST_MASKS:
        return deps.united_along(step.dim, None, step.shape[-1])
    if len(first) == 1:
        return deps.united_along(step.dim, Links.of(flat[0].T))
    return deps.with_ids(_by_kind(deps, step, [Links.of(flat[i].T) for i in first], back.reshape(lead)))


def _by_kind(deps: DependencySets, step: Matrix, links: Sequence[Links], kind: IntArray) -> IntArray:
    """Unions along a dimension by links that differ along the parallel ones."""
    others = [d for d in range(deps.ids.ndim) if d != step.dim and d not in step.parallel]
    order = [*step.parallel, *others, step.dim]
    moved = deps.ids.transpose(order)
    kind = np.broadcast_to(kind, moved.shape[: len(step.parallel)])
    out = np.full((*moved.shape[:-1], step.shape[-1]), NOTHING)
    for number, each in enumerate(links):
        out[kind == number] = unite_along(deps.pool, moved[kind == number], -1, each)
    return out.transpose(np.argsort(order))


@propagate.register
def _(step: Conv, deps: DependencySets, factors: Factors) -> DependencySets:
    if deps.batch > 1 and deps.dim != 0:
        raise SamplesMixed
    inner, outer = step.shapes
    n_in, n_out = inner[1] // step.groups, outer[1] // step.groups
    tables = [_taps(step, d) for d in range(len(step.kernel))]
    ids = deps.ids.reshape(-1, step.groups, n_in, *inner[2:])
    mask = factors.nonzero(step)
    # Without zeros in the weight all output channels of a group depend on the same: one channel stands for them, and
    # a box of taps is united direction by direction, at the cost of the sum of its sides and not of their product.
    if mask is None:
        united = np.repeat(_box(deps.pool, unite_along(deps.pool, ids, 2, None)[:, :, 0], tables), n_out, 1)
    else:
        mask = mask.reshape(step.groups, step.y[1] // step.groups, step.x[1] // step.groups, -1)
        mask = mask.swapaxes(1, 2) if step.adjoint else mask  # (group, channel out, channel in, tap)
        masked = (_masked(deps.pool, ids[:, g], mask[g], tables, step.kernel) for g in range(step.groups))
        united = np.concatenate(list(masked), 1)
    return deps.with_ids(united.reshape(-1, *outer[1:]))


def _taps(step: Conv, d: int) -> IntArray:
    """``(n_out, kernel)``: which position each tap of each output position reads, -1 for none."""
    inner, outer = (shape[d + 2] for shape in step.shapes)
    places, taps = np.arange(outer)[:, None], step.dilation[d] * np.arange(step.kernel[d])
    if not step.adjoint:
        table = places * step.stride[d] - step.padding[d] + taps
    else:
        table, rest = np.divmod(places + step.padding[d] - taps, step.stride[d])
        table = np.where(rest == 0, table, -1)
    return np.where((table >= 0) & (table < inner), table, -1)


def _box(pool: IndexSets, ids: IntArray, tables: Sequence[IntArray]) -> IntArray:
    """Unions over all taps of a kernel, one direction after the other: ``ids (n, channels, *space)``."""
    for d, table in enumerate(tables):
        ids = unite_along(pool, ids, d + 2, Links.at(table))
    return ids


def _masked(
    pool: IndexSets, ids: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
) -> IntArray:
    """The channels of one group: ``ids (n, channels, *space)``, ``mask (channels out, channels in, taps)``."""
    first, back = kinds(mask.reshape(len(mask), -1))
    return np.stack([_convolved(pool, ids, mask[i], tables, kernel) for i in first], 1)[:, back]


def _convolved(
    pool: IndexSets, ids: IntArray, mask: BoolArray, tables: Sequence[IntArray], kernel: tuple[int, ...]
) -> IntArray:
    """One output channel: ``mask (channels in, taps)``."""
    channels, taps = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    space = tuple(len(table) for table in tables)
    if not len(channels):
        return np.zeros((len(ids), *space), np.int64)
    if mask[np.ix_(channels, taps)].all():  # the same taps of every channel
        ids = unite_along(pool, ids[:, channels], 1, None)
        if len(taps) == mask.shape[1]:
            return _box(pool, ids, tables)[:, 0]
        mask = np.ones((1, len(mask[0])), np.bool_) & mask.any(0)
    channel, tap = np.nonzero(mask)
    padded = np.pad(ids, [(0, 0), (0, 0), *[(0, 1)] * len(tables)])  # -1 reads an empty set
    where: list[slice | IntArray] = [slice(None), channel]
    for d, (table, at) in enumerate(zip(tables, np.unravel_index(tap, kernel), strict=True)):
        where.append(table[:, at].reshape([*(n if e == d else 1 for e, n in enumerate(space)), len(tap)]))
    members = np.ascontiguousarray(padded[tuple(where)]).reshape(-1)
    return pool.unite(members, np.arange(0, len(members), len(tap))).reshape(len(ids), *space)
