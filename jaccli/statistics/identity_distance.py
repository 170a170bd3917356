"""How far a square J is from the identity: exact figures of one sample, and their summary over samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jaccli.linear_maps.extreme_singular_values import spectral_norm
from jaccli.linear_maps.norms import norm, power_of_two
from jaccli.linear_maps.square import check_square
from jaccli.names import NORMS
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


def deviation(matrix: Shaped[Tensor, "n_out n_in"]) -> dict[str, float]:
    """The distance of one sample's J from the identity, by several norms.

    With D = J − I: ‖D‖_F, ‖D‖_F/√n, ‖D‖₂, Σ|D|, max|D|, tr J, α = tr J/n and α²n/‖J‖_F², which is the
    share of ‖J‖_F² that lies along the identity: NaN of J = 0. All are NaN where an entry is not finite.

    Args:
        matrix: J; the figures are computed in float64 on the CPU.

    Cost: a largest singular value, the rest O(n²).

    Raises:
        UsageError: not square.

    Example:
        >>> figures = deviation(torch.diag(torch.tensor([4.0, 1.0])))
        >>> figures["frobenius"], figures["trace"], figures["alpha"]
        (3.0, 5.0, 2.5)
    """
    n_out, n_in = matrix.shape
    check_square(n_out, n_in, remedy=worded("choose another {source} or {target}; {layer_sizes}"))
    j = matrix.detach().to("cpu", torch.float64)
    if not bool(j.isfinite().all()):
        return dict.fromkeys(NORMS, math.nan)
    d = j - torch.eye(n_in, dtype=torch.float64)
    frobenius, trace = float(norm(d)), float(j.trace())
    unit = j / power_of_two(j)  # squares of its entries neither overflow nor vanish
    squares = float(unit.square().sum())
    return {
        "frobenius": frobenius,
        "relative": frobenius / math.sqrt(n_in),
        "spectral": spectral_norm(d),
        "l1": float(d.abs().sum()),
        "max_abs": float(d.abs().max()),
        "trace": trace,
        "alpha": trace / n_in,
        "identity_share": min(float(unit.trace()) ** 2 / n_in / squares, 1.0) if squares else math.nan,
    }


def summary(samples: Sequence[dict[str, float]], fields: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of the population; inf if a value is), least and greatest of each field."""
    table: dict[str, dict[str, float]] = {}
    for name in fields:
        values = np.array([sample[name] for sample in samples], dtype=np.float64)
        size = float(power_of_two(torch.from_numpy(values)))
        with np.errstate(all="ignore"):  # of inf − inf
            unit = values / size
            beyond = bool(np.isinf(values).any()) and not np.isnan(values).any()
            table[name] = {
                "mean": float(unit.mean() * size),
                "std": math.inf if beyond else float(unit.std() * size),
                "min": float(values.min()),
                "max": float(values.max()),
            }
    return table
