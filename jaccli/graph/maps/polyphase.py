"""Convolutions by phases: pixel s i + r of the result from the inputs around i, with a filter for each phase r.

The phases become channels of one ordinary convolution over the places i. It serves three cases:

* a transposed convolution of stride s, without the zeros between its inputs;
* a convolution of pixels that were repeated s times in each direction (nearest upsampling), without the repetitions:
  the filter of a phase is the sum of the taps that fall on the same input (W. Shi et al., *Is the deconvolution layer
  the same as a convolutional layer?*, 2016);
* a convolution to fewer channels than a vector unit takes at once: a block of s pixels becomes s times the channels.

Example: 3 taps a, b, c and padding 1 on inputs that are repeated twice. Result 2 i sees inputs i - 1, i, i and has the
filter (a, b + c); result 2 i + 1 sees i, i, i + 1 and has (a + b, c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Inexact, Shaped

Shape = tuple[int, ...]
# Data ``(n, channels, *space)``, filters ``(channels, channels, *kernel)``, stride, padding → convolution.
Convolution = Callable[[Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Taps:
    """One direction: what each phase of the result reads.

    Args:
        phases: number of phases.
        kernel: number of taps.
        uses: (r, q, k): phase r of place i reads input ``step`` i + q by tap k.
        step: inputs from one place to the next.
    """

    phases: int
    kernel: int
    uses: tuple[tuple[int, int, int], ...]
    step: int = 1

    @property
    def low(self) -> int:
        """The first q."""
        return min(q for _, q, _ in self.uses)

    @property
    def width(self) -> int:
        """Inputs that one place reads."""
        return max(q for _, q, _ in self.uses) - self.low + 1

    def selection(self, like: Shaped[Tensor, "..."]) -> Inexact[Tensor, "phases_times_width kernel"]:
        """A matrix of zeros and ones, from a filter's taps to those of its phases; dtype and device of ``like``."""
        chosen = np.zeros((self.phases, self.width, self.kernel))
        for r, q, k in self.uses:
            chosen[r, q - self.low, k] = 1
        return torch.from_numpy(chosen).flatten(0, 1).to(like)


def transposed(kernel: int, stride: int, block: int, padding: int) -> Taps:
    """Of a transposed convolution: tap k puts input n to pixel ``stride n + k - padding`` of the result.

    There is a phase for each pixel of ``block`` strides.
    """
    uses = (
        (r, (r + padding - k) // stride, k)
        for r in range(stride * block)
        for k in range(kernel)
        if (r + padding - k) % stride == 0
    )
    return Taps(stride * block, kernel, tuple(uses), block)


def repeated(kernel: int, times: int, block: int, padding: int) -> Taps:
    """Of a convolution after upsampling: tap k shows pixel m the pixel ``m + k - padding`` of the repeated inputs.

    There is a phase for each pixel of ``block`` repetitions.
    """
    uses = ((r, (r + k - padding) // times, k) for r in range(times * block) for k in range(kernel))
    return Taps(times * block, kernel, tuple(uses), block)


def by_phases(
    data: Inexact[Tensor, "n channels_in *space"],
    weight: Inexact[Tensor, "channels_out channels_in *kernel"],
    taps: Sequence[Taps],
    places: Shape,
    convolve: Convolution,
) -> Inexact[Tensor, "n channels_out *places_and_phases"]:
    """The convolution onto the finer grid.

    Args:
        data: images, with as many directions as there are ``taps``.
        weight: of the convolution onto the fine grid.
        taps: for each direction.
        places: of the result in each direction, divided by the number of phases.
        convolve: an ordinary convolution, see ``Convolution``.

    Returns:
        ``(n, channels out, places, phases, places, phases, …)``, in the memory of one convolution.
    """
    count = len(taps)
    filters = _filters(weight, taps)
    pads = [
        # Zeros before input 0, down to the first one that place 0 reads, and after input n - 1, up to the last one that
        # the last place reads; negative where inputs are left over.
        (-t.low, t.low + t.width + t.step * (place - 1) - n)
        for t, place, n in zip(taps, places, data.shape[2:], strict=True)
    ]
    around = [before for before, _ in pads]
    if any(before != after or before < 0 for before, after in pads):
        data, around = torch.constant_pad_nd(data, _flat(reversed(pads))), [0] * count
    out = convolve(data, filters, [t.step for t in taps], around)
    out = out.unflatten(1, (*(t.phases for t in taps), weight.shape[0]))  # channels last, as convolutions like them
    phased: Tensor = out.permute(0, 1 + count, *_flat((2 + count + d, 1 + d) for d in range(count)))
    return phased


def _filters(
    weight: Inexact[Tensor, "channels_out channels_in *kernel"], taps: Sequence[Taps]
) -> Inexact[Tensor, "phases_times_channels_out channels_in *widths"]:
    """The filters of all phases, the phases of the first direction slowest."""
    channels_out, channels_in = weight.shape[:2]
    count = len(taps)
    for t in taps:  # each direction in turn comes last
        weight = weight.movedim(2, -1) @ t.selection(weight).t()
    weight = weight.reshape(channels_out, channels_in, *_flat((t.phases, t.width) for t in taps))
    first = [2 + 2 * d for d in range(count)]
    weight = weight.permute(*first, 0, 1, *(d + 1 for d in first))
    filters: Tensor = weight.reshape(-1, channels_in, *(t.width for t in taps))
    return filters


def _flat(pairs: Iterable[tuple[int, int]]) -> list[int]:
    return [n for pair in pairs for n in pair]
