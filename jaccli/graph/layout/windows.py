"""Windows at several resolutions: what happens to banded axes where a network strides, pools and resamples.

A banded axis ties seed element p to the elements from ``offset + stride p`` on. An operator that strides by s keeps
windows only where they step whole multiples of s. Where they do not, the seed axis is split in two, ``high x low``:
the ``low`` neighbours of a group get one window together, wide enough for all of them, and the high part strides
``low`` times as far.

Example: rows over 8 pixels, the identity: ``offset=0, stride=1, width=1``. Pulled back through a convolution of stride
2, three taps wide, with padding 1 (adjoint: pixel p reaches 2 p - 1, 2 p, 2 p + 1 of 16) they become ``offset=-1,
stride=2, width=3``. Pushed forward through it, pixel q of the 8 inputs reaches one or two of the 4 results. With
``low=2``, inputs 2 g and 2 g + 1 have the window ``stride=2, width=2`` together, and that goes through: ``offset=0,
stride=1, width=2``, results g and g + 1. Data ``(8,)`` becomes ``(4, 2, 2)``: high, low, window; of the pair's common
window each low element stores zeros where the other's is. (Of the identity itself, which is broadcast, ``(1,)`` becomes
``(1, 2, 2)``.)

``in_cells`` does the same for reshapes, which split an axis into cells: ``(16,)`` → ``(8, 2)``. A window has to become
one of whole cells. ``as_window`` is the way back.

Invariants
    * a window is never wider than ``WIDE`` of its axis where a choice exists; wider ones are stored in full;
    * elements that are added to a window are zero;
    * splitting a seed axis moves the banded axis to its high part; the low part is not tied to anything.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, densify
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Key, Label, Layout, exchanged

# Windows of more than this share of their axis are stored in full.
WIDE = 0.75


def grown(block: Block, d: int, a: int, offset: int, width: int) -> Block:
    """A block with zeros at both ends of a window, which then begins at ``offset`` and has another ``width``."""
    old = block.layout
    axis = old.primal_axes[d][a]
    assert isinstance(axis, BandedAxis)
    if (axis.offset, axis.width) == (offset, width):
        return block
    layout = old.with_band(replace(axis, offset=offset, width=width))

    def compute(data: Tensor) -> Tensor:
        if axis.width == 1:
            data = arranged(data, old.labels, layout.labels)
        # ``constant_pad_nd`` counts axes from the last one.
        after = data.dim() - 1 - layout.labels.index((d, a))
        pads = [0, 0] * after + [axis.offset - offset, offset + width - axis.offset - axis.width]
        return torch.constant_pad_nd(data, pads)

    return block.step(layout, compute, old.numel + layout.numel)


def split_window(block: Block, key: Key, low: int) -> Block:
    """A seed axis that has a window as ``high x low``: the high part keeps it, in steps ``low`` times as long."""
    old = block.layout
    seed = old.seed_axis[key]
    d, a, axis = old.banded[key]
    pair = seed.split(low)
    high_key = pair[0].key
    wide = replace(axis.shared(low), key=high_key)
    layout = Layout(
        tuple(x for e in old.seed_axes for x in (pair if e is seed else (e,))),
        exchanged(old.primal_axes, d, exchanged(old.primal_axes[d], a, wide)),
        old.broadcast - {key} | ({high_key} if key in old.broadcast else set()),
    )

    def compute(data: Tensor) -> Tensor:
        place = old.labels.index((-1, *key))
        if key in old.broadcast:
            # Within the common window each low element has its own at another place: the low part is stored in full.
            data = data.unsqueeze(place + 1).expand([*data.shape[: place + 1], low, *data.shape[place + 1 :]])
        else:
            data = data.unflatten(place, (-1, low))
        labels: tuple[Label, ...] = exchanged(old.labels, place, (-1, *high_key), (-1, *key))
        data = arranged(data, labels, layout.labels)
        out = data.new_zeros(layout.sizes)
        strides = dict(zip(layout.labels, out.stride(), strict=True))
        if wide.width > 1:  # of the common window each low element begins ``axis.stride`` after the one before it
            strides[-1, *key] += axis.stride * strides[d, a]
        # A view of ``out`` with the axes of the data: one copy puts the windows of all low elements at their places.
        out.as_strided(data.shape, [strides[x] for x in layout.labels], 0).copy_(data)
        return out

    return block.step(layout, compute, 2 * old.numel + layout.numel, layout.numel)


def in_cells(block: Block, d: int, a: int, size: int) -> Block | None:
    """A banded axis split into cells of ``size`` elements: a banded axis of cells, and a dense one within them.

    None where the seed axis cannot be split so that its windows step whole cells, or where the window becomes wide.
    """
    axis = block.layout.primal_axes[d][a]
    assert isinstance(axis, BandedAxis)
    # The fewest neighbours whose common window steps whole cells.
    low = size // math.gcd(axis.stride, size)
    first = axis.offset // size
    # Cells that the common window touches, from the one where it begins.
    cells = (axis.offset + axis.shared(low).width - 1) // size - first + 1
    if cells * size > WIDE * axis.size or not block.layout.seed_axis[axis.key].divisible(low):
        return None
    if low > 1:
        block = split_window(block, axis.key, low)
    block = grown(block, d, a, first * size, cells * size)
    axis = block.layout.primal_axes[d][a]
    assert isinstance(axis, BandedAxis)
    cell = replace(axis, size=axis.size // size, offset=first, stride=axis.stride // size, width=cells)
    return block.reinterpreted(
        block.layout.with_dim(d, exchanged(block.layout.primal_axes[d], a, cell, DenseAxis(size)))
    )


def as_window(block: Block, d: int) -> Block:
    """A dimension whose first axis factor is banded as one window over the whole dimension; others as they are."""
    axes = block.layout.primal_axes[d]
    if len(axes) < 2 or not isinstance(axes[0], BandedAxis):
        return block
    block = densify(block, [x.key for x in axes[1:] if isinstance(x, BandedAxis)])
    band, n = axes[0], math.prod(x.size for x in axes[1:])
    wide = replace(band, size=band.size * n, offset=band.offset * n, stride=band.stride * n, width=band.width * n)
    return block.reinterpreted(block.layout.with_dim(d, (wide,)))
