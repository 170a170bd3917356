"""Tensors over an activation, as data of a block over it: what elementwise factors and masks need.

A factor of the activation's shape, say ``(batch, channels, pixels)``, multiplies every vector of a block. The block's
data has other axes: of a banded axis it stores, for each seed element, the window only. ``spread`` gives the factor
these axes: its elements at the diagonal, or its windows, and labels for them.

Example: the block of a convolution of 8 pixels has data ``(8, 3)``. A factor ``(8,)`` becomes ``(8, 3)`` too: element
(p, w) is ``factor[p - 1 + w]``, zero where the window sticks out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Label, Layout


def laid_out(layout: Layout, tensor: Tensor) -> Tensor:
    """A tensor of the primal's shape (sizes of 1 broadcast) with an axis for each data axis of a layout."""
    return arranged(*spread(layout, tensor), layout.labels)


def spread(layout: Layout, tensor: Tensor, dims: Iterable[int] | None = None) -> tuple[Tensor, list[Label]]:
    """A tensor over the primal with its axes labelled as a block's data axes.

    Args:
        layout: of the block.
        tensor: ``(*sizes of dims, *extra)``; sizes of 1 are kept and broadcast. Extra axes come out last, unlabelled.
        dims: which dimensions of the primal the tensor's first axes are; all by default.

    Returns:
        The tensor, and labels: one for each axis factor of ``dims``, then one for each window.
    """
    chosen = list(range(len(layout.primal_axes)) if dims is None else dims)
    places = [(d, a) for d in chosen for a in range(len(layout.primal_axes[d]))]
    tensor = _by_axis_factors(layout, tensor, chosen)
    labels: list[Label] = []
    windows: list[Label] = []
    for axis, (d, a) in enumerate(places):
        factor = layout.primal_axes[d][a]
        if isinstance(factor, DenseAxis):
            labels.append((d, a))
            continue
        labels.append((-1, *factor.key))
        # A whole diagonal has the elements in the order of its seed axis; a factor of size 1 is the same at each.
        if layout.plain(factor) or tensor.shape[axis] == 1:
            continue
        count = layout.seed_axis[factor.key].size
        # A diagonal inside the axis is a slice with a step: a view, where windows would be padded first.
        if factor.width == 1 and factor.inside(count):
            part = slice(factor.offset, factor.stop(count), factor.stride)
            tensor = tensor[(slice(None),) * axis + (part,)]
        elif factor.width == 1:
            tensor = windows_along(tensor, axis, factor, count).squeeze(-1)
        else:
            tensor = windows_along(tensor, axis, factor, count)
            windows.append((d, a))
    first, last = len(labels), tensor.dim() - len(windows)
    if windows and last > first:  # windows came out after the extra axes
        tensor = tensor.permute([*range(first), *range(last, tensor.dim()), *range(first, last)])
    return tensor, labels + windows


def _by_axis_factors(layout: Layout, tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """The first axes of a tensor of any shape split into axis factors; those of size 1 into as many of size 1."""
    sizes = [
        1 if size == 1 else axis.size
        for d, size in zip(dims, tensor.shape, strict=False)
        for axis in layout.primal_axes[d]
    ]
    if sizes == list(tensor.shape[: len(dims)]):
        return tensor
    return tensor.reshape([*sizes, *tensor.shape[len(dims) :]])


def windows_along(tensor: Tensor, axis: int, band: BandedAxis, count: int) -> Tensor:
    """The windows of seed elements along one axis, with zeros where they stick out.

    Args:
        tensor: ``(…, band.size at axis, …)``.
        axis: along which the windows lie.
        band: offset, stride and width of the windows.
        count: number of seed elements.

    Returns:
        ``(…, count at axis, …, band.width)``: a view, of a padded copy where windows stick out.
    """
    before = max(0, -band.offset)
    after = max(0, band.stop(count) - band.size)
    if before or after:
        pads = [0, 0] * (tensor.dim() - 1 - axis) + [before, after]
        tensor = torch.constant_pad_nd(tensor, pads)
    # From the first element of window 0 to the last one of the last window: a window may also begin inside the axis.
    tensor = tensor.narrow(axis, before + band.offset, band.stop(count) - band.offset)
    return tensor.unfold(axis, band.width, band.stride)
