"""Jz by central differences of f: what J and its products are compared with where there is no backward pass.

A difference with step h is off by h² times the third derivative, and by rounding divided by h. So quotients are taken
at many steps, and the one is used whose neighbour is nearest and that no smaller step contradicts (``_limit``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.autograd.seeds import gaussian
from jaccli.linear_maps.agreement import tolerance
from jaccli.linear_maps.norms import norm
from jaccli.linearization.float64_copy import Twin, twin
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.torch_errors import reraise_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Steps relative to each sample's size: the largest, the ratio of neighbours, and the smallest, which is 8 units in the
# last place, but never less than 1e-13.
LARGEST, RATIO, LEAST_UNITS, LEAST = 0.25, 16.0, 8, 1e-13
# Further steps where z is tiny: lengths of the step itself.
BEYOND = (1e-1, 1e-2, 1e-3)
# Tolerance of J against a quotient: AMPLIFIED times the relative rounding error of the values, plus SURE times the
# quotient's own error.
AMPLIFIED, SURE = 16.0, 3.0
# From this error on, relative to Jz, a difference cannot judge a sample.
UNSETTLED = 0.1


@dataclass(frozen=True)
class Verdict:
    """What differences say of a claimed Jz.

    Args:
        relative_error: of the claim, where it is more than rounding and the differences' own error; else None.
        undecided_samples: how many they cannot judge: a kink at the point, or digits that f does not have.
    """

    relative_error: float | None
    undecided_samples: int


def unchecked(what: str, count: int, batch: int) -> str:
    """The warning that ``what`` could not be checked for ``count`` of ``batch`` samples."""
    return (
        f"{what} of {count} of {batch} samples could not be checked: there is no backward pass, "
        "and differences do not settle (a kink, too few digits, or no points nearby)"
    )


@dataclass
class Differences:
    """Central differences of f along a random z, at steps that shrink until quotients agree or rounding dominates.

    f is a float64 copy of the model where such a copy has the same values. Cost: the copy, and up to 30 forward passes.

    Args:
        linear: f at the point.
        moved: the samples for which z is not zero; with all of them it is the whole batch's Jz.
    """

    linear: LinearizedFunction
    moved: slice = field(default_factory=lambda: slice(None))

    @cached_property
    def z(self) -> Shaped[Tensor, "batch n_in"]:
        """A random tangent, ``(batch, n_in)``, of the size of each sample: all columns of J count alike."""
        point = self.linear.point.reshape(self.linear.batch, -1)
        drawn = gaussian(point.shape, 2, point)
        size = norm(torch.where(point.isfinite(), point, 0), (1,)) / point.shape[1] ** 0.5
        z = torch.zeros_like(point)
        z[self.moved] = (drawn * torch.where(size > 0, size, 1).to(point)[:, None])[self.moved]
        return z

    def judge(self, image: Shaped[Tensor, "batch n_out"], usual: Shaped[Tensor, "batch"] | None = None) -> Verdict:
        """Compare a claimed Jz with the differences.

        Args:
            image: the claim, ``(batch, n_out)``.
            usual: the size that Jz has on the mean over z, ``(batch,)``, where J is known: by chance Jz may be smaller.
        """
        if self._slope is None:
            return Verdict(None, len(image[self.moved]))
        quotient, error, finite = (item[self.moved] for item in self._slope)
        claim = torch.where(finite, image.detach().double()[self.moved], 0)
        gap, size = norm(claim - quotient, (1,)), torch.fmax(norm(claim, (1,)), norm(quotient, (1,)))
        size = size if usual is None else torch.fmax(size, usual[self.moved].to(size))
        rounding = tolerance(self._twin.own_eps) + AMPLIFIED * self._twin.dtype_error[self.moved]
        # Written as "not small", so that a gap of NaN counts as wrong.
        wrong = ~(gap <= SURE * error + rounding * size) & finite.any(1)
        settled = (SURE * error <= UNSETTLED * size) | (size == 0)
        worst = (gap / size)[wrong].nan_to_num(math.inf)
        return Verdict(float(worst.max()) if worst.numel() else None, int((~settled & ~wrong & finite.any(1)).sum()))

    @cached_property
    def _slope(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Quotients ``(batch, n_out)``, errors ``(batch,)``, and which elements are finite ``(batch, n_out)``.

        None where f takes fewer than two of the steps.
        """
        twin = self._twin
        z, finite = self.z.to(twin.point).reshape(twin.point.shape), twin.value.isfinite()
        # Elements that are not finite at the point have no slope; as zeros they add nothing to norms.
        middle = torch.where(finite, twin.value, 0)
        size, trials = norm(middle, (1,)), []
        for step in _steps(torch.finfo(twin.point.dtype).eps, float(z.abs().max())):
            ends = [_value_at(twin.f, twin.point + sign * step * z, finite) for sign in (1, -1)]
            if ends[0] is None or ends[1] is None:
                continue
            quotient, kink = (ends[0] - ends[1]) / (2 * step), (ends[0] + ends[1] - 2 * middle) / step
            # Rounding of both ends, and where f is not a float64 copy, what its own dtype loses in them.
            noise = (2 * twin.eps + twin.dtype_error * (not twin.is_copy)) * size + twin.eps * norm(quotient, (1,))
            trials.append(_Trial(quotient, kink, noise / step, step))
        if len(trials) < 2:
            return None
        return *_limit(trials), finite

    @cached_property
    def _twin(self) -> Twin:
        return twin(self.linear)


@dataclass(frozen=True)
class _Trial:
    """One step.

    Args:
        quotient: (f(x + hz) − f(x − hz)) / 2h, ``(batch, n_out)``.
        kink: the difference of the one-sided slopes, ``(batch, n_out)``.
        noise: rounding of the quotient, ``(batch,)``.
        step: h.
    """

    quotient: Tensor
    kink: Tensor
    noise: Tensor
    step: float


def _limit(trials: list[_Trial]) -> tuple[Tensor, Tensor]:
    """For each sample the quotient whose neighbour is nearest and that no smaller step contradicts; and its error.

    Smaller steps contradict a quotient where they agree among themselves. Noise of unknown origin does not agree.

    Returns:
        Quotients ``(batch, n_out)`` and errors ``(batch,)``.
    """
    quotients, noise = torch.stack([t.quotient for t in trials]), torch.stack([t.noise for t in trials])
    change = torch.full_like(noise, math.inf)
    change[1:] = norm(quotients[1:] - quotients[:-1], (2,))
    # The first trial has no larger neighbour, and so an infinite error: it is never the best.
    error, candidate = (change + noise).nan_to_num(math.inf), torch.ones_like(noise, dtype=torch.bool)
    samples = torch.arange(noise.shape[1], device=noise.device)
    for _ in trials:
        best = torch.where(candidate, error, math.inf).argmin(0)
        away = norm(quotients - quotients[best, samples], (2,))
        # Trials go from large steps to small ones, so that a later one has a smaller step.
        later = torch.arange(len(trials), device=noise.device)[:, None] > best
        against = later & (away > SURE * (error[best, samples] + error))
        if not bool(against.any()):
            break
        first = torch.where(against.any(0), against.int().argmax(0), 0)  # contradicted: only smaller steps are left
        candidate &= torch.arange(len(trials), device=noise.device)[:, None] >= first
    return quotients[best, samples], error[best, samples] + _kinks(trials, best, samples)


def _kinks(trials: list[_Trial], best: Tensor, samples: Tensor) -> Tensor:
    """By how much the one-sided slopes differ in the limit, ``(batch,)``. What curvature adds shrinks with the step."""
    kinks, noise = torch.stack([t.kink for t in trials]), torch.stack([t.noise for t in trials])
    steps = torch.tensor([t.step for t in trials], dtype=torch.float64, device=best.device)
    near = (best + 1).clamp(max=len(trials) - 1)
    ratio = (steps[near - 1] / steps[near])[:, None]
    # Richardson extrapolation to a step of 0: what curvature adds to the difference of slopes is linear in the step.
    limit = (ratio * kinks[near, samples] - kinks[near - 1, samples]) / (ratio - 1)
    return (norm(limit, (1,)) - 4 * noise[near, samples]).clamp(min=0)


def _steps(eps: float, size: float) -> list[float]:
    """Steps from large to small, as multiples of z, whose largest element is ``size``, which may be tiny."""
    least = max(LEAST, LEAST_UNITS * eps)
    count = max(3, math.ceil(math.log(LARGEST / least, RATIO)) + 1)
    beyond = [step / size for step in BEYOND if size and step / size > LARGEST]
    return beyond + [LARGEST * (least / LARGEST) ** (k / (count - 1)) for k in range(count)]


def _value_at(
    f: Callable[[Tensor], Tensor], point: Shaped[Tensor, "batch *source"], finite: Shaped[Tensor, "batch n_out"]
) -> Shaped[Tensor, "batch n_out"] | None:
    """f at a point near by, zero where it was not ``finite``: float64 ``(batch, n_out)``.

    None where the model refuses the point.
    """
    try:
        with torch.no_grad():
            value = f(point)
    except Exception as error:
        reraise_out_of_memory(error)
        return None
    if value.numel() != finite.numel():
        return None
    return torch.where(finite, value.reshape(finite.shape).double(), 0)
