"""The step of a finite difference: how large rounding noise and truncation are, and their balance.

A central difference with step h errs by noise ~ η / h, from rounding in f, and by a bias that grows
with h, ~ h² where f is smooth and ~ h^½ in norm where f has kinks (ReLU). Both are read off differences
between neighbouring steps, so no order is assumed for the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pilot:
    """What the pilot columns showed.

    Args:
        factor: step in units of each coordinate's scale.
        noise: rounding error of a column's difference f(x+h) − f(x−h), over 2; in units of f.
        bias: typical truncation error of a column at the chosen step.
        curve: second difference over step, as a fraction of the column's norm, typical at that step.
    """

    factor: float
    noise: float
    bias: float
    curve: float

    def bend(self, norms: Tensor) -> Tensor:
        """What a second difference over its step usually is for columns of these norms."""
        return self.curve * norms.double()


def step_scale(point: Tensor) -> Tensor:
    """The scale of each coordinate in each sample, ``(batch, n_in)``: what a relative step is relative to.

    The larger of the value and the coordinate's root mean square over samples; where both vanish, or
    one sample has to speak for itself, a share of that sample's root mean square; 1 for a zero sample.
    """
    finite = torch.where(point.isfinite(), point, torch.zeros_like(point))
    over_samples = finite.square().mean(0, keepdim=True).sqrt()
    of_sample = finite.square().mean(1, keepdim=True).sqrt()
    of_sample = torch.where(of_sample > 0, of_sample, torch.ones_like(of_sample))
    share = 0.3 if point.shape[0] < 4 else 0.01
    return torch.maximum(torch.maximum(finite.abs(), over_samples), share * of_sample)


def column_norms(block: Tensor) -> Tensor:
    """``(batch, n_out, k)`` → ``(batch, k)``."""
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def choose_step(factors: list[float], quotients: Tensor, bends: Tensor, scale: Tensor) -> Pilot:
    """The factor with the least estimated error over the pilot columns.

    Args:
        factors: ascending steps, in units of the scale.
        quotients: ``(steps, batch, n_out, k)`` difference quotients, float64.
        bends: ``(steps, batch, k)`` norms of the second differences.
        scale: ``(batch, k)``.
    """
    steps = torch.tensor(factors, dtype=torch.float64, device=scale.device).reshape(-1, 1, 1) * scale
    change = torch.linalg.vector_norm(quotients[1:] - quotients[:-1], dim=2)
    noise = _noise_level(change, steps)
    floor = noise / steps
    drift = (change.square() - floor[1:].square() - floor[:-1].square()).clamp(min=0).sqrt()
    bias = torch.cat([torch.zeros_like(steps[:1]), drift.cumsum(0)])
    total = (floor.square() + bias.square()).mean(dim=(1, 2))
    total = torch.where(total.isfinite(), total, torch.full_like(total, torch.inf))
    best = int(total.argmin())
    norms = torch.linalg.vector_norm(quotients[best], dim=1)
    curve = (bends[best] / steps[best]).median() / norms.median().clamp(min=torch.finfo(torch.float64).tiny)
    return Pilot(factors[best], noise, float(bias[best].square().mean().sqrt()), float(curve))


def _noise_level(change: Tensor, steps: Tensor) -> float:
    """η with noise η / h, from the smallest steps, where rounding rules; the median ignores kinks."""
    levels = change / (steps[:-1].reciprocal().square() + steps[1:].reciprocal().square()).sqrt()
    smallest = levels[:2].flatten(1).median(dim=1).values
    return float(smallest.min())
