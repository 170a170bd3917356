"""The step of a finite difference: how large rounding noise and truncation are, and their balance.

A central difference with step h has two errors: noise ~ η / h, from rounding in f, and a bias that grows with h, as h²
where f is smooth, by jumps where a kink (ReLU) comes into reach. Both are estimated from the changes between
neighbouring steps, so that no order is assumed for the bias. A change counts as bias only where it exceeds the noise.

    step_scale ─→ trial_steps ─→ difference quotients ─→ judge ─→ Trials ─┬→ best_columns    few columns: each its best
                                                                          └→ choose_step     many: a Pilot's one factor

Errors are computed in float64, whatever the dtype of f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class Pilot:
    """What the pilot columns showed.

    Args:
        factor: step in units of each coordinate's scale.
        noise: η: the rounding error of a column is ``noise / step``.
        bias: truncation error of a column at the chosen step, as a fraction of its norm.
        curve: second difference over step, as a fraction of the column's norm, typical at that step.
    """

    factor: float
    noise: Shaped[Tensor, "batch"]
    bias: float
    curve: float


def step_scale(
    point: Shaped[Tensor, "batch n_in"],
) -> tuple[Shaped[Tensor, "batch n_in"], Shaped[Tensor, "batch n_in"]]:
    """The scale of each coordinate in each sample, and the most that it could be.

    The scale is the larger of the value and the coordinate's root mean square over samples; where both
    are zero the sample's own root mean square, and 1 for a sample of zeros. A coordinate may be small
    by chance or by nature; the second result is its scale if it is by chance.
    """
    finite = torch.where(point.isfinite(), point, torch.zeros_like(point))
    over_samples = finite.square().mean(0, keepdim=True).sqrt()
    of_sample = finite.square().mean(1, keepdim=True).sqrt()
    of_sample = torch.where(of_sample > 0, of_sample, torch.ones_like(of_sample))
    own = torch.maximum(finite.abs(), over_samples)
    scale = torch.where(own > 0, own, of_sample)
    return scale, torch.maximum(scale, of_sample)


def column_norms(block: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch k"]:
    """The Euclidean norm of each column."""
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def trial_steps(
    scale: Shaped[Tensor, "batch k"], most: Shaped[Tensor, "batch k"], a_decade: int
) -> Shaped[Tensor, "steps batch k"]:
    """Ascending steps for each sample and column, float64, ``a_decade`` of them for each factor of ten.

    They begin where noise dominates, at a hundredth of eps^(1/3) of the scale: eps^(1/3) balances rounding and h² of a
    smooth f. They end at twice the most that the scale could be, which suits a linear or piecewise linear f.
    """
    eps = torch.finfo(scale.dtype).eps
    # Not below what moves a coordinate at all, which in bfloat16 is the larger.
    least: Tensor = max(eps ** (1 / 3) / 100, 4 * eps) * scale.double()
    decades = torch.log10(2 * most.double() / least)
    count = math.ceil(float(decades.max()) * a_decade) + 1
    along = torch.linspace(0, 1, count, dtype=torch.float64, device=scale.device).reshape(-1, 1, 1)
    return least * 10 ** (along * decades)


@dataclass(frozen=True)
class Trials:
    """Some columns at many steps, and the error to expect of each.

    Args:
        steps: of each sample and column, ascending.
        quotients: difference quotients.
        bends: norms of the second differences.
        noise, bias: expected errors of the columns.
        eta: noise of each sample's columns, times the step.
    """

    steps: Shaped[Tensor, "steps batch k"]
    quotients: Shaped[Tensor, "steps batch n_out k"]
    bends: Shaped[Tensor, "steps batch k"]
    noise: Shaped[Tensor, "steps batch k"]
    bias: Shaped[Tensor, "steps batch k"]
    eta: Shaped[Tensor, "batch"]

    @property
    def squared(self) -> Shaped[Tensor, "steps batch k"]:
        """Squared errors, infinite where the quotient is not finite."""
        total = self.noise.square() + self.bias.square()
        return torch.where(total.isfinite(), total, torch.full_like(total, torch.inf))


def judge(
    steps: Shaped[Tensor, "steps batch k"],
    quotients: Shaped[Tensor, "steps batch n_out k"],
    bends: Shaped[Tensor, "steps batch k"],
    floor: Shaped[Tensor, "batch"],
) -> Trials:
    """Expected errors of columns computed at many steps.

    Args:
        steps: ascending.
        quotients: of these steps.
        bends: norms of the second differences.
        floor: the least that η can be.
    """
    change = torch.linalg.vector_norm(quotients[1:] - quotients[:-1], dim=2)
    eta = torch.maximum(_noise_level(change, steps), floor)
    noise = eta.reshape(1, -1, 1) / steps
    bias = _bias(change, noise, steps)
    # A step may leave the domain of f, as below zero under a logarithm: its bias is infinite.
    outside = ~torch.linalg.vector_norm(quotients, dim=2).isfinite()
    return Trials(steps, quotients, bends, noise, bias.masked_fill(outside, torch.inf), eta)


def best_columns(trials: Trials) -> tuple[Shaped[Tensor, "batch n_out k"], float]:
    """For each sample and column the quotient with the least expected error, and the sum of the squared errors.

    Quotients of smaller steps are averaged in: their rounding errors are independent, and their bias is less. Their
    weights are the inverse variances of their noise η / h, which are proportional to h².
    """
    squared = trials.squared
    least, which = squared.min(dim=0)
    index = torch.arange(len(squared), device=which.device).reshape(-1, 1, 1)
    averaged = (index <= which) & torch.linalg.vector_norm(trials.quotients, dim=2).isfinite()
    # Where none is finite, J is not either.
    weight = torch.where(averaged | (index == which), trials.steps.square(), torch.zeros_like(trials.steps))
    weight = (weight / weight.sum(0)).unsqueeze(2)
    columns = torch.where(weight > 0, weight * trials.quotients, torch.zeros_like(trials.quotients)).sum(0)
    return columns, float(least[least.isfinite()].sum())


def choose_step(trials: Trials, scale: Shaped[Tensor, "batch k"]) -> Pilot:
    """One factor of the scale for all columns: that with the least expected error.

    Where few columns have a large bias, it is not counted in full: they are going to be computed again with a smaller
    step (``CoordinateBlock.shrink``).
    """
    squared, noise = trials.squared, trials.noise.square()
    spoilt = (trials.bias.square() > defaults.MEND_RATIO**2 * noise).double().mean(dim=(1, 2), keepdim=True)
    mended = torch.minimum(squared, defaults.MEND_SHRINK**2 * noise)
    expected = torch.where(spoilt < defaults.MEND_SHARE, mended, squared)
    best = int(expected.mean(dim=(1, 2)).argmin())
    norms = torch.linalg.vector_norm(trials.quotients[best], dim=1)
    curve = float((trials.bends[best] / trials.steps[best]).median()) / (float(norms.median()) or 1.0)
    share = float((trials.bias[best] / norms.clamp(min=1e-300)).nan_to_num(0.0, 0.0, 0.0).median())
    refined = _refined(trials, best)
    factor = float((trials.steps[best] / scale).median())
    return Pilot(factor * refined, trials.eta, share * refined**2, curve * refined)


def _noise_level(change: Tensor, steps: Tensor) -> Tensor:
    """η of each sample, ``(batch,)``, from the changes at the smallest steps, where rounding dominates.

    ``change`` is ``(steps - 1, batch, k)``, between neighbouring ``steps``, ``(steps, batch, k)``.
    """
    # The change between two quotients has the variance η² (1/h₁² + 1/h₂²): their noise is independent.
    levels = change / (steps[:-1].reciprocal().square() + steps[1:].reciprocal().square()).sqrt()
    return levels[:2].transpose(0, 1).flatten(1).nan_to_num(0.0, 0.0, 0.0).median(dim=1).values


def _bias(change: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The bias of each step, ``(steps, batch, k)``: changes on the way up to it, or a share of the change to the next.

    For a smooth f the change from h to r h is r² − 1 times the bias at h.
    """
    expected = (noise[:-1].square() + noise[1:].square()).sqrt()
    none = torch.zeros_like(change)
    # ``below`` accumulates the changes up to a step. A false one would count for every larger step, so its threshold is
    # higher: much higher, or lower where the next change is large too, as after a kink or a curve, but not by rounding.
    confirmed = torch.cat(
        [change[1:] > defaults.STANDS_OUT * expected[1:], torch.ones_like(change[:1], dtype=torch.bool)]
    )
    is_bias = change > torch.where(confirmed, defaults.STANDS_FAR_OUT, defaults.STANDS_BEYOND_DOUBT) * expected
    jumps = torch.where(is_bias, change, none)
    below = torch.cat([torch.zeros_like(noise[:1]), jumps.cumsum(0)])
    drift = torch.where(change > defaults.STANDS_OUT * expected, change, none)
    above = torch.cat([drift / ((steps[1:] / steps[:-1]).square() - 1), torch.zeros_like(noise[:1])])
    return torch.maximum(below, above)


def _refined(trials: Trials, best: int) -> float:
    """The factor m from the best grid step to the step where noise² / m² + bias² m⁴ is least; 1 unless bias ~ h².

    The derivative in m vanishes at m⁶ = noise² / (2 bias²).
    """
    quotients = trials.quotients[best : best + 3]
    if len(quotients) < 3:
        return 1.0
    ratio = float((trials.steps[best + 1] / trials.steps[best]).median()) ** 2
    changes = torch.linalg.vector_norm(quotients[1:] - quotients[:-1], dim=2)
    change_now, change_next = (float(change.square().mean().sqrt()) for change in changes)
    level = float(trials.noise[best].square().mean().sqrt())
    # Of a bias ~ h² each change is ``ratio`` times the one before; half of that is accepted as smooth.
    smooth = change_next > 0.5 * ratio * change_now and change_now > level
    if not smooth or not math.isfinite(change_next):
        return 1.0
    bias = change_now / (ratio - 1)
    most: float = ratio**0.25  # half the way to the neighbouring steps, beyond which those would have been better
    balance: float = (level**2 / (2 * bias**2)) ** (1 / 6)
    return min(max(balance, 1 / most), most)
