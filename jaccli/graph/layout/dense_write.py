"""A block's data written into a tensor in which fewer of its axes are banded, or windows are wider.

The elements of a diagonal, or of windows, lie at regular distances in the larger tensor. So a view of it exists that
has the very axes of the block's data, and one copy or sum into that view does it. Where windows stick out of the
axis, ranges of seed elements with the same part inside are written one after another.

Example: data ``(8, 3)`` of a convolution into a matrix ``(8, 8)``. Row 0 has the window -1…1, of which 0 and 1 are
inside; rows 1…6 have all three, row 7 the first two: three writes. The view of rows 1…6 has sizes ``(6, 3)`` and
strides ``(9, 1)``: the next row begins one column further on.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.layout import BandedAxis, Key, Label, Layout


class Range(NamedTuple):
    """Neighbouring seed elements, ``seeds`` from ``first`` on, and the part of their windows that is inside."""

    first: int
    seeds: int
    low: int
    width: int


def write(out: Tensor, layout: Layout, data: Tensor, old: Layout, add: bool = False) -> None:
    """Copy a block's data into ``out``, or add it.

    Args:
        out: ``(*layout.sizes)``; elements that the block does not store are left as they are.
        layout: as ``old``, with banded axes stored in full or with wider windows.
        data: ``(*old.sizes)``, or 1 on seed axes along which it does not vary.
        old: the block's.
        add: to the elements of ``out``, instead of replacing them.
    """
    # Axes that are banded in the data and dense in ``out``: each is one diagonal, or band, of ``out``.
    keys = [key for key in old.banded if key not in layout.banded]
    out = _covered(out, layout, old)
    sizes = dict(zip(layout.labels, out.shape, strict=True))
    sizes |= {(-1, *key): old.seed_axis[key].size for key in keys}
    data = data.expand([n if x[0] != -1 else sizes[x] for x, n in zip(old.labels, data.shape, strict=True)])
    # Windows that overlap have elements in the same column of different rows. ``unfold`` cannot write these apart.
    disjoint = all(old.banded[key][2].width <= old.banded[key][2].stride for key in keys)
    for ranges in itertools.product(*(_ranges(old, key) for key in keys)):
        boxes, part = dict(zip(keys, ranges, strict=True)), data
        for key, (first, count, low, width) in boxes.items():
            part = part.narrow(old.labels.index((-1, *key)), first, count)
            d, a, axis = old.banded[key]
            if axis.width > 1:
                part = part.narrow(old.labels.index((d, a)), low, width)
        view = (_diagonal if disjoint else _strided)(out, layout.labels, old, boxes)
        if add:
            view.add_(part)
        else:
            view.copy_(part)


def _diagonal(out: Tensor, labels: tuple[Label, ...], old: Layout, boxes: dict[Key, Range]) -> Tensor:
    """The elements of ``out`` that ``old`` stores, ``(*old.sizes,)``; for windows that do not overlap.

    By views alone, since ``torch.compile`` follows writes into views, and not those into ``as_strided``.
    """
    for key, (first, count, low, width) in boxes.items():
        d, a, axis = old.banded[key]
        row, column = labels.index((-1, *key)), labels.index((d, a))
        reach = axis.stride * (count - 1) + width
        # The rows of the range, and the columns that their windows reach together. Cut into windows that step with the
        # rows, window i of row i is what the data stores: the diagonal over rows and windows.
        out = out.narrow(row, first, count).narrow(column, axis.offset + axis.stride * first + low, reach)
        labels = tuple(x for i, x in enumerate(labels) if i not in (row, column))
        if axis.stride > 1:
            out = out.unfold(column, width, axis.stride)
            labels += ((d, a),)
        out = out.diagonal(0, row, column)
        labels += ((-1, *key),)
    ones = tuple(i for i, x in enumerate(labels) if x not in old.labels)
    return arranged(out.squeeze(ones) if ones else out, [x for x in labels if x in old.labels], old.labels)


def _strided(out: Tensor, labels: tuple[Label, ...], old: Layout, boxes: dict[Key, Range]) -> Tensor:
    """The elements of ``out``, with axes ``labels``, that ``old`` stores, ``(*old.sizes,)``."""
    strides, sizes = dict(zip(labels, out.stride(), strict=True)), dict(zip(labels, out.shape, strict=True))
    offset = out.storage_offset()
    for key, (first, count, low, width) in boxes.items():
        seed: Label = (-1, *key)
        d, a, axis = old.banded[key]
        # Where the first window of the range begins in memory; the next row's begins ``stride`` columns further on.
        offset += first * strides[seed] + (axis.offset + axis.stride * first + low) * strides[(d, a)]
        strides[seed] += axis.stride * strides[(d, a)]
        sizes |= {seed: count, (d, a): width}
    return out.as_strided([sizes[x] for x in old.labels], [strides[x] for x in old.labels], offset)


def _covered(out: Tensor, layout: Layout, old: Layout) -> Tensor:
    """The part of ``out``, ``(*layout.sizes,)``, whose windows those of ``old`` cover, with the same axes."""
    for axis, (d, a) in ((i, (x[0], x[1])) for i, x in enumerate(layout.labels) if x[0] != -1):
        wide = layout.primal_axes[d][a]
        if isinstance(wide, BandedAxis):
            _, _, narrow = old.banded[wide.key]
            out = out.narrow(axis, narrow.offset - wide.offset, narrow.width)
    return out


def _ranges(layout: Layout, key: Key) -> list[Range]:
    """Ranges of seed elements whose windows have the same part inside the axis."""
    _, _, axis = layout.banded[key]
    count = layout.seed_axis[key].size
    # Nothing sticks out: one write for all rows. Else only the rows at the borders have ranges of their own.
    if axis.inside(count):
        return [Range(0, count, 0, axis.width)]
    ranges: list[Range] = []
    for p in range(count):
        start = axis.offset + axis.stride * p
        low, high = max(0, -start), min(axis.width, axis.size - start)
        if high <= low:
            continue
        last = ranges[-1] if ranges else None
        if last is not None and last[2:] == (low, high - low) and last.first + last.seeds == p:
            ranges[-1] = last._replace(seeds=last.seeds + 1)
        else:
            ranges.append(Range(p, 1, low, high - low))
    return ranges
