"""Convolutions of blocks: rows in full are stacked in the batch, local ones stay windows that grow.

A block over images has a vector for each seed element, an image each. Where every direction is banded, with windows
that are small, only these are convolved: a window of w pixels becomes one of w + k - 1 for a kernel of k, and nothing
outside is ever stored. The result is banded again. Else all images are stored in full, stacked in the batch of one
convolution.

Windows are convolved in one of three ways (``Conv._mode``): as a convolution of small images, as one matrix
product, or tap by tap (``toeplitz``). Images in full go by phases (``polyphase``) where the result has a finer grid or
few channels.

Example: a convolution of 3 taps, padding 1, on the identity over 8 pixels: window ``offset=0, width=1`` → ``offset=-1,
width=3``. The data is a single 1 and becomes the kernel, sizes (1, 3), the same for all pixels. So what sticks out,
left of row 0 and right of row 7, is not zero: the result has ``zero_padded=False``, and is padded before a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, densify, merged, zero_padded
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout
from jaccli.graph.layout.windows import as_window, split_window
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.images import convolution, stacked
from jaccli.graph.maps.polyphase import Taps, by_phases, repeated, transposed
from jaccli.graph.maps.toeplitz import NARROW, Stack, Windows, as_matrix, axis_of, by_taps

if TYPE_CHECKING:
    from jaxtyping import Shaped


# A window's convolution as one matrix product does more work, at a higher rate than a convolution of small
# images: worth it up to this many times the work, over the channels (a convolution of many is quick).
_TOEPLITZ = 48.0
# Tap by tap in the first direction is quicker where windows of the result are at least this many times the kernel.
_TAPS = 1.5
# Convolutions that give fewer channels than vector units take at once go by blocks of pixels, the largest with no more.
_BLOCKS = (4, 2)
_LANES = 16
# A window that covers more of the activation than this is stored in full.
_LOCAL = 0.75


@dataclass(frozen=True)
class Conv(Primitive):
    """A convolution ``x ↦ y`` or, with ``adjoint``, its transpose ``y ↦ x``.

    Args:
        weight: ``(channels of y, channels of x / groups, *kernel)``.
        kernel: its sizes.
        stride: in each direction; likewise ``padding`` and ``dilation``.
        groups: of channels.
        x: shape of x, ``(batch, channels, *space)``.
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
    def shapes(self) -> tuple[Shape, Shape]:
        """Of what the map takes, and of what it gives: of a transposed convolution the other way round."""
        return (self.y, self.x) if self.adjoint else (self.x, self.y)

    def apply(self, block: Block) -> Block:
        space = range(2, len(self.x))
        for d in space:
            block = as_window(block, d)
        block = merged(block, 1)
        if self._stays_local(block.layout):
            block = self._on_windows(zero_padded(self._split_for_stride(block)))
            # A window axis of size 1 would be multiplied by broadcasting, and the elements outside the image would not
            # be set to zero: such axes are stored in full.
            ones = [key for key in block.layout.window_keys() if block.layout.banded[key][2].size == 1]
            return densify(block, ones)
        block = densify(block, block.layout.banded_keys(*space))
        block, times = self._unrepeated(block)
        for d in space:
            block = merged(block, d)
        return self._in_full(block, times)

    # Windows

    def _stays_local(self, layout: Layout) -> bool:
        """Whether every direction is banded, and the result's windows stay small."""
        bands = _bands(layout)
        if len(bands) < len(self.kernel):
            return False
        new = []
        for d, band in enumerate(bands):
            # The group that ``_split_for_stride`` would make, and the window of the result for it.
            low = self._group(d, band)
            if not layout.seed_axis[band.key].divisible(low):
                return False
            new.append(self._band(d, band.shared(low)))
        return math.prod(x.width for x in new) <= _LOCAL * math.prod(x.size for x in new)

    def _group(self, d: int, band: BandedAxis) -> int:
        """How many neighbouring seed elements have to share a window, so that windows step as the map strides."""
        return 1 if self.adjoint else self.stride[d] // math.gcd(self.stride[d], band.stride)

    def _split_for_stride(self, block: Block) -> Block:
        for d, band in enumerate(_bands(block.layout)):
            if (low := self._group(d, band)) > 1:
                block = split_window(block, band.key, low)
        return block

    def _band(self, d: int, band: BandedAxis) -> BandedAxis:
        """The banded axis of the result in one direction."""
        reach = (self.kernel[d] - 1) * self.dilation[d]
        # Tap k: y[q] reads x[step q - padding + dilation k]. Adjoint: element e of y reaches x from ``step e -
        # padding`` to ``reach`` after. Else element e of x reaches those q with ``step q`` from ``e + padding - reach``
        # to ``e + padding``; ``-(-a // b)`` rounds up.
        step, padding = self.stride[d], self.padding[d]
        if self.adjoint:
            first, stride = step * band.offset - padding, step * band.stride
            width = (band.width - 1) * step + reach + 1
        else:
            start = band.offset + padding
            first, stride = -(-(start - reach) // step), band.stride // step
            width = (start + band.width - 1) // step - first + 1
        size = self.shapes[1][d + 2]
        return replace(band, size=size, offset=first, stride=stride, width=width, zero_padded=False)

    def _on_windows(self, block: Block) -> Block:
        """The map on a block that is banded in every direction."""
        old, (inner, outer) = block.layout, self.shapes
        bands = _bands(old)
        new_bands = [self._band(d, band) for d, band in enumerate(bands)]
        channels = (DenseAxis(outer[1]),) if outer[1] != 1 else ()
        new = replace(old, primal_axes=(old.primal_axes[0], channels, *((x,) for x in new_bands)))
        widths = tuple(x.width for x in bands)
        # All axes of the data before channels and windows are stacked in the batch.
        lead = old.numel // (inner[1] * math.prod(widths))
        stack = Stack(lead, (inner[1], *widths), (outer[1], *(x.width for x in new_bands)))
        mode = self._mode(stack)
        if isinstance(block.data, CostModel):
            self._charge_windows(block.data, stack, mode)
            return Block(new, block.data)
        pads = [] if self.adjoint else self._pads(bands, new_bands)
        weight = self.weight.tensor
        if mode == "taps":
            data = by_taps(block.tensor, old, new, stack, self._taps(pads))
        elif mode == "matrix":
            data = as_matrix(block.tensor, old, new, stack, lambda data: self._windows(data, pads, weight))
        else:
            data = self._windows(block.tensor.reshape(lead, *stack.inner), pads, weight).reshape(new.sizes)
        return Block.of(new, data)

    def _mode(self, stack: Stack) -> Literal["taps", "matrix", "convolution"]:
        """How windows are convolved."""
        inner, outer = stack.inner, stack.outer
        if self.groups != 1:
            return "convolution"
        channels = math.sqrt(inner[0] * outer[0])
        rest = math.prod(outer[2:]) / math.prod(self.kernel[1:]) * channels
        wide = math.prod(outer) // outer[1] >= NARROW and outer[1] >= _TAPS * self.kernel[0]
        if self.stride[0] == 1 and wide and (len(inner) == 2 or rest <= _TOEPLITZ):
            return "taps"
        return "matrix" if outer[1] / self.kernel[0] * rest <= _TOEPLITZ else "convolution"

    def _charge_windows(self, cost: CostModel, stack: Stack, mode: str) -> None:
        lead, inner, outer = stack
        if mode == "taps":
            cost.move(2 * lead * math.prod(outer))
            for _ in range(self.kernel[0]):
                cost.gemm(1, inner[1] * lead, math.prod(outer) // outer[1], math.prod(inner) // inner[1])
        elif mode == "matrix":
            cost.gemm(1, lead, math.prod(outer), math.prod(inner))
        else:
            self._charge(cost, stack, [])

    def _pads(self, old: Sequence[BandedAxis], new: Sequence[BandedAxis]) -> list[tuple[int, int]]:
        """Zeros before and after windows, so that the convolution gives the new ones; cropped where negative."""
        pads = []
        for d, (x, y) in enumerate(zip(old, new, strict=True)):
            reach = (self.kernel[d] - 1) * self.dilation[d]
            # Result y.offset reads from ``stride · y.offset - padding`` on, and the window begins at x.offset. Together
            # the results read ``(width - 1) stride + reach + 1`` elements.
            before = x.offset + self.padding[d] - self.stride[d] * y.offset
            pads.append((before, (y.width - 1) * self.stride[d] + reach + 1 - x.width - before))
        return pads

    def _taps(self, pads: Sequence[tuple[int, int]]) -> list[tuple[int, Windows]]:
        """The taps of the first direction: where they start in the result, and what they do in the others."""
        pads = [(0, 0), *pads[1:]]

        def tap(k: int) -> Windows:
            return lambda data: self._windows(data, pads, self.weight.tensor[:, :, k : k + 1])

        last, dilation = self.kernel[0] - 1, self.dilation[0]
        return [((k if self.adjoint else last - k) * dilation, tap(k)) for k in range(self.kernel[0])]

    def _windows(self, data: Tensor, pads: Sequence[tuple[int, int]], weight: Tensor) -> Tensor:
        """Windows ``(n, channels, *widths)`` convolved without padding, so that they grow; ``weight`` may be a tap."""
        nothing = [0] * len(self.kernel)
        if self.adjoint:
            return convolution(data, weight, self.stride, nothing, self.dilation, True, nothing, self.groups)
        around = [before for before, _ in pads]
        if any(before != after or before < 0 for before, after in pads):
            data, around = torch.constant_pad_nd(data, [n for pair in reversed(pads) for n in pair]), nothing
        return convolution(data, weight, self.stride, around, self.dilation, False, nothing, self.groups)

    # Images in full

    def _unrepeated(self, block: Block) -> tuple[Block, Shape]:
        """Without the repetitions of nearest upsampling in every direction, and how many they were.

        They show as inner axis factors along which the numbers do not vary in memory: a dry run does not see them.
        """
        # With strides or dilation, taps do not fall on whole repetitions.
        plain = self.groups == 1 and not self.adjoint and set(self.stride) == set(self.dilation) == {1}
        if isinstance(block.data, CostModel) or not plain:
            return block, ()
        data, old = block.tensor, block.layout
        last = [(d, len(axes) - 1) for d, axes in enumerate(old.primal_axes) if d > 1 and len(axes) > 1]
        places = [axis_of(old, label) for label in last]
        repeats = [axis for axis in places if axis is not None and data.stride(axis) == 0]
        times = tuple(data.shape[axis] for axis in repeats)
        if len(repeats) < len(self.kernel) or any(n % s for n, s in zip(self.y[2:], times, strict=True)):
            return block, ()
        for axis in sorted(repeats, reverse=True):
            data = data.select(axis, 0)
        primal_axes = (*old.primal_axes[:2], *(axes[:-1] for axes in old.primal_axes[2:]))
        return Block.of(replace(old, primal_axes=primal_axes), data, owned=False), times

    def _in_full(self, block: Block, times: Shape) -> Block:
        """The map on vectors in full, stacked in the batch; ``times``: how often each pixel is repeated first."""
        old, (inner, outer) = block.layout, self.shapes
        stack = Stack(old.numel // math.prod(old.shape[1:]), inner[1:], outer[1:])
        phases = self._phases(times)
        counts = [t.phases for t in phases] or [1] * len(self.kernel)
        grid = [(n // count, count) for n, count in zip(outer[2:], counts, strict=True)]
        dense = [tuple(DenseAxis(n) for n in sizes if n != 1) for sizes in ((outer[1],), *grid)]
        new = replace(old, primal_axes=(old.primal_axes[0], *dense))
        if isinstance(block.data, CostModel):
            self._charge(block.data, stack, phases)
            return Block(new, block.data)
        out = self._convolved(stacked(block.tensor, old, stack.lead), phases)
        lead = new.sizes[: len(new.sizes) - sum(map(len, dense))]
        return Block.of(new, out.unflatten(0, lead or (1,)).reshape(new.sizes))

    def _convolved(self, data: Tensor, phases: Sequence[Taps]) -> Tensor:
        """Images ``(n, channels, *space)`` → ``(n, channels, *space)``, by phases ``(…, places, phases, …)``."""
        inner, outer = self.shapes
        if phases:
            return self._by_phases(data, phases)
        if self.groups == 1 and set(self.kernel) == {1} and not any(self.padding):
            return self._of_single_pixels(data)
        # Output padding: what the smallest x that gives y lacks to the x of the model.
        rest = [
            n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) if self.adjoint else 0
            for n, m, s, p, d, k in zip(
                outer[2:], inner[2:], self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        ]
        weight = self.weight.tensor
        return convolution(data, weight, self.stride, self.padding, self.dilation, self.adjoint, rest, self.groups)

    def _by_phases(self, data: Tensor, phases: Sequence[Taps]) -> Tensor:
        """Images ``(n, channels, *space)`` → ``(n, channels, places, phases, …)``."""
        weight = self.weight.tensor.transpose(0, 1) if self.adjoint else self.weight.tensor
        nothing, one = [0] * len(phases), [1] * len(phases)

        def convolve(data: Tensor, filters: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
            return convolution(data, filters, stride, padding, one, False, nothing, 1)

        places = tuple(n // t.phases for n, t in zip(self.shapes[1][2:], phases, strict=True))
        return by_phases(data, weight, phases, places, convolve)

    def _of_single_pixels(self, data: Shaped[Tensor, "n inner *space"]) -> Shaped[Tensor, "n outer *images"]:
        """A kernel of one tap: a matrix product for the pixels that it strides over, zeros for the others."""
        # With output padding there may be pixels at the end that none strides over.
        strides = zip(self.stride, self.y[2:], strict=True)
        strided = (slice(None), *(slice(0, s * (n - 1) + 1, s) for s, n in strides))
        weight = self.weight.tensor.flatten(1)
        data = data.movedim(1, -1)
        if not self.adjoint:
            return (data[strided] @ weight.t()).movedim(-1, 1)
        out = data.new_zeros(data.shape[0], *self.x[2:], weight.shape[1])
        out[strided] = data @ weight
        return out.movedim(-1, 1)

    def _phases(self, times: Shape) -> list[Taps]:
        """What each direction does where the convolution goes by phases; nothing where it does not.

        Args:
            times: how often each pixel is repeated first.
        """
        plain = self.groups == 1 and set(self.dilation) == {1} and (self.adjoint or set(self.stride) == {1})
        finer = times or (self.stride if self.adjoint else (1,) * len(self.stride))
        if not plain or (set(self.kernel) == {1} and not times):
            return []
        # Places of the coarse grid in each direction; 0 where the grid does not divide the result.
        places = [n // s if n % s == 0 else 0 for n, s in zip(self.shapes[1][2:], finer, strict=True)]
        count = math.prod(finer) * self.shapes[1][1]
        fits = (b for b in _BLOCKS if b ** len(places) * count <= _LANES and all(n % b == 0 and n > b for n in places))
        block = next(fits, 1)
        if not all(places) or (not times and (count > _LANES or block * max(finer) == 1)):
            return []
        taps_of = transposed if self.adjoint else repeated
        return [taps_of(k, s, block, p) for k, s, p in zip(self.kernel, finer, self.padding, strict=True)]

    def _charge(self, cost: CostModel, stack: Stack, phases: Sequence[Taps]) -> None:
        lead, inner, outer = stack
        places = math.prod((inner if self.adjoint else outer)[1:])
        kernel, channels = math.prod(self.kernel), (inner[0] // self.groups, outer[0] // self.groups)
        if phases:
            count = math.prod(t.phases for t in phases)
            places, kernel = math.prod(outer[1:]) // count, math.prod(t.width for t in phases)
            channels = (inner[0], outer[0] * count)
        flops = 2.0 * lead * places * kernel * channels[0] * channels[1] * self.groups
        cost.convolve(flops, lead * (math.prod(inner) + math.prod(outer)), channels, self.adjoint and not phases)


def _bands(layout: Layout) -> list[BandedAxis]:
    """The directions that are banded as a whole."""
    return [axes[0] for axes in layout.primal_axes[2:] if len(axes) == 1 and isinstance(axes[0], BandedAxis)]
