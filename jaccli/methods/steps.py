"""The step of a finite difference: how large rounding noise and truncation are, and their balance.

A central difference with step h errs by noise ~ η / h, from rounding in f, and by a bias that grows
with h: as h² where f is smooth, by jumps where a kink (ReLU) comes into reach. Both are estimated from the
changes between neighbouring steps, so no order is assumed for the bias. A change counts as bias only
where it stands out of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli import defaults


@dataclass(frozen=True)
class Pilot:
    """What the pilot columns showed.

    Args:
        factor: step in units of each coordinate's scale.
        noise: ``(batch,)`` η: the rounding error of a column is ``noise / step``.
        bias: truncation error of a column at the chosen step, as a fraction of its norm.
        curve: second difference over step, as a fraction of the column's norm, typical at that step.
    """

    factor: float
    noise: Tensor
    bias: float
    curve: float


def step_scale(point: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of each coordinate in each sample, ``(batch, n_in)``, and the most it could be.

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


def column_norms(block: Tensor) -> Tensor:
    """``(batch, n_out, k)`` → ``(batch, k)``."""
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def trial_steps(scale: Tensor, most: Tensor, a_decade: int) -> Tensor:
    """Ascending steps for each sample and column, ``(steps, batch, k)``, float64.

    From where noise rules, a hundredth of eps^(1/3) of the scale, to twice the most that the scale could
    be: a linear or piecewise linear f wants that much.
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
        steps: ``(steps, batch, k)``, ascending.
        quotients: ``(steps, batch, n_out, k)`` difference quotients.
        bends: ``(steps, batch, k)`` norms of the second differences.
        noise, bias: ``(steps, batch, k)`` expected errors.
        eta: ``(batch,)``.
    """

    steps: Tensor
    quotients: Tensor
    bends: Tensor
    noise: Tensor
    bias: Tensor
    eta: Tensor

    @property
    def squared(self) -> Tensor:
        """``(steps, batch, k)`` squared errors, infinite where the quotient is not finite."""
        total = self.noise.square() + self.bias.square()
        return torch.where(total.isfinite(), total, torch.full_like(total, torch.inf))


def judge(steps: Tensor, quotients: Tensor, bends: Tensor, floor: Tensor) -> Trials:
    """Expected errors of columns computed at many steps.

    Args:
        steps: ``(steps, batch, k)``, ascending.
        quotients: ``(steps, batch, n_out, k)``.
        bends: ``(steps, batch, k)`` norms of the second differences.
        floor: ``(batch,)`` the least that η can be.
    """
    change = torch.linalg.vector_norm(quotients[1:] - quotients[:-1], dim=2)
    eta = torch.maximum(_noise_level(change, steps), floor)
    noise = eta.reshape(1, -1, 1) / steps
    bias = _bias(change, noise, steps)
    # A step that leaves the domain of f, as below zero under a logarithm.
    outside = ~torch.linalg.vector_norm(quotients, dim=2).isfinite()
    return Trials(steps, quotients, bends, noise, bias.masked_fill(outside, torch.inf), eta)


def best_columns(trials: Trials) -> tuple[Tensor, float]:
    """For each sample and column the quotient with the least expected error, and the sum of their squares.

    Quotients of smaller steps are averaged in, each with the weight of its noise: rounding is another at each,
    and their bias is less.
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


def choose_step(trials: Trials, scale: Tensor) -> Pilot:
    """One factor of the scale ``(batch, k)`` for all columns: that with the least expected error.

    Where a few columns have a bias that stands out, it is not counted in full: they are going to be corrected.
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
    """η of each sample, ``(batch,)``, with noise η / h, from the smallest steps, where rounding dominates.

    ``change`` is ``(steps - 1, batch, k)``, between neighbouring ``steps``, ``(steps, batch, k)``.
    """
    levels = change / (steps[:-1].reciprocal().square() + steps[1:].reciprocal().square()).sqrt()
    return levels[:2].transpose(0, 1).flatten(1).nan_to_num(0.0, 0.0, 0.0).median(dim=1).values


def _bias(change: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The bias of each step, ``(steps, batch, k)``: changes on the way up to it, or a share of the change to the next.

    For a smooth f the change from h to r h is r² − 1 times the bias at h.
    """
    expected = (noise[:-1].square() + noise[1:].square()).sqrt()
    none = torch.zeros_like(change)
    # A false alarm on the way up would spoil every larger step, so more is asked for there: much more, or a
    # second change right after it, which a kink or a curve brings and rounding does not.
    again = torch.cat([change[1:] > defaults.STANDS_OUT * expected[1:], torch.ones_like(change[:1], dtype=torch.bool)])
    far = change > torch.where(again, defaults.STANDS_FAR_OUT, defaults.STANDS_BEYOND_DOUBT) * expected
    jumps = torch.where(far, change, none)
    below = torch.cat([torch.zeros_like(noise[:1]), jumps.cumsum(0)])
    drift = torch.where(change > defaults.STANDS_OUT * expected, change, none)
    above = torch.cat([drift / ((steps[1:] / steps[:-1]).square() - 1), torch.zeros_like(noise[:1])])
    return torch.maximum(below, above)


def _refined(trials: Trials, best: int) -> float:
    """The factor m from the best grid step to the step where noise² / m² + bias² m⁴ is least; 1 unless bias ~ h²."""
    quotients = trials.quotients[best : best + 3]
    if len(quotients) < 3:
        return 1.0
    ratio = float((trials.steps[best + 1] / trials.steps[best]).median()) ** 2
    changes = torch.linalg.vector_norm(quotients[1:] - quotients[:-1], dim=2)
    now, following = (float(change.square().mean().sqrt()) for change in changes)
    level = float(trials.noise[best].square().mean().sqrt())
    smooth = following > 0.5 * ratio * now and now > level
    if not smooth or not math.isfinite(following):
        return 1.0
    bias = now / (ratio - 1)
    most: float = ratio**0.25
    balance: float = (level**2 / (2 * bias**2)) ** (1 / 6)
    return min(max(balance, 1 / most), most)
