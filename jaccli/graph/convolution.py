"""Convolutions on bundles: dense ones stacked in the batch, local ones as windows of growing size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from jaccli.graph.bundle import Bundle, cleaned, merged, unlink
from jaccli.graph.form import Atom, Form, Free, Link
from jaccli.graph.meter import meter
from jaccli.graph.primitive import Late, Shape
from jaccli.graph.toeplitz import CHANNEL, NARROW, Windows, as_matrix, axis_of, by_taps
from jaccli.graph.windows import as_window, split_window

# A window's convolution as one matrix product does more work, at a higher rate than a convolution of small
# images: worth it up to this many times the work, over the channels (a convolution of many is quick).
_TOEPLITZ = 48.0
# Tap by tap in the first direction is quicker from so many times the kernel's size in the result's windows.
_TAPS = 1.5
# Up to so many channels of the result a strided transposed convolution goes by phases.
_FEW = 4
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

    weight: Late
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

    def apply(self, bundle: Bundle) -> Bundle:
        for d in range(2, len(self.x)):
            bundle = as_window(bundle, d)
        bundle = merged(bundle, 1)
        if self._local(bundle.form):
            found = self._on_windows(cleaned(self._stepped(bundle)))
            # What multiplies an axis of size 1 broadcasts along it, and would leave what sticks out as it is.
            return unlink(found, [key for key, (_, _, x) in found.form.links.items() if x.size == 1 and x.width > 1])
        keys = [x.key for atoms in bundle.form.dims[2:] for x in atoms if isinstance(x, Link)]
        bundle = unlink(bundle, keys)
        for d in range(2, len(self.x)):
            bundle = merged(bundle, d)
        return self._on_all(bundle)

    def _local(self, form: Form) -> bool:
        """Whether every direction stays linked and its windows stay small."""
        atoms = form.dims[2:]
        if not all(len(x) == 1 and isinstance(x[0], Link) for x in atoms):
            return False
        new = []
        for d, x in enumerate(atoms):
            assert isinstance(x[0], Link)
            low = self._low(d, x[0])
            if not form.end[x[0].key].divisible(low):
                return False
            new.append(self._link(d, x[0].shared(low)))
        return math.prod(x.width for x in new) <= _LOCAL * math.prod(x.size for x in new)

    def _low(self, d: int, link: Link) -> int:
        """How many neighbouring ends have to share a window, so that windows step as the convolution strides."""
        return 1 if self.adjoint else self.stride[d] // math.gcd(self.stride[d], link.stride)

    def _stepped(self, bundle: Bundle) -> Bundle:
        """Ends split for the stride."""
        for d in range(len(self.kernel)):
            (atom,) = bundle.form.dims[d + 2]
            assert isinstance(atom, Link)
            if (low := self._low(d, atom)) > 1:
                bundle = split_window(bundle, atom.key, low)
        return bundle

    def _link(self, d: int, link: Link) -> Link:
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

    def _pads(self, old: Sequence[Link], new: Sequence[Link]) -> list[tuple[int, int]]:
        """Zeros before and after windows, so that the convolution gives the new ones; cropped where negative."""
        pads = []
        for d, (x, y) in enumerate(zip(old, new, strict=True)):
            reach = (self.kernel[d] - 1) * self.dilation[d]
            before = x.offset + self.padding[d] - self.stride[d] * y.offset
            pads.append((before, (y.width - 1) * self.stride[d] + reach + 1 - x.width - before))
        return pads

    def _on_windows(self, bundle: Bundle) -> Bundle:
        form = bundle.form
        old = [x[0] for x in form.dims[2:] if isinstance(x[0], Link)]
        links = [self._link(d, x) for d, x in enumerate(old)]
        channels = self._ends[1][1]
        dims: tuple[tuple[Atom, ...], ...] = (
            form.dims[0],
            (Free(channels),) if channels != 1 else (),
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
            return Bundle(new, None)
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

    def _on_all(self, bundle: Bundle) -> Bundle:
        form, (inner, outer) = bundle.form, self._ends
        dims = (form.dims[0], *((Free(n),) if n != 1 else () for n in outer[1:]))
        new = replace(form, dims=dims)
        lead = form.numel // math.prod(inner[1:])
        self._count(lead, inner[1:], outer[1:])
        if bundle.data is None:
            return Bundle(new, None)
        data = _stacked(bundle.data, form, lead, inner)
        if self.groups == 1 and set(self.kernel) == {1} and not any(self.padding):
            out = _of_single_pixels(self, data, outer[2:])
        elif self.adjoint and self._few_channels():
            out = _by_phases(self, data)
        elif self.adjoint:
            rest = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, m, s, p, d, k in zip(
                    outer[2:], inner[2:], self.stride, self.padding, self.dilation, self.kernel, strict=True
                )
            ]
            out = _convolution(
                data, self.weight.tensor, self.stride, self.padding, self.dilation, True, rest, self.groups
            )
        else:
            rest = [0] * len(self.kernel)
            out = _convolution(
                data, self.weight.tensor, self.stride, self.padding, self.dilation, False, rest, self.groups
            )
        lead_sizes = new.sizes[: len(new.sizes) - sum(len(x) for x in dims[1:])]
        sizes = [n for n in outer[1:] if n != 1]
        out = (
            out.reshape([*lead_sizes, *sizes]) if len(sizes) != len(outer) - 1 else out.unflatten(0, lead_sizes or (1,))
        )
        return bundle.made(new, out if tuple(out.shape) == new.sizes else out.reshape(new.sizes))

    def _few_channels(self) -> bool:
        """Whether a strided transpose is quicker as an ordinary convolution that gives all phases at once.

        Transposed convolutions to a handful of channels leave vector units idle; with stride² times as many
        channels they do not.
        """
        return (
            len(self.kernel) == 2
            and self.groups == 1
            and self.x[1] <= _FEW
            and all(s > 1 for s in self.stride)
            and all(d == 1 for d in self.dilation)
            and all(n % s == 0 for n, s in zip(self.x[2:], self.stride, strict=True))
        )

    def _count(self, lead: int, inner: Sequence[int], outer: Sequence[int]) -> None:
        places = math.prod((inner if self.adjoint else outer)[1:])
        flops = 2.0 * lead * places * math.prod(self.kernel) * self.x[1] * self.y[1] / self.groups
        channels = (inner[0] // self.groups, outer[0] // self.groups)
        meter.convolve(flops, lead * (math.prod(inner) + math.prod(outer)), channels, self.adjoint)


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


def _by_phases(conv: Conv, data: Tensor) -> Tensor:
    """A strided transposed convolution: pixel s i + r of the result from the inputs around i, one filter a phase r."""
    weight = conv.weight.tensor
    channels_in, channels_out = weight.shape[:2]
    taps = [_taps(k, s, p) for k, s, p in zip(conv.kernel, conv.stride, conv.padding, strict=True)]
    lows = [min(q for _, q in t) for t in taps]
    wides = [max(q for _, q in t) - low + 1 for t, low in zip(taps, lows, strict=True)]
    (s1, s2), (w1, w2) = conv.stride, wides
    filters = weight.new_zeros(channels_out, s1, s2, channels_in, w1, w2)
    for (r1, q1), k1 in taps[0].items():
        for (r2, q2), k2 in taps[1].items():
            filters[:, r1, r2, :, q1 - lows[0], q2 - lows[1]] = weight[:, :, k1, k2].t()
    filters = filters.reshape(channels_out * s1 * s2, channels_in, w1, w2)
    places = [n // s for n, s in zip(conv.x[2:], conv.stride, strict=True)]
    pads: list[int] = []
    for low, wide, place, n in zip(lows[::-1], wides[::-1], places[::-1], data.shape[:1:-1], strict=True):
        pads += [-low, low + wide - 1 + place - n]
    nothing = [0, 0]
    if pads[0] == pads[1] == pads[2] == pads[3] >= 0:
        out = _convolution(data, filters, [1, 1], pads[:1] * 2, [1, 1], False, nothing, 1)
    else:
        out = _convolution(torch.constant_pad_nd(data, pads), filters, [1, 1], nothing, [1, 1], False, nothing, 1)
    out = out.unflatten(1, (channels_out, s1, s2)).permute(0, 1, 4, 2, 5, 3)
    whole: Tensor = out.reshape(out.shape[0], channels_out, *conv.x[2:])
    return whole


def _taps(kernel: int, stride: int, padding: int) -> dict[tuple[int, int], int]:
    """(phase, offset of the input) → place in the kernel."""
    reach = kernel + padding
    found = {(r, q): r + padding - stride * q for r in range(stride) for q in range(-reach, reach + 1)}
    return {key: k for key, k in found.items() if 0 <= k < kernel}


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


def _stacked(data: Tensor, form: Form, lead: int, inner: Shape) -> Tensor:
    """All vectors stacked in the batch; where that takes a copy, it puts the channels last in memory."""
    channel = axis_of(form, CHANNEL)
    if channel is None:
        return data.reshape(lead, *inner[1:])
    return data.movedim(channel, -1).reshape(lead, *inner[2:], inner[1]).movedim(-1, 1)
