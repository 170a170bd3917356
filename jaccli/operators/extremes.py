"""The largest and the smallest singular values of a map, from products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, svds
from torch import Tensor

from jaccli import defaults
from jaccli.errors import UnsupportedError, UsageError
from jaccli.operators.linear_map import LinearMap

Which = Literal["largest", "smallest"]
# Of ARPACK: residuals relative to the value that is asked for; singular values are the roots, and better.
TOLERANCE = {torch.float64: 1e-9}
SHORT_TOLERANCE = 1e-5
# Restarts; each is some 20 products.
RESTARTS = 60


@dataclass(frozen=True)
class Extremes:
    """Singular values of every sample, and how far off they can be.

    Args:
        values: ``(batch, k)`` float64, descending.
        bounds: ``(batch, k)``: within so much of each lies a singular value (the residual of its triple).
    """

    values: Tensor
    bounds: Tensor


def extreme_singular_values(a: LinearMap, k: int, which: Which = "largest") -> Extremes:
    """k singular values of every sample, sample by sample.

    By ARPACK's Lanczos method on JᵀJ or JJᵀ, through SciPy (R. B. Lehoucq, D. C. Sorensen and C. Yang, *ARPACK
    Users' Guide*, 1998); of a small J, or when many are wanted, by the singular value decomposition of J itself.

    Cost: some tens of products with J and Jᵀ; of the smallest ones hundreds, where they lie close together.

    Raises:
        UsageError: more are asked for than there are.
        UnsupportedError: the method does not converge; the smallest of an ill-conditioned J may not.
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)
    if not 1 <= k <= n:
        raise UsageError(f"k={k}", f"expected 1 to {n}, the number of singular values of a {n_out} x {n_in} J")
    found = [_of_one(a.sample(b), k, which) for b in range(batch)]
    return Extremes(torch.stack([v for v, _ in found]), torch.stack([e for _, e in found]))


def _of_one(a: LinearMap, k: int, which: Which) -> tuple[Tensor, Tensor]:
    n = min(a.shape[1:])
    rounding = torch.finfo(a.dtype).eps
    if n <= defaults.DENSE_SVD or 3 * k >= n:
        every = torch.linalg.svdvals(a.materialise()[0].double()).cpu()
        chosen = every[:k] if which == "largest" else every[-k:]
        return chosen, every[:1].expand(k) * rounding
    operator = a.as_scipy()
    start = np.random.default_rng(0).standard_normal(n)  # never at right angles to what is looked for
    tolerance = TOLERANCE.get(a.dtype, SHORT_TOLERANCE)
    kind = "LM" if which == "largest" else "SM"
    try:
        u, s, vt = svds(
            operator, k=k, which=kind, v0=start, tol=tolerance, maxiter=RESTARTS * max(k, 1), solver="arpack"
        )
    except ArpackError as error:
        raise UnsupportedError(
            f"the {which} singular values of a {a.shape[1]} x {a.shape[2]} J did not converge in products alone",
            str(error).splitlines()[0],
            "take all of them, from J itself (exact), or fewer",
        ) from None
    order = np.argsort(-s)
    u, s, v = u[:, order], s[order], vt[order].T
    gap = np.maximum(
        np.linalg.norm(operator.matmat(v) - u * s, axis=0), np.linalg.norm(operator.rmatmat(u) - v * s, axis=0)
    )
    return torch.from_numpy(s.astype(np.float64)), torch.from_numpy(gap.astype(np.float64)) + rounding * float(s.max())
