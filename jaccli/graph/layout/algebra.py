"""The algebra of bundles: add, transpose, multiply, and lay out as matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import (
    Block,
    cleaned,
    densify,
    merged,
    split_axis_factor,
    split_end,
    whole,
    widened,
    without_ones,
    write,
)
from jaccli.graph.layout.contraction import contract
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Key, Label, Layout, SeedAxis
from jaccli.graph.layout.windows import WIDE, grown, in_cells, split_window


def aligned(a: Block, b: Block) -> tuple[Block, Block]:
    """Both with the same ends, split and ranged alike."""
    a, b = _same_splits(a, b)
    b, a = _same_splits(b, a)
    seed_axes = _reach(a, b)
    return widened(a, seed_axes), widened(b, seed_axes)


def _reach(a: Block, b: Block) -> tuple[SeedAxis, ...]:
    """Ends whose ranges cover those of both."""
    return tuple(
        replace(x, start=min(x.start, y.start), size=max(x.start + x.size, y.start + y.size) - min(x.start, y.start))
        for x, y in zip(a.form.seed_axes, b.form.seed_axes, strict=True)
    )


def _joined(a: Block, b: Block) -> Block | None:
    """The sum of bundles that differ in the range of one free end alone, each written once; None for others."""
    x, y = a.form, b.form
    keys = [e.key for e, f in zip(x.seed_axes, y.seed_axes, strict=False) if e != f]
    if (
        x.dims != y.dims
        or [e.key for e in x.seed_axes] != [e.key for e in y.seed_axes]
        or len(keys) != 1
        or keys[0] in x.banded
    ):
        return None
    new = Layout(_reach(a, b), x.dims, x.flat & y.flat)
    meter.move(new.numel + 2 * (x.numel + y.numel), fresh=new.numel)
    if x.end[keys[0]].start > y.end[keys[0]].start:
        x, y, a, b = y, x, b, a
    if a.data is None or b.data is None:
        return Block(new, None)
    low, high = a.data.expand(replace(x, flat=new.flat).sizes), b.data.expand(replace(y, flat=new.flat).sizes)
    first, second, axis = x.end[keys[0]], y.end[keys[0]], new.layout.index((-1, *keys[0]))
    if first.start + first.size == second.start:
        return a.made(new, torch.cat([low, high], axis))
    out = low.new_zeros(new.sizes)
    out.narrow(axis, 0, first.size).copy_(low)
    out.narrow(axis, second.start - first.start, second.size).add_(high)
    return a.made(new, out)


def _same_splits(a: Block, b: Block) -> tuple[Block, Block]:
    """``a`` with its ends split where those of ``b`` are."""
    for end in b.form.seed_axes:
        if end.key in a.form.end:
            continue
        dim, stride = end.key
        for mine in a.form.seed_axes:
            if mine.key[0] == dim and mine.key[1] < stride < mine.key[1] * mine.full:
                return _same_splits(_split(a, mine, stride // mine.key[1]), b)
    return a, b


def _split(bundle: Block, end: SeedAxis, low: int) -> Block:
    """An end in two, with what is linked to it."""
    if not end.divisible(low):  # of a range the whole groups around it
        start, stop = end.start // low * low, -(-(end.start + end.size) // low) * low
        wide = replace(end, start=start, size=stop - start)
        bundle = widened(bundle, tuple(wide if e is end else e for e in bundle.form.seed_axes))
    linked = end.key in bundle.form.banded
    if linked and not bundle.form.plain(bundle.form.banded[end.key][2]):
        return split_window(bundle, end.key, low)
    return split_end(bundle, end.key, low)


def total(a: Block, b: Block) -> Block:
    """The sum of two bundles over the same activation."""
    a, b = without_ones(a), without_ones(b)
    joined = _joined(a, b)
    if joined is not None:
        return joined
    a, b = aligned(a, b)
    while a.form.dims != b.form.dims:
        before = (a.form, b.form)
        a, b = _same_dims(a, b)
        a, b = aligned(a, b)
        if (a.form, b.form) == before:  # nothing but links of one is left between them
            break
    if (len(a.form.banded), -a.form.numel) > (len(b.form.banded), -b.form.numel):
        a, b = b, a
    a, b = _containing(a, b)
    if a.form.dims == b.form.dims:
        return _added(a, b)
    keys = frozenset(b.form.banded) - frozenset(a.form.banded)
    flat = a.form.flat & (b.form.flat - keys)
    form = replace(a.form, flat=flat)
    meter.move(3 * b.form.numel + (0 if a.fresh else 2 * form.numel))
    if a.data is None or b.data is None:
        return Block(form, None)
    data = a.data
    if not a.fresh or a.form.flat != flat or 0 in data.stride():
        data = data.expand(form.sizes).clone(memory_format=torch.contiguous_format)
    write(data, form, b, add=True)
    return a.made(form, data)


def _added(a: Block, b: Block) -> Block:
    """The sum of two bundles that lie in memory alike."""
    flat = a.form.flat & b.form.flat
    form = replace(a.form, flat=flat)
    meter.move(3 * form.numel)
    if a.data is None or b.data is None:
        return Block(form, None)
    if a.fresh and a.form.flat == flat:
        return a.made(form, a.data.add_(b.data))
    if b.fresh and b.form.flat == flat:
        return a.made(form, b.data.add_(a.data))
    return a.made(form, a.data + b.data)


def _containing(a: Block, b: Block) -> tuple[Block, Block]:
    """``a`` with its windows made as wide as those of ``b``."""
    for key in a.form.banded.keys() & b.form.banded.keys():
        (d, i, x), (_, _, y) = a.form.banded[key], b.form.banded[key]
        if not _alike(x, y):
            continue
        low, high = min(x.offset, y.offset), max(x.offset + x.width, y.offset + y.width)
        a = grown(a, d, i, low, high - low)
    return a, b


def _same_dims(a: Block, b: Block) -> tuple[Block, Block]:
    """Dims that differ only by links of ``b`` (or ``a``) where the other one is free, atom by atom."""
    for d in range(len(a.form.dims)):
        a, b = _same_axis_factors(a, b, d)
    shared = {
        key
        for key in a.form.banded.keys() & b.form.banded.keys()
        if a.form.banded[key][:2] == b.form.banded[key][:2] and _alike(a.form.banded[key][2], b.form.banded[key][2])
    }
    a_more = a.form.banded.keys() - shared
    b_more = b.form.banded.keys() - shared
    if a_more and b_more:
        if a.form.numel < b.form.numel:
            a = densify(a, a_more)
        else:
            b = densify(b, b_more)
        return _same_dims(a, b) if a.form.banded.keys() & b.form.banded.keys() - shared else (a, b)
    return a, b


def _same_axis_factors(a: Block, b: Block, d: int, links: bool = True) -> tuple[Block, Block]:
    """One dimension of both, split at the same places; with ``links`` its links made equal too."""
    position = 0
    while position < max(len(a.form.dims[d]), len(b.form.dims[d])):
        if position >= min(len(a.form.dims[d]), len(b.form.dims[d])):
            return merged(a, d), merged(b, d)
        x, y = a.form.dims[d][position], b.form.dims[d][position]
        if links and isinstance(x, BandedAxis) and isinstance(y, BandedAxis) and not _alike(x, y):
            changed = _same_links(a, b, d, position)
            if changed is not None:
                a, b = changed
                continue
        if x.size == y.size:
            position += 1
            continue
        if x.size > y.size:
            a, ok = _cut(a, d, position, y.size)
        else:
            b, ok = _cut(b, d, position, x.size)
        if not ok:
            return merged(a, d), merged(b, d)
    return a, b


def _alike(x: BandedAxis, y: BandedAxis) -> bool:
    """Whether two links differ by their windows at most, and one of both is small and can hold them."""
    width = max(x.offset + x.width, y.offset + y.width) - min(x.offset, y.offset)
    near = width == max(x.width, y.width) or width <= WIDE * x.size
    return near and x.clean and y.clean and replace(x, offset=y.offset, width=y.width) == y


def _same_links(a: Block, b: Block, d: int, position: int) -> tuple[Block, Block] | None:
    """Two links that differ, as near windows made one or stored in full; None where splitting has to come first."""
    x, y = a.form.dims[d][position], b.form.dims[d][position]
    assert isinstance(x, BandedAxis)
    assert isinstance(y, BandedAxis)
    if x.key == y.key and replace(x, clean=y.clean) == y:
        return cleaned(a), cleaned(b)
    if x.key == y.key and x.size == y.size and x.stride == y.stride and not (x.clean and y.clean):
        return cleaned(a), cleaned(b)
    if x.size == y.size:
        return densify(a, [x.key]), densify(b, [y.key])
    return None


def _cut(bundle: Block, d: int, a: int, high: int) -> tuple[Block, bool]:
    """Split an atom so that its first part has size ``high``."""
    axis_factor = bundle.form.dims[d][a]
    if axis_factor.size % high:
        return bundle, False
    if not bundle.form.plain(axis_factor):
        assert isinstance(axis_factor, BandedAxis)
        cells = in_cells(bundle, d, a, axis_factor.size // high)
        if cells is not None:
            return cells, True
        bundle = densify(bundle, [axis_factor.key])
    return split_axis_factor(bundle, d, a, axis_factor.size // high), True


def ungraded(bundle: Block) -> Block:
    """Only links one to one with whole ends are left."""
    form = bundle.form
    bundle = densify(bundle, [key for key, (_, _, axis_factor) in form.banded.items() if not form.plain(axis_factor)])
    return whole(bundle)


def transposed(bundle: Block, shape: tuple[int, ...]) -> Block:
    """Ends and dims exchanged.

    Args:
        bundle: J as columns or as rows.
        shape: of the activation that the ends belong to.
    """
    bundle = ungraded(without_ones(bundle))
    form = bundle.form
    place: dict[Label, Label] = {}
    seed_axes: list[SeedAxis] = []
    renamed: dict[Key, Key] = {}
    for d, axis_factors in enumerate(form.dims):
        stride = math.prod(x.size for x in axis_factors)
        for a, axis_factor in enumerate(axis_factors):
            stride //= axis_factor.size
            seed_axes.append(SeedAxis((d, stride), axis_factor.size))
            if isinstance(axis_factor, BandedAxis):
                renamed[axis_factor.key] = (d, stride)
                place[(-1, d, stride)] = (-1, *axis_factor.key)
            else:
                place[(-1, d, stride)] = (d, a)
    dims: list[list[AxisFactor]] = [[] for _ in shape]
    for end in form.seed_axes:
        d = end.key[0]
        if end.key in renamed:
            dims[d].append(BandedAxis(renamed[end.key], end.size))
        else:
            place[(d, len(dims[d]))] = (-1, *end.key)
            dims[d].append(DenseAxis(end.size))
    new = Layout(tuple(seed_axes), tuple(map(tuple, dims)), frozenset(renamed[k] for k in form.flat))
    if bundle.data is None:
        return Block(new, None)
    return bundle.made(new, bundle.data.permute([form.layout.index(place[x]) for x in new.layout]), False)


def product(rows: Block, columns: Block, shape: tuple[int, ...]) -> Block:
    """J of two stretches that meet at one activation.

    Args:
        rows: ends are the target, dims the meeting activation.
        columns: ends are the source, dims the meeting activation.
        shape: of the source.

    Returns:
        Ends are the target, dims the source.
    """
    rows, columns = ungraded(without_ones(rows)), ungraded(without_ones(columns))
    for d in range(len(rows.form.dims)):
        rows, columns = _same_axis_factors(rows, columns, d, links=False)
    r, c = rows.form, columns.form
    la: list[Label] = list(r.layout)
    lb: list[Label] = [(-2, *x[1:]) if x[0] == -1 else x for x in c.layout]
    shared: dict[Key, Key] = {}  # source end → target end
    for d, axis_factors in enumerate(r.dims):
        for a, axis_factor in enumerate(axis_factors):
            other = c.dims[d][a]
            if isinstance(other, BandedAxis) and isinstance(axis_factor, BandedAxis):
                lb[lb.index((-2, *other.key))] = (-1, *axis_factor.key)
                shared[other.key] = axis_factor.key
            elif isinstance(axis_factor, BandedAxis):
                lb[lb.index((d, a))] = (-1, *axis_factor.key)
            elif isinstance(other, BandedAxis):
                la[la.index((d, a))] = (-2, *other.key)
    dims: list[list[AxisFactor]] = [[] for _ in shape]
    source: list[Label] = []
    for end in c.seed_axes:
        if end.key in shared:
            dims[end.key[0]].append(BandedAxis(shared[end.key], end.size))
        else:
            source.append((-2, *end.key))
            dims[end.key[0]].append(DenseAxis(end.size))
    flat = frozenset(t for s, t in shared.items() if t in r.flat and s in c.flat)
    form = Layout(r.seed_axes, tuple(map(tuple, dims)), flat)
    want: list[Label] = [x for x in form.layout if x[0] == -1]
    meter.product(_sizes(r, la), _sizes(c, lb), [*want, *source])
    if rows.data is None or columns.data is None:
        return Block(form, None)
    data = contract(rows.data, la, columns.data, lb, [*want, *source])
    return rows.made(form, data.expand(form.sizes))


def _sizes(form: Layout, labels: list[Label]) -> dict[Label, int]:
    return dict(zip(labels, form.sizes, strict=True))


def matrix(bundle: Block, out: Tensor | None = None) -> Tensor:
    """``(batch, n_ends, n_dims)``, the caller's own; the first dimension of both is the samples.

    Args:
        bundle: J as rows; of ends in ranges only those that it covers.
        out: where to put it; else it is new, or the bundle's own data.

    Raises:
        ValueError: samples are not linked with samples.
    """
    old = bundle.form
    if not all(isinstance(x, BandedAxis) and x.key[0] == 0 and old.plain(x) for x in old.dims[0]):
        raise ValueError("samples mix")
    kept = {x.key for x in old.dims[0] if isinstance(x, BandedAxis)}
    dims = (old.dims[0], *(tuple(DenseAxis(x.size) for x in axis_factors) for axis_factors in old.dims[1:]))
    form = Layout(old.seed_axes, dims)
    n_batch = math.prod(e.size for e in old.seed_axes if e.key in kept)
    n_out = math.prod(e.size for e in old.seed_axes if e.key not in kept)
    shape = (n_batch, n_out, math.prod(old.shape[1:]))
    data = bundle.data
    assert data is not None
    plain = old.banded.keys() == kept
    own = plain and bundle.fresh and data.is_contiguous() and data.shape == form.sizes
    if out is None and own and data.untyped_storage().nbytes() == data.nbytes:
        return data.view(shape)
    if out is None:
        out = data.new_empty(shape)
    place = out.view(form.sizes)
    if plain:
        place.copy_(data.expand(form.sizes))
    else:
        out.zero_()
        write(place, form, bundle)
    return out
