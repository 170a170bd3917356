"""Convolutions on bundles: dense ones stacked in the batch, local ones as windows of growing size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, cleaned, densify, merged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Layout
from jaccli.graph.layout.windows import as_window, split_window
from jaccli.graph.maps.base import LazyTensor, Shape
from jaccli.graph.maps.polyphase import Taps, by_phases, repeated, transposed
from jaccli.graph.maps.toeplitz import CHANNEL, NARROW, Windows, as_matrix, axis_of, by_taps

# A window's convolution as one matrix product does more work, at a higher rate than a convolution of small
# images: worth it up to this many times the work, over the channels (a convolution of many is quick).
_TOEPLITZ = 48.0
# Tap by tap in the first direction is quicker from so many times the kernel's size in the result's windows.
_TAPS = 1.5
# Convolutions that give fewer channels than vector units take at once go by blocks of pixels, the largest with no more.
_BLOCKS = (4, 2)
_LANES = 16
# A window that covers more of the activation than this is stored in full.
_LOCAL = 0.75


@dataclass(frozen=True)
class Conv:
    """A convolution ``x ↦ y`` or, with ``adjoint``, its transpose ``y ↦ x``.

    Args:
        weight: ``(channels of y, channels of x / groups, *kernel)``.
        kernel: its sizes.
        stride: in each direction; likewise ``padding`` and ``dilation``.
        groups: of channels.
        x: shape of x.
        y: shape of y.
    """

    weight: LazyTensor
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int
    x: Shape
    y: Shape
    adjoint: bool = False

    @property
    def T(self) -> Conv:
        return replace(self, adjoint=not self.adjoint)

    @property
    def _ends(self) -> tuple[Shape, Shape]:
        return (self.y, self.x) if self.adjoint else (self.x, self.y)

    def apply(self, bundle: Block) -> Block:
        for d in range(2, len(self.x)):
            bundle = as_window(bundle, d)
        bundle = merged(bundle, 1)
        if self._local(bundle.form):
            found = self._on_windows(cleaned(self._stepped(bundle)))
            # What multiplies an axis of size 1 broadcasts along it, and would leave what sticks out as it is.
            return densify(found, [key for key, (_, _, x) in found.form.banded.items() if x.size == 1 and x.width > 1])
        keys = [x.key for axis_factors in bundle.form.dims[2:] for x in axis_factors if isinstance(x, BandedAxis)]
        bundle = densify(bundle, keys)
        bundle, times = self._once(bundle)
        for d in range(2, len(self.x)):
            bundle = merged(bundle, d)
        return self._on_all(bundle, times)

    def _once(self, bundle: Block) -> tuple[Block, Shape]:
        """Without the repetitions that nearest upsampling made in every direction, and how many they were."""
        plain = self.groups == 1 and not self.adjoint and set(self.stride) == set(self.dilation) == {1}
        data, form = bundle.data, bundle.form
        if data is None or not plain:
            return bundle, ()
        axes = [
            axis_of(form, (d, len(axis_factors) - 1))
            for d, axis_factors in enumerate(form.dims)
            if d > 1 and len(axis_factors) > 1
        ]
        inner = [axis for axis in axes if axis is not None and data.stride(axis) == 0]
        times = tuple(data.shape[axis] for axis in inner)
        if len(inner) < len(self.kernel) or any(n % s for n, s in zip(self.y[2:], times, strict=True)):
            return bundle, ()
        for axis in sorted(inner, reverse=True):
            data = data.select(axis, 0)
        dims = (*form.dims[:2], *(axis_factors[:-1] for axis_factors in form.dims[2:]))
        return bundle.made(replace(form, dims=dims), data, fresh=False), times

    def _local(self, form: Layout) -> bool:
        """Whether every direction stays linked and its windows stay small."""
        axis_factors = form.dims[2:]
        if not all(len(x) == 1 and isinstance(x[0], BandedAxis) for x in axis_factors):
            return False
        new = []
        for d, x in enumerate(axis_factors):
            assert isinstance(x[0], BandedAxis)
            low = self._low(d, x[0])
            if not form.end[x[0].key].divisible(low):
                return False
            new.append(self._link(d, x[0].shared(low)))
        return math.prod(x.width for x in new) <= _LOCAL * math.prod(x.size for x in new)

    def _low(self, d: int, link: BandedAxis) -> int:
        """How many neighbouring ends have to share a window, so that windows step as the convolution strides."""
        return 1 if self.adjoint else self.stride[d] // math.gcd(self.stride[d], link.stride)

    def _stepped(self, bundle: Block) -> Block:
        """Ends split for the stride."""
        for d in range(len(self.kernel)):
            (axis_factor,) = bundle.form.dims[d + 2]
            assert isinstance(axis_factor, BandedAxis)
            if (low := self._low(d, axis_factor)) > 1:
                bundle = split_window(bundle, axis_factor.key, low)
        return bundle

    def _link(self, d: int, link: BandedAxis) -> BandedAxis:
        reach = (self.kernel[d] - 1) * self.dilation[d]
        size = self._ends[1][d + 2]
        if self.adjoint:
            width = (link.width - 1) * self.stride[d] + reach + 1
            new = replace(
                link,
                size=size,
                offset=self.stride[d] * link.offset - self.padding[d],
                stride=self.stride[d] * link.stride,
                width=width,
            )
        else:
            step, start = self.stride[d], link.offset + self.padding[d]
            first, last = -(-(start - reach) // step), (start + link.width - 1) // step
            new = replace(link, size=size, offset=first, stride=link.stride // step, width=last - first + 1)
        return replace(new, clean=False)

    def _pads(self, old: Sequence[BandedAxis], new: Sequence[BandedAxis]) -> list[tuple[int, int]]:
        """Zeros before and after windows, so that the convolution gives the new ones; cropped where negative."""
        pads = []
        for d, (x, y) in enumerate(zip(old, new, strict=True)):
            reach = (self.kernel[d] - 1) * self.dilation[d]
            before = x.offset + self.padding[d] - self.stride[d] * y.offset
            pads.append((before, (y.width - 1) * self.stride[d] + reach + 1 - x.width - before))
        return pads

    def _on_windows(self, bundle: Block) -> Block:
        form = bundle.form
        old = [x[0] for x in form.dims[2:] if isinstance(x[0], BandedAxis)]
        links = [self._link(d, x) for d, x in enumerate(old)]
        channels = self._ends[1][1]
        dims: tuple[tuple[AxisFactor, ...], ...] = (
            form.dims[0],
            (DenseAxis(channels),) if channels != 1 else (),
            *((x,) for x in links),
        )
        new = replace(form, dims=dims)
        lead = form.numel // (self._ends[0][1] * math.prod(x.width for x in old))
        inner = (self._ends[0][1], *(x.width for x in old))
        outer = (channels, *(x.width for x in links))
        pads = [] if self.adjoint else self._pads(old, links)
        way = self._way(inner, outer)
        if way == "taps":
            meter.move(2 * lead * math.prod(outer))
            for _ in range(self.kernel[0]):
                meter.gemm(1, inner[1] * lead, math.prod(outer) // outer[1], math.prod(inner) // inner[1])
        elif way == "matrix":
            meter.gemm(1, lead, math.prod(outer), math.prod(inner))
        else:
            self._count(lead, inner, outer)
        if bundle.data is None:
            return Block(new, None)
        if way == "taps":
            return by_taps(bundle, new, lead, inner, outer, self._taps(pads))
        weight = self.weight.tensor
        if way == "matrix":
            return as_matrix(bundle, new, lead, inner, outer, lambda data: self._windows(data, pads, weight))
        out = self._windows(bundle.data.reshape(lead, *inner), pads, weight)
        return bundle.made(new, out.reshape(new.sizes))

    def _way(self, inner: Shape, outer: Shape) -> Literal["taps", "matrix", "convolution"]:
        """How windows are convolved; ``inner`` and ``outer``: channels and widths before and after."""
        if self.groups != 1:
            return "convolution"
        channels = math.sqrt(inner[0] * outer[0])
        rest = math.prod(outer[2:]) / math.prod(self.kernel[1:]) * channels
        wide = math.prod(outer) // outer[1] >= NARROW and outer[1] >= _TAPS * self.kernel[0]
        if self.stride[0] == 1 and wide and (len(inner) == 2 or rest <= _TOEPLITZ):
            return "taps"
        return "matrix" if outer[1] / self.kernel[0] * rest <= _TOEPLITZ else "convolution"

    def _taps(self, pads: Sequence[tuple[int, int]]) -> list[tuple[int, Windows]]:
        """The taps of the first direction: where they start in the result, and what they do in the others."""
        pads = [(0, 0), *pads[1:]]

        def tap(k: int) -> Windows:
            return lambda data: self._windows(data, pads, self.weight.tensor[:, :, k : k + 1])

        last, dilation = self.kernel[0] - 1, self.dilation[0]
        return [((k if self.adjoint else last - k) * dilation, tap(k)) for k in range(self.kernel[0])]

    def _windows(self, data: Tensor, pads: Sequence[tuple[int, int]], weight: Tensor) -> Tensor:
        """The convolution of windows by a weight or some of its taps, without padding, so that windows grow."""
        nothing = [0] * len(self.kernel)
        if self.adjoint:
            return _convolution(data, weight, self.stride, nothing, self.dilation, True, nothing, self.groups)
        around = [before for before, _ in pads]
        if any(before != after or before < 0 for before, after in pads):
            data, around = torch.constant_pad_nd(data, [n for pair in reversed(pads) for n in pair]), nothing
        return _convolution(data, weight, self.stride, around, self.dilation, False, nothing, self.groups)

    def _on_all(self, bundle: Block, times: Shape = ()) -> Block:
        """Vectors in full, stacked in the batch; ``times``: how often each pixel is repeated first."""
        form, (inner, outer) = bundle.form, self._ends
        lead = form.numel // math.prod(form.shape[1:])
        taps = self._taps_of_phases(times)
        self._count(lead, inner[1:], outer[1:], taps)
        grid = (
            [(n // t.phases, t.phases) for n, t in zip(outer[2:], taps, strict=True)]
            if taps
            else [(n,) for n in outer[2:]]
        )
        dims = (form.dims[0], *(tuple(DenseAxis(n) for n in sizes if n != 1) for sizes in [(outer[1],), *grid]))
        new = replace(form, dims=dims)
        if bundle.data is None:
            return Block(new, None)
        data = _stacked(bundle.data, form, lead, form.shape)
        if taps:
            out = self._by_phases(data, taps)
        elif self.groups == 1 and set(self.kernel) == {1} and not any(self.padding):
            out = _of_single_pixels(self, data, outer[2:])
        else:
            rest = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) if self.adjoint else 0
                for n, m, s, p, d, k in zip(
                    outer[2:], inner[2:], self.stride, self.padding, self.dilation, self.kernel, strict=True
                )
            ]
            out = _convolution(
                data, self.weight.tensor, self.stride, self.padding, self.dilation, self.adjoint, rest, self.groups
            )
        lead_sizes = new.sizes[: len(new.sizes) - sum(len(x) for x in dims[1:])]
        return bundle.made(new, out.unflatten(0, lead_sizes or (1,)).reshape(new.sizes))

    def _by_phases(self, data: Tensor, taps: Sequence[Taps]) -> Tensor:
        """``(n, channels, places, phases, …)``."""
        weight = self.weight.tensor.transpose(0, 1) if self.adjoint else self.weight.tensor
        nothing, one = [0] * len(taps), [1] * len(taps)

        def convolve(data: Tensor, filters: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
            return _convolution(data, filters, stride, padding, one, False, nothing, 1)

        places = tuple(n // t.phases for n, t in zip(self._ends[1][2:], taps, strict=True))
        return by_phases(data, weight, taps, places, convolve)

    def _taps_of_phases(self, times: Shape) -> list[Taps]:
        """What each direction does where the convolution goes by phases; nothing where it does not.

        Args:
            times: how often each pixel is repeated first.
        """
        plain = self.groups == 1 and set(self.dilation) == {1} and (self.adjoint or set(self.stride) == {1})
        finer = times or (self.stride if self.adjoint else (1,) * len(self.stride))
        if not plain or (set(self.kernel) == {1} and not times):
            return []
        places = [n // s if n % s == 0 else 0 for n, s in zip(self._ends[1][2:], finer, strict=True)]
        count = math.prod(finer) * self._ends[1][1]
        fits = (b for b in _BLOCKS if b ** len(places) * count <= _LANES and all(n % b == 0 and n > b for n in places))
        block = next(fits, 1)
        if not all(places) or (not times and (count > _LANES or block * max(finer) == 1)):
            return []
        taps_of = transposed if self.adjoint else repeated
        return [taps_of(k, s, block, p) for k, s, p in zip(self.kernel, finer, self.padding, strict=True)]

    def _count(self, lead: int, inner: Shape, outer: Shape, taps: Sequence[Taps] = ()) -> None:
        places = math.prod((inner if self.adjoint else outer)[1:])
        kernel, channels = math.prod(self.kernel), (inner[0] // self.groups, outer[0] // self.groups)
        if taps:
            phases = math.prod(t.phases for t in taps)
            places, kernel = math.prod(outer[1:]) // phases, math.prod(t.width for t in taps)
            channels = (inner[0], outer[0] * phases)
        flops = 2.0 * lead * places * kernel * channels[0] * channels[1] * self.groups
        moved = lead * (math.prod(inner) + math.prod(outer))
        meter.convolve(flops, moved, channels, self.adjoint and not taps)


def _of_single_pixels(conv: Conv, data: Tensor, space: Shape) -> Tensor:
    """A convolution of one tap: a matrix product for the pixels that it strides over, zeros for the others."""
    # With output padding there may be pixels at the end that none strides over.
    strides = zip(conv.stride, conv.y[2:], strict=True)
    picked = (slice(None), *(slice(0, s * (n - 1) + 1, s) for s, n in strides))
    weight = conv.weight.tensor.flatten(1)
    data = data.movedim(1, -1)
    if not conv.adjoint:
        return (data[picked] @ weight.t()).movedim(-1, 1)
    out = data.new_zeros(data.shape[0], *space, weight.shape[1])
    out[picked] = data @ weight
    return out.movedim(-1, 1)


def _convolution(
    data: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    rest: Sequence[int],
    groups: int,
) -> Tensor:
    if data.dim() == 4:
        # One to two times faster on the CPU, and the result keeps the layout.
        data = data.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.convolution(data, weight, None, stride, padding, dilation, transposed, rest, groups)


def _stacked(data: Tensor, form: Layout, lead: int, inner: Shape) -> Tensor:
    """All vectors stacked in the batch; where that takes a copy, it puts the channels last in memory."""
    channel = axis_of(form, CHANNEL)
    if channel is None:
        return data.reshape(lead, *inner[1:])
    return data.movedim(channel, -1).reshape(lead, *inner[2:], inner[1]).movedim(-1, 1)
