"""Norms and singular values of matrices of any magnitude, in float64.

Squares overflow float64 beyond 1e154 and fourth powers beyond 1e77, while norms made of them need not. So all numbers
are divided by a power of two first, which rounds nothing, and results are multiplied by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Inexact


def power_of_two(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """The power of two just below max|x| over some dimensions, all of them if None: float64, without a graph.

    ``(…,)`` → the shape without ``dims``.

    1 where the numbers are all zero, or one is not finite, or there are none.
    """
    if not x.numel():
        return torch.ones((), dtype=torch.float64, device=x.device)
    most = x.detach().abs().double()
    most = most.amax(tuple(range(x.dim())) if dims is None else dims)
    # A number divided by its mantissa is a power of two, exactly; a logarithm would round.
    mantissa = torch.frexp(most).mantissa  # 1/2 <= mantissa < 1
    return torch.where(most.isfinite() & (most > 0), most / (2 * mantissa), 1.0)


def norm(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """√Σ|x|² over some dimensions, all of them if None: float64, of the shape of x without ``dims``.

    Inf only where the norm itself is out of range.
    """
    size = power_of_two(x, dims)
    # The shape of ``size`` with the summed dimensions kept, as 1.
    shape = list(x.shape)
    for dim in range(x.dim()) if dims is None else dims:
        shape[dim] = 1
    near_one = x.double() / (size if not x.numel() else size.reshape(shape))
    result: Tensor = torch.linalg.vector_norm(near_one, dim=dims)
    return result * size


def singular_values(matrices: Inexact[Tensor, "*batch n_out n_in"]) -> Float[Tensor, "*batch n"]:
    """All singular values of each matrix, ``(…, n_out, n_in)`` → ``(…, min(n_out, n_in))`` float64, descending.

    NaN for a matrix with an entry that is not finite.
    """
    # LAPACK raises where a matrix holds NaN, and that for all matrices of a batch.
    finite = matrices.isfinite().all(-1).all(-1)[..., None, None]
    whole = torch.where(finite, matrices.double(), 0.0)
    size = power_of_two(whole, (-2, -1))
    values: Tensor = torch.linalg.svdvals(whole / size[..., None, None]) * size[..., None]
    return torch.where(finite[..., 0], values, torch.nan)


def orthonormal(
    x: Inexact[Tensor, "*batch n k"],
) -> tuple[Inexact[Tensor, "*batch n k"], Inexact[Tensor, "*batch k k"]]:
    """Q ``(…, n, k)`` and R ``(…, k, k)`` of ``(…, n, k)``, n at least k, in its dtype.

    Shorter formats than float32 have no QR: theirs is computed in float32.
    """
    q, r = torch.linalg.qr(x.float() if x.dtype.itemsize < 4 else x)
    return q.to(x), r.to(x)


def orthogonal_to(
    basis: Inexact[Tensor, "*batch n k"], vectors: Inexact[Tensor, "*batch n m"]
) -> Inexact[Tensor, "*batch n m"]:
    """Vectors ``(…, n, m)`` without what lies in the span of the columns of ``(…, n, k)``, which are orthonormal.

    Twice, since once leaves a part of the size of the rounding of what cancels ("twice is enough", W. Kahan).
    """
    for _ in range(2):
        vectors = vectors - basis @ (basis.mT @ vectors)
    return vectors
