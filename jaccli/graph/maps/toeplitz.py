"""Convolutions of windows as matrix products: all directions as one matrix, or the first one tap by tap.

A window of w pixels becomes one of w + k - 1. As one (Toeplitz) matrix that takes w (w + k - 1) products of channels,
most of them with zeros. Tap by tap it takes k w, and each tap is added to a run of rows of the result. Both do more
work than a convolution, or the same, at a higher rate: convolutions of small images are slow.

Example: a window of 2 pixels and 3 taps a, b, c, transposed. As a matrix ``(2, 4)`` its rows are (a, b, c, 0) and
(0, a, b, c). Tap by tap, the window times a is added to pixels 0 and 1 of the result, times b to 1 and 2, times c to 2
and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.layout import Label, Layout
from jaccli.graph.maps.base import Shape

# Matrix products of fewer columns leave vector units idle.
NARROW = 16
# The convolution of windows ``(n, channels, *widths)`` → ``(n, channels, *widths)``.
Windows = Callable[[Tensor], Tensor]
CHANNEL: Label = (1, 0)


class Stack(NamedTuple):
    """Windows, or whole images, that are convolved together: ``lead`` of ``inner``, channels and widths.

    ``outer``: channels and widths of each result.
    """

    lead: int
    inner: Shape
    outer: Shape


def as_matrix(data: Tensor, old: Layout, new: Layout, stack: Stack, windows: Windows) -> Tensor:
    """All windows times one matrix; channels lie last in memory, so that what follows reads whole runs.

    Args:
        data: ``(*old.sizes)``.
        old: layout of the windows.
        new: layout of the result.
        stack: their sizes.
        windows: the convolution.

    Returns:
        Data ``(*new.sizes)``.
    """
    data = _channels_last(data, old)
    out = data.reshape(stack.lead, -1) @ _matrix(windows, stack.inner, data)
    channel = axis_of(new, CHANNEL)
    if channel is None:
        return out.reshape(new.sizes)
    sizes = [n for axis, n in enumerate(new.sizes) if axis != channel]
    return out.reshape([*sizes, stack.outer[0]]).movedim(-1, channel)


def by_taps(data: Tensor, old: Layout, new: Layout, stack: Stack, taps: Sequence[tuple[int, Windows]]) -> Tensor:
    """The first direction tap by tap, the others as one matrix for each tap.

    Args:
        data: ``(*old.sizes)``.
        old: layout of the windows.
        new: layout of the result.
        stack: their sizes.
        taps: for each, by how many pixels its windows start after the result's, and its convolution of windows
            of one pixel in the first direction.

    Returns:
        Data ``(*new.sizes)``.
    """
    lead, inner, outer = stack
    width = inner[1]
    data = _channels_last(data, old, first=axis_of(old, (2, 0))).reshape(width * lead, -1)
    columns = math.prod(outer) // outer[1]
    out = data.new_empty(outer[1] * lead, columns)
    covered = 0
    for start, windows in sorted(taps, key=lambda tap: tap[0]):
        stop = start + width
        # Rows that no tap has reached yet are written, not added to. With beta=0 ``addmm_`` does not read what is
        # there, which is uninitialised and may be NaN.
        beyond = start >= covered
        if covered < (gap := start if beyond else stop):
            out[covered * lead : gap * lead].zero_()
        matrix = _matrix(windows, (inner[0], 1, *inner[2:]), data)
        out[start * lead : stop * lead].addmm_(data, matrix, beta=0 if beyond else 1)
        covered = stop
    sizes = dict(zip(new.labels, new.sizes, strict=True))
    windowed = [(d, 0) for d in range(2, 1 + len(outer)) if (d, 0) in sizes]
    rest = [label for label in new.labels if label not in (*windowed, CHANNEL)]
    labels = [(2, 0), *rest, *windowed[1:], *([CHANNEL] if CHANNEL in sizes else [])]
    return arranged(out.view([sizes[label] for label in labels]), labels, new.labels)


def _matrix(windows: Windows, inner: Shape, like: Tensor) -> Tensor:
    """The convolution of windows as a matrix, ``(pixels and channels in, … out)``, channels last on both sides."""
    basis = torch.eye(math.prod(inner), dtype=like.dtype, device=like.device)
    # A one-hot window for each row of the matrix: the convolution of these is the matrix.
    basis = basis.reshape(-1, *inner[1:], inner[0]).movedim(-1, 1)
    return windows(basis.contiguous()).movedim(1, -1).reshape(math.prod(inner), -1)


def _channels_last(data: Tensor, layout: Layout, first: int | None = None) -> Tensor:
    """The channels' axis last, and another one first, of data ``(*layout.sizes,)``."""
    channel = axis_of(layout, CHANNEL)
    order = [axis for axis in range(data.dim()) if axis not in (first, channel)]
    order = ([] if first is None else [first]) + order + ([] if channel is None else [channel])
    return data.permute(order)


def axis_of(layout: Layout, label: Label) -> int | None:
    """The data axis of a label; None where it has none."""
    return layout.labels.index(label) if label in layout.labels else None
