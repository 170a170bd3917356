"""Windows at several resolutions: ends split in two where an operator strides, windows in cells and back."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from jaccli.graph.layout.block import Block, densify
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Key, Label, Layout, exchanged

# Windows of more than this share of their axis are stored in full.
WIDE = 0.75


def grown(bundle: Block, d: int, a: int, offset: int, width: int) -> Block:
    """A window made wider, with zeros."""
    old, form = bundle.form.dims[d][a], bundle.form
    assert isinstance(old, BandedAxis)
    if (old.offset, old.width) == (offset, width):
        return bundle
    wide = form.with_dim(d, exchanged(form.dims[d], a, replace(old, offset=offset, width=width)))
    meter.move(form.numel + wide.numel)
    data = bundle.data
    if data is None:
        return Block(wide, None)
    if old.width == 1:
        data = arranged(data, form.layout, wide.layout)
    axis = wide.layout.index((d, a))
    pads = [0, 0] * (data.dim() - 1 - axis) + [old.offset - offset, offset + width - old.offset - old.width]
    return bundle.made(wide, torch.constant_pad_nd(data, pads))


def split_window(bundle: Block, key: Key, low: int) -> Block:
    """Split an end of size ``high x low`` that has a window: the high part keeps it.

    Ends that differ in the low part alone get one window, wide enough for all of them, so that the high part
    strides ``low`` times as far. What a strided operator makes of such a window is a window again.
    """
    form = bundle.form
    end = form.end[key]
    d, a, axis_factor = form.banded[key]
    pair = end.split(low)
    high_key = pair[0].key
    wide = replace(axis_factor.shared(low), key=high_key)
    new = Layout(
        tuple(x for e in form.seed_axes for x in (pair if e is end else (e,))),
        form.with_dim(d, exchanged(form.dims[d], a, wide)).dims,
        form.flat - {key} | ({high_key} if key in form.flat else set()),
    )
    meter.move(2 * form.numel + new.numel, fresh=new.numel)
    data = bundle.data
    if data is None:
        return Block(new, None)
    axis = form.layout.index((-1, *key))
    if key in form.flat:
        data = data.unsqueeze(axis + 1).expand([*data.shape[: axis + 1], low, *data.shape[axis + 1 :]])
    else:
        data = data.unflatten(axis, (-1, low))
    labels: tuple[Label, ...] = exchanged(form.layout, axis, (-1, *high_key), (-1, *key))
    data = arranged(data, labels, new.layout)
    out = data.new_zeros(new.sizes)
    strides = dict(zip(new.layout, out.stride(), strict=True))
    if wide.width > 1:
        strides[-1, *key] += axis_factor.stride * strides[d, a]
    out.as_strided(data.shape, [strides[x] for x in new.layout], 0).copy_(data)
    return bundle.made(new, out)


def in_cells(bundle: Block, d: int, a: int, size: int) -> Block | None:
    """A window's axis as cells of so many elements: the window is one of whole cells.

    None where the ends cannot be split so that they step whole cells, or where the window becomes wide.
    """
    axis_factor = bundle.form.dims[d][a]
    assert isinstance(axis_factor, BandedAxis)
    low = size // math.gcd(axis_factor.stride, size)
    first = axis_factor.offset // size
    cells = (axis_factor.offset + axis_factor.shared(low).width - 1) // size - first + 1
    if cells * size > WIDE * axis_factor.size or not bundle.form.end[axis_factor.key].divisible(low):
        return None
    if low > 1:
        bundle = split_window(bundle, axis_factor.key, low)
    bundle = grown(bundle, d, a, first * size, cells * size)
    axis_factor = bundle.form.dims[d][a]
    assert isinstance(axis_factor, BandedAxis)
    cell = replace(
        axis_factor, size=axis_factor.size // size, offset=first, stride=axis_factor.stride // size, width=cells
    )
    form = bundle.form.with_dim(d, exchanged(bundle.form.dims[d], a, cell, DenseAxis(size)))
    return bundle.regarded(form)


def as_window(bundle: Block, d: int) -> Block:
    """A dimension whose first axis is linked as one window."""
    axis_factors = bundle.form.dims[d]
    if len(axis_factors) < 2 or not isinstance(axis_factors[0], BandedAxis):
        return bundle
    bundle = densify(bundle, [x.key for x in axis_factors[1:] if isinstance(x, BandedAxis)])
    link, n = axis_factors[0], math.prod(x.size for x in axis_factors[1:])
    wide = replace(link, size=link.size * n, offset=link.offset * n, stride=link.stride * n, width=link.width * n)
    form = bundle.form.with_dim(d, (wide,))
    return bundle.regarded(form)
