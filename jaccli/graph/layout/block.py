"""Bundles of vectors: made, spread over activations, unlinked, split and merged, ranged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.contraction import arranged, contract
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Key, Label, Layout, SeedAxis, exchanged, identity


@dataclass(frozen=True)
class OuterFactor:
    """A tensor with labels as those of a bundle's data; without it a stand-in."""

    sizes: dict[Label, int]
    tensor: Tensor | None

    @property
    def labels(self) -> list[Label]:
        """Of the axes."""
        return list(self.sizes)

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.sizes.values())

    def relabelled(self, new: Callable[[Label], Label]) -> OuterFactor:
        """The same with other labels."""
        return OuterFactor({new(x): n for x, n in self.sizes.items()}, self.tensor)


@dataclass(frozen=True)
class Block:
    """Vectors in a form; without data it is a plan's stand-in, and operations on it count their cost.

    ``fresh``: nothing else looks at the data, so that it may be written into.
    ``outer``: the data are the product of these two, which share no axis that is summed, and are not made yet:
    what follows may be cheaper on one of them. ``materialized`` makes them.
    """

    form: Layout
    data: Tensor | None
    fresh: bool = False
    outer: tuple[OuterFactor, OuterFactor] | None = None

    def made(self, form: Layout, data: Tensor | None, fresh: bool = True) -> Block:
        """A bundle from this one; the data's shape is held against the form in passing."""
        assert data is None or tuple(data.shape) == form.sizes, (tuple(data.shape), form)
        return Block(form, data, fresh)

    def regarded(self, form: Layout) -> Block:
        """The same elements in the same order, in another form."""
        return self.made(form, None if self.data is None else _reshaped(self.data, form.sizes), self.fresh)

    def filled(self, form: Layout, data: Tensor) -> Block:
        """With new data, repeated along the axes on which it does not vary."""
        whole = tuple(data.shape) == form.sizes
        return self.made(form, data if whole else data.expand(form.sizes), whole)


def _reshaped(data: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """In other sizes. Where that takes a copy, the axis that is innermost in memory stays it: channels, mostly."""
    try:
        return data.view(sizes)
    except RuntimeError:
        inner = next((a for a, n in enumerate(data.shape) if n > 1 and data.stride(a) == 1), data.dim() - 1)
    before = math.prod(data.shape[:inner])
    places = [a for a, n in enumerate(sizes) if n == data.shape[inner] and math.prod(sizes[:a]) == before]
    if not places or inner == data.dim() - 1:
        return data.reshape(sizes)
    rest = [n for a, n in enumerate(sizes) if a != places[0]]
    return data.movedim(inner, -1).reshape(*rest, data.shape[inner]).movedim(-1, places[0])


def materialized(bundle: Block) -> Block:
    """With its data made."""
    if bundle.outer is None:
        return bundle
    a, b = bundle.outer
    form = bundle.form
    meter.move(a.numel + b.numel + form.numel, fresh=form.numel)
    if a.tensor is None or b.tensor is None:
        return Block(form, None)
    return bundle.filled(form, contract(a.tensor, a.labels, b.tensor, b.labels, form.layout))


def identity_block(shape: tuple[int, ...], like: Tensor | None) -> Block:
    """The identity on an activation: nothing stored but a one."""
    form = identity(shape)
    if like is None:
        return Block(form, None)
    return Block(form, torch.ones(form.sizes, dtype=like.dtype, device=like.device))


def narrowed(bundle: Block, dim: int, start: int, size: int) -> Block:
    """Of an identity, a range of the ends of one dimension."""
    (axis_factor,) = bundle.form.dims[dim]
    assert isinstance(axis_factor, BandedAxis)
    seed_axes = tuple(
        replace(e, start=start, size=size) if e.key == axis_factor.key else e for e in bundle.form.seed_axes
    )
    form = replace(bundle.form.with_dim(dim, (replace(axis_factor, offset=start),)), seed_axes=seed_axes)
    return Block(form, bundle.data, bundle.fresh)


def spread(form: Layout, tensor: Tensor, dims: Iterable[int] | None = None) -> tuple[Tensor, list[Label]]:
    """A tensor over the dims (sizes of 1 broadcast), its axes labelled as the bundle's data.

    Args:
        form: of the bundle.
        tensor: ``(*dims given)``, or with further axes after them, which the caller labels.
        dims: which dimensions of the activation the tensor's first axes are; all by default.
    """
    chosen = list(range(len(form.dims)) if dims is None else dims)
    extra = tensor.shape[len(chosen) :]
    sizes: list[int] = []
    places: list[tuple[int, int]] = []
    for axis, d in enumerate(chosen):
        for a, axis_factor in enumerate(form.dims[d]):
            sizes.append(1 if tensor.shape[axis] == 1 else axis_factor.size)
            places.append((d, a))
    if tuple(sizes) != tuple(tensor.shape[: len(chosen)]):
        tensor = tensor.reshape([*sizes, *extra])
    labels: list[Label] = []
    windows: list[Label] = []
    for axis, (d, a) in enumerate(places):
        axis_factor = form.dims[d][a]
        if isinstance(axis_factor, DenseAxis):
            labels.append((d, a))
            continue
        labels.append((-1, *axis_factor.key))
        if form.plain(axis_factor) or tensor.shape[axis] == 1:
            continue
        count = form.end[axis_factor.key].size
        if (
            axis_factor.width == 1
            and axis_factor.offset >= 0
            and axis_factor.offset + axis_factor.stride * (count - 1) < axis_factor.size
        ):
            stop = axis_factor.offset + axis_factor.stride * (count - 1) + 1
            tensor = tensor[(slice(None),) * axis + (slice(axis_factor.offset, stop, axis_factor.stride),)]
            continue
        tensor = _windows(tensor, axis, axis_factor, count)
        windows.append((d, a))
        if axis_factor.width == 1:
            tensor = tensor.squeeze(-1)
            windows.pop()
    rest = len(extra)
    if windows and rest:  # the window axes came after the extra ones
        first = len(labels)
        order = [*range(first), *range(first + rest, first + rest + len(windows)), *range(first, first + rest)]
        tensor = tensor.permute(order)
    return tensor, labels + windows


def _windows(tensor: Tensor, axis: int, axis_factor: BandedAxis, count: int) -> Tensor:
    """The window of every end along one axis, as a further last axis; zeros where it sticks out."""
    before = max(0, -axis_factor.offset)
    last = axis_factor.offset + axis_factor.stride * (count - 1) + axis_factor.width
    after = max(0, last - axis_factor.size)
    if before or after:
        pads = [0, 0] * (tensor.dim() - 1 - axis) + [before, after]
        tensor = torch.constant_pad_nd(tensor, pads)
    tensor = tensor.narrow(axis, before + axis_factor.offset, last - axis_factor.offset)
    return tensor.unfold(axis, axis_factor.width, axis_factor.stride)


def cleaned(bundle: Block) -> Block:
    """With zeros where windows stick out of their axes."""
    form = bundle.form
    soiled = [(d, a, axis_factor) for d, a, axis_factor in form.banded.values() if not axis_factor.clean]
    if not soiled:
        return bundle
    data = bundle.data
    for d, a, axis_factor in soiled:
        if data is not None:
            ones = data.new_ones(axis_factor.size)
            mask = _windows(ones, 0, axis_factor, form.end[axis_factor.key].size)
            data = data * arranged(mask, [(-1, *axis_factor.key), (d, a)], form.layout)
        form = form.with_dim(d, tuple(replace(x, clean=True) if x is axis_factor else x for x in form.dims[d]))
        form = replace(form, flat=form.flat - {axis_factor.key})
        meter.move(2 * form.numel)
    return bundle.made(form, data)


def densify(bundle: Block, keys: Iterable[Key] | None = None) -> Block:
    """Store the axes of these links in full (all by default): zeros but on the diagonal, or in the windows."""
    old = bundle.form
    keys = set(old.banded if keys is None else keys)
    if not keys:
        return bundle
    axis_factors = tuple(
        tuple(DenseAxis(x.size) if isinstance(x, BandedAxis) and x.key in keys else x for x in axis_factors)
        for axis_factors in old.dims
    )
    form = Layout(old.seed_axes, axis_factors, old.flat - keys)
    meter.move(form.numel + 2 * old.numel, fresh=form.numel)
    if bundle.data is None:
        return Block(form, None)
    out = bundle.data.new_zeros(form.sizes)
    write(out, form, bundle)
    return bundle.made(form, out)


def write(out: Tensor, form: Layout, bundle: Block, add: bool = False) -> None:
    """Put a bundle into the data of a form in which fewer axes are linked, or windows are wider."""
    old, data = bundle.form, bundle.data
    assert data is not None
    keys = [key for key in old.banded if key not in form.banded]
    out = _narrowed(out, form, old)
    data = data.expand(
        [
            n if x[0] != -1 else old.end[(x[1], x[2])].size if (x[1], x[2]) in keys else out.shape[form.layout.index(x)]
            for x, n in zip(old.layout, data.shape, strict=True)
        ]
    )
    for box in itertools.product(*(_boxes(old, key) for key in keys)):
        boxes, part = dict(zip(keys, box, strict=True)), data
        for key, (first, count, low, width) in boxes.items():
            part = part.narrow(old.layout.index((-1, *key)), first, count)
            d, a, axis_factor = old.banded[key]
            if axis_factor.width > 1:
                part = part.narrow(old.layout.index((d, a)), low, width)
        apart = all(old.banded[key][2].width <= old.banded[key][2].stride for key in keys)
        view = (_diagonal if apart else _strided)(out, form.layout, old, boxes)
        if add:
            view.add_(part)
        else:
            view.copy_(part)


# Ends → first of them, how many, first element of their windows, how many.
Boxes = dict[Key, tuple[int, int, int, int]]


def _diagonal(out: Tensor, labels: tuple[Label, ...], old: Layout, boxes: Boxes) -> Tensor:
    """The elements that are linked, as the data of ``old``; ``_strided`` by views, for windows that do not overlap.

    ``torch.compile`` follows writes into views of views, and not those into strides of them.
    """
    for key, (first, count, low, width) in boxes.items():
        d, a, axis_factor = old.banded[key]
        row, column = labels.index((-1, *key)), labels.index((d, a))
        reach = axis_factor.stride * (count - 1) + width
        out = out.narrow(row, first, count).narrow(column, axis_factor.offset + axis_factor.stride * first + low, reach)
        labels = tuple(x for i, x in enumerate(labels) if i not in (row, column))
        if axis_factor.stride > 1:
            out = out.unfold(column, width, axis_factor.stride)
            labels += ((d, a),)
        out = out.diagonal(0, row, column)
        labels += ((-1, *key),)
    ones = tuple(i for i, x in enumerate(labels) if x not in old.layout)
    return arranged(out.squeeze(ones) if ones else out, [x for x in labels if x in old.layout], old.layout)


def _strided(out: Tensor, labels: tuple[Label, ...], old: Layout, boxes: Boxes) -> Tensor:
    """The elements of ``out``, with the axes ``labels``, that are linked in ``old``, as the data of that."""
    strides, sizes = dict(zip(labels, out.stride(), strict=True)), dict(zip(labels, out.shape, strict=True))
    offset = out.storage_offset()
    for key, (first, count, low, width) in boxes.items():
        end = (-1, *key)
        d, a, axis_factor = old.banded[key]
        offset += first * strides[end] + (axis_factor.offset + axis_factor.stride * first + low) * strides[(d, a)]
        strides[end] += axis_factor.stride * strides[(d, a)]
        sizes |= {end: count, (d, a): width}
    return out.as_strided([sizes[x] for x in old.layout], [strides[x] for x in old.layout], offset)


def _narrowed(out: Tensor, form: Layout, old: Layout) -> Tensor:
    """The part of the windows that the windows of ``old`` cover, still with an axis for each that ``form`` has."""
    for axis, (d, a) in ((i, (x[0], x[1])) for i, x in enumerate(form.layout) if x[0] != -1):
        wide = form.dims[d][a]
        if isinstance(wide, BandedAxis):
            _, _, link = old.banded[wide.key]
            out = out.narrow(axis, link.offset - wide.offset, link.width)
    return out


def _fits(form: Layout, key: Key) -> bool:
    _, _, axis_factor = form.banded[key]
    return (
        axis_factor.offset >= 0
        and axis_factor.offset + axis_factor.stride * (form.end[key].size - 1) + axis_factor.width <= axis_factor.size
    )


def _boxes(form: Layout, key: Key) -> list[tuple[int, int, int, int]]:
    """Ranges of ends with the part of the window that lies inside: (first, count, low, width)."""
    _, _, axis_factor = form.banded[key]
    if _fits(form, key):
        return [(0, form.end[key].size, 0, axis_factor.width)]
    boxes: list[tuple[int, int, int, int]] = []
    for p in range(form.end[key].size):
        start = axis_factor.offset + axis_factor.stride * p
        low, high = max(0, -start), min(axis_factor.width, axis_factor.size - start)
        if high <= low:
            continue
        if boxes and boxes[-1][2:] == (low, high - low) and boxes[-1][0] + boxes[-1][1] == p:
            boxes[-1] = (boxes[-1][0], boxes[-1][1] + 1, low, high - low)
        else:
            boxes.append((p, 1, low, high - low))
    return boxes


def split_end(bundle: Block, key: Key, low: int) -> Block:
    """Split an end of size ``high x low`` in two, and with it the axis linked to it, which must be plain."""
    form = bundle.form
    end = form.end[key]
    pair = end.split(low)
    high_key, high = pair[0].key, pair[0].full
    seed_axes = tuple(x for e in form.seed_axes for x in (pair if e.key == key else (e,)))
    dims = form.dims
    if key in form.banded:
        d, a, _ = form.banded[key]
        dims = exchanged(dims, d, exchanged(dims[d], a, BandedAxis(high_key, high), BandedAxis(key, low)))
    flat = form.flat | {high_key} if key in form.flat else form.flat
    return bundle.regarded(Layout(seed_axes, dims, flat))


def split_axis_factor(bundle: Block, d: int, a: int, low: int) -> Block:
    """Split one axis of the dims in two, ``high x low``."""
    axis_factor = bundle.form.dims[d][a]
    if isinstance(axis_factor, BandedAxis):
        return split_end(bundle, axis_factor.key, low)
    axis_factors = bundle.form.dims[d]
    form = bundle.form.with_dim(d, exchanged(axis_factors, a, DenseAxis(axis_factor.size // low), DenseAxis(low)))
    return bundle.regarded(form)


def merged(bundle: Block, d: int) -> Block:
    """One dimension with its axes in full and as one."""
    form = bundle.form
    bundle = densify(bundle, [x.key for x in form.dims[d] if isinstance(x, BandedAxis)])
    axis_factors = bundle.form.dims[d]
    if len(axis_factors) == 1:
        return bundle
    form = bundle.form.with_dim(d, (DenseAxis(math.prod(x.size for x in axis_factors)),))
    return bundle.regarded(form)


def without_ones(bundle: Block) -> Block:
    """Axes of size 1 are not stored."""
    dims = tuple(tuple(x for x in axis_factors if x != DenseAxis(1)) for axis_factors in bundle.form.dims)
    if dims == bundle.form.dims:
        return bundle
    bundle = materialized(bundle)
    form = replace(bundle.form, dims=dims)
    return bundle.regarded(form)


def widened(bundle: Block, seed_axes: tuple[SeedAxis, ...]) -> Block:
    """With zeros for ends outside the ranges that it covers."""
    form = bundle.form
    keys = [e.key for e, w in zip(form.seed_axes, seed_axes, strict=True) if (e.start, e.size) != (w.start, w.size)]
    if not keys:
        return bundle
    bundle = densify(bundle, [k for k in keys if k in form.banded])
    new = Layout(seed_axes, bundle.form.dims, bundle.form.flat - set(keys))
    meter.move(new.numel + 2 * bundle.form.numel, fresh=new.numel)
    data = bundle.data
    if data is not None:
        out = data.new_zeros(new.sizes)
        part = out
        for end, want in zip(bundle.form.seed_axes, seed_axes, strict=True):
            if end.key in keys:
                part = part.narrow(new.layout.index((-1, *end.key)), end.start - want.start, end.size)
        part.copy_(data)
        data = out
    return bundle.made(new, data)


def whole(bundle: Block) -> Block:
    """With zeros for all ends that it does not cover."""
    return widened(bundle, tuple(replace(e, start=0, size=e.full) for e in bundle.form.seed_axes))
