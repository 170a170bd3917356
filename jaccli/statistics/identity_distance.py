"""How far a square J is from the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import UsageError
from jaccli.linear_maps.norms import norm, power_of_two, singular_values
from jaccli.names import NORMS
from jaccli.text.wording import worded

__all__ = ["FIELDS", "NORMS", "deviation", "spectral_norm", "summary"]

FIELDS = ("frobenius", "relative", "spectral", "l1", "max_abs", "trace", "alpha", "identity_share")


def deviation(matrix: Tensor) -> dict[str, float]:
    """The contract's figures for one sample.

    With D = J − I: ‖D‖_F, ‖D‖_F/√n, ‖D‖₂, Σ|D|, max|D|, tr J, α = tr J/n and α²n/‖J‖_F², which is the
    share of ‖J‖_F² that lies along the identity: NaN of J = 0. All are NaN where an entry is not finite.

    Args:
        matrix: ``(n, n)``; the figures are taken in float64.

    Raises:
        UsageError: not square.
    """
    n_out, n_in = matrix.shape
    if n_out != n_in:
        raise UsageError(
            f"J is {n_out} x {n_in}, and only a square J can be held against the identity",
            "expected a source and a target of the same size",
            worded("choose another {source} or {target}; {layer_sizes}"),
        )
    j = matrix.detach().to("cpu", torch.float64)
    if not bool(j.isfinite().all()):
        return dict.fromkeys(FIELDS, math.nan)
    d = j - torch.eye(n_in, dtype=torch.float64)
    frobenius, trace = float(norm(d)), float(j.trace())
    unit = j / power_of_two(j)
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


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of a float64 matrix on the CPU; NaN where entries are not finite.

    Cost: a full decomposition of a small matrix; of a large one some products (Lanczos, ARPACK).
    """
    if not bool(matrix.isfinite().all()):
        return math.nan
    if min(matrix.shape) <= defaults.DENSE_SVD:
        return float(singular_values(matrix)[0])
    from scipy.sparse.linalg import ArpackError, svds  # a third of a second, which smaller matrices need not wait for

    size = power_of_two(matrix)
    unit = (matrix / size).numpy()
    start = np.ones(min(matrix.shape)) + np.linspace(0.0, 0.5, min(matrix.shape))
    try:
        return float(svds(unit, k=1, v0=start, tol=1e-10, return_singular_vectors=False)[0] * size)
    except ArpackError:
        return float(singular_values(matrix)[0])


def summary(samples: Sequence[dict[str, float]], fields: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of the population; inf where a value is), least and greatest of each field."""
    table: dict[str, dict[str, float]] = {}
    for name in fields:
        values = np.array([sample[name] for sample in samples], dtype=np.float64)
        size = float(power_of_two(torch.from_numpy(values)))
        with np.errstate(all="ignore"):
            unit = values / size
            beyond = bool(np.isinf(values).any()) and not np.isnan(values).any()
            table[name] = {
                "mean": float(unit.mean() * size),
                "std": math.inf if beyond else float(unit.std() * size),
                "min": float(values.min()),
                "max": float(values.max()),
            }
    return table
