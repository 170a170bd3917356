"""Standard errors of figures that are computed from means over probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped

# By name, of each sample: ``(…, batch)``.
NamedFigures = Mapping[str, Tensor]
# 95 % of a normal distribution lie within this many standard deviations.
NORMAL_95 = 1.959964
# Samples in the repr of an estimate.
SHOWN = 4


@dataclass(frozen=True)
class Estimate:
    """A figure of every sample and its standard error.

    ``value ± 1.96 stderr`` holds the true value in 95 % of cases: where there are few probes, the standard error is
    wider than the plain one by Student's factor.

    Args:
        value: float64, on the CPU.
        stderr: likewise; 0 where the value is exact.
    """

    value: Shaped[Tensor, "batch"]
    stderr: Shaped[Tensor, "batch"]

    def __repr__(self) -> str:
        pairs = zip(self.value[:SHOWN].tolist(), self.stderr[:SHOWN].tolist(), strict=True)
        shown = [f"{value:.6g} ± {error:.2g}" for value, error in pairs]
        return f"Estimate({', '.join(shown)}{', …' * (len(self.value) > SHOWN)}; {len(self.value)} samples)"


def jackknifed(probes: Shaped[Tensor, "m batch q"], figures: Callable[[Tensor], NamedFigures]) -> dict[str, Estimate]:
    """Figures of the mean over probes, with standard errors from leaving out one probe at a time (the jackknife).

    J. W. Tukey, *Bias and confidence in not-quite large samples*, 1958. For a mean itself this is the usual standard
    error. With one probe the errors are infinite.

    Args:
        probes: the q numbers that each of m independent probes gave.
        figures: means ``(…, batch, q)`` → named figures ``(…, batch)``.

    Returns:
        By name, value and standard error of ``(batch,)`` each.

    Example:
        >>> probes = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1)
        >>> jackknifed(probes, lambda mean: {"square": mean[..., 0].square()})
        {'square': Estimate(6.25 ± 5.2; 1 samples)}
    """
    m = probes.shape[0]
    mean = probes.mean(0)
    whole = figures(mean)
    if m < 2:
        return {name: Estimate(value, torch.full_like(value, torch.inf)) for name, value in whole.items()}
    without = figures((mean * m - probes) / (m - 1))
    # Few probes: the interval of Student's distribution, expressed as a wider standard error.
    # ``scipy.stats`` has it too, and takes most of a second to import.
    from scipy.special import stdtrit

    factor = float(stdtrit(m - 1, 0.975)) / NORMAL_95
    estimates = {}
    for name, value in whole.items():
        spread = without[name] - without[name].mean(0)
        estimates[name] = Estimate(value, factor * ((m - 1) / m * spread.square().sum(0)).sqrt())
    return estimates


def within(estimate: Estimate, tolerance: float) -> bool:
    """Whether the 95 % interval of every sample is at most this share of its value to either side."""
    reach = NORMAL_95 * estimate.stderr
    return bool((reach <= tolerance * estimate.value.abs()).all())
