"""The largest and the smallest singular values of a map, from products, and the spectral norm of a matrix."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.seeds import gaussian
from jaccli.errors import UnsupportedError, UsageError, warn
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.linear_maps.norms import orthogonal_to, orthonormal, power_of_two, singular_values
from jaccli.linear_maps.rescaled import rescaled
from jaccli.names import check_one_of

if TYPE_CHECKING:
    from jaxtyping import Float

Which = Literal["largest", "smallest"]
# Of ARPACK: residuals of the eigenvalues σ² relative to the largest; singular values are their roots, and better.
TOLERANCE = {torch.float64: 1e-9}
SHORT_TOLERANCE = 1e-5
# Restarts of ARPACK; each is some 20 products.
RESTARTS = 60
# Of a block Krylov space: starting vectors beyond the k that are looked for, and its largest dimension.
OVERSAMPLING = 6
MAX_BASIS = 240
# A J whose smaller side is at most 4 times MAX_BASIS is decomposed itself: that costs hardly more.
DENSE_RATIO = 4
# A larger residual, relative to the largest value, is a warning.
LARGE_RESIDUAL = 1e-2


@dataclass(frozen=True)
class Extremes:
    """Singular values of every sample, and how far off they can be. Both are on the CPU.

    Args:
        values: ``(batch, k)`` float64, descending.
        bounds: ``(batch, k)`` float64: a singular value lies this near to each (the residual of its triple).
    """

    values: Tensor
    bounds: Tensor


def extreme_singular_values(a: MatrixFree, k: int, which: Which = "largest") -> Extremes:
    """k singular values of every sample, sample by sample.

    By ARPACK's Lanczos method on JᵀJ or JJᵀ, through SciPy (R. B. Lehoucq, D. C. Sorensen and C. Yang, *ARPACK
    Users' Guide*, 1998); where that gives up, from a block Krylov space; of a small J, or when many are wanted, by the
    singular value decomposition of J itself.

    Values and bounds are NaN for a sample whose J is not finite.

    Cost: some tens of products with J and Jᵀ; of the smallest ones hundreds, where they lie close together.

    Raises:
        UsageError: more are asked for than there are.
        UnsupportedError: the smallest do not converge: of an ill-conditioned J they may not.

    Example:
        >>> import torch
        >>> from jaccli.linear_maps.linear_map import Matrices
        >>> j = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
        >>> extreme_singular_values(Matrices(j[None]), 2).values
        tensor([[3., 2.]], dtype=torch.float64)
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)
    if not 1 <= k <= n:
        raise UsageError(f"k={k}", f"expected 1 to {n}, the number of singular values of a {n_out} x {n_in} J")
    which = check_one_of("which", which, get_args(Which))
    values, bounds = zip(*(_of_one(a.sample(b), k, which) for b in range(batch)), strict=True)
    return Extremes(torch.stack(values), torch.stack(bounds))


def _of_one(a: MatrixFree, k: int, which: Which) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Values and bounds of a map with a batch of 1, ``(k,)`` float64 each."""
    n = min(a.shape[1:])
    # ARPACK's space holds at least 2 k + 1 vectors: of a third of the values it is hardly smaller than J.
    if n <= defaults.DENSE_SVD or 3 * k >= n:
        return _of_the_matrix(a, k, which)
    from scipy.sparse.linalg import ArpackError  # here, since the import takes a third of a second

    near_one = rescaled(a)
    if not bool(near_one.finite):
        nan = torch.full((k,), torch.nan, dtype=torch.float64)
        return nan, nan
    try:
        values, bounds = _by_arpack(near_one, k, which)
    except ArpackError:  # many equal singular values, or a starting vector in a space that J leaves alone
        values, bounds = block_krylov(near_one, k, which)
    size = near_one.size.cpu()
    return values * size, bounds * size


def _of_the_matrix(a: MatrixFree, k: int, which: Which) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """The same by a full decomposition of J itself."""
    every = singular_values(a.materialise()[0]).cpu()
    chosen = every[:k] if which == "largest" else every[-k:]
    return chosen, every[:1].expand(k) * len(every) * torch.finfo(a.dtype).eps


def _by_arpack(a: MatrixFree, k: int, which: Which) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Values and bounds of one sample, ``(k,)`` float64 each.

    Raises:
        ArpackError: it does not converge.
    """
    from scipy.sparse.linalg import svds

    from jaccli.linear_maps.scipy_operator import SciPyOperator

    operator = SciPyOperator(a)
    start = np.random.default_rng(0).standard_normal(min(operator.shape))  # random: not orthogonal to a singular vector
    tolerance = TOLERANCE.get(a.dtype, SHORT_TOLERANCE)
    kind = "LM" if which == "largest" else "SM"
    u, s, vt = svds(operator, k=k, which=kind, v0=start, tol=tolerance, maxiter=RESTARTS * k, solver="arpack")
    order = np.argsort(-s)  # SciPy promises no order
    u, s, v = u[:, order], s[order], vt[order].T
    # ARPACK's own residual is that of JᵀJ; for σ itself both ‖J v − σ u‖ and ‖Jᵀu − σ v‖ bound the error.
    gap = np.maximum(
        np.linalg.norm(operator.matmat(v) - u * s, axis=0), np.linalg.norm(operator.rmatmat(u) - v * s, axis=0)
    )
    rounding = torch.finfo(a.dtype).eps * float(s.max())
    return torch.from_numpy(s.astype(np.float64)), torch.from_numpy(gap.astype(np.float64)) + rounding


def spectral_norm(matrix: Float[Tensor, "n_out n_in"]) -> float:
    """The largest singular value of a float64 matrix ``(n_out, n_in)`` on the CPU; NaN where entries are not finite.

    Cost: a full decomposition of a small matrix, or where ARPACK gives up; of a large one some products.

    Example:
        >>> import torch
        >>> spectral_norm(torch.diag(torch.tensor([1.0, -4.0])).double())
        4.0
    """
    if not bool(matrix.isfinite().all()):
        return math.nan
    n = min(matrix.shape)
    if n > defaults.DENSE_SVD:
        from scipy.sparse.linalg import ArpackError, svds

        size = power_of_two(matrix)
        # Fixed, for the same digits every time. Not all ones: these may be orthogonal to the singular vector.
        start = np.ones(n) + np.linspace(0.0, 0.5, n)
        with suppress(ArpackError):
            unit = (matrix / size).numpy()
            return float(svds(unit, k=1, v0=start, tol=1e-10, return_singular_vectors=False)[0] * size)
    return float(singular_values(matrix)[0])


def block_krylov(a: MatrixFree, k: int, which: Which) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """k singular values of one sample from a Krylov space of several starting vectors (C. Musco and C. Musco, 2015).

    It finds values that occur several times, and all of them where the space closes (no new directions). If the space
    is full before they converge, the largest are returned as they are then, with their residuals as bounds.

    Returns:
        Values, descending, and bounds: ``(k,)`` float64 each.

    Raises:
        UnsupportedError: the smallest of a large J did not converge.
    """
    # On the smaller side, so that the space closes as early as it can.
    transposed = a.shape[1] < a.shape[2]
    push, pull = (a._rmatmat, a._matmat) if transposed else (a._matmat, a._rmatmat)
    n, width = min(a.shape[1:]), k + OVERSAMPLING
    new, _ = orthonormal(gaussian((n, width), 0, torch.empty(0, dtype=a.dtype, device=a.device)))
    basis, image = new, push(new[None])[0]
    eps, closed = torch.finfo(a.dtype).eps, False
    scale = float(image.norm())
    while True:
        p, s, qt = torch.linalg.svd(image.double(), full_matrices=False)
        pick = slice(0, k) if which == "largest" else slice(len(s) - k, len(s))
        u, v = p[:, pick].to(a.dtype), basis @ qt[pick].mT.to(a.dtype)
        gap = (pull(u[None])[0] - v * s[pick].to(a.dtype)).double().norm(dim=0).cpu()
        bounds = gap + n * eps * float(s[0])
        settled = float(gap.max()) <= SHORT_TOLERANCE * float(s[0])
        if closed or (settled and which == "largest"):
            return s[pick].cpu(), bounds
        if basis.shape[1] + width > min(n, MAX_BASIS):
            return _unconverged(a, s[pick].cpu(), bounds, which)
        # The next block of the Krylov space of JᵀJ: JᵀJ times the last one, made orthogonal to all before.
        new, r = orthonormal(orthogonal_to(basis, pull(image[:, -new.shape[1] :][None])[0]))
        # Directions whose length is rounding are noise. Where all are, JᵀJ maps the space into itself: it is closed,
        # and its singular values are exact ones of J.
        alive = r.diagonal().abs() > 64 * eps * max(scale, 1e-30) * max(scale, 1.0)
        closed = not bool(alive.any())
        if not closed:
            new = new[:, alive]
            basis, image = torch.cat([basis, new], 1), torch.cat([image, push(new[None])[0]], 1)


def _unconverged(
    a: MatrixFree, values: Float[Tensor, "k"], bounds: Float[Tensor, "k"], which: Which
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Where the space is full: the values of J itself if it is not much larger, otherwise those of the space.

    Raises:
        UnsupportedError: the smallest of a large J.
    """
    k, n = len(values), min(a.shape[1:])
    if n <= DENSE_RATIO * MAX_BASIS:
        return _of_the_matrix(a, k, which)
    if which == "smallest":
        raise UnsupportedError(
            f"the {k} smallest singular values of a {a.shape[1]} x {a.shape[2]} J did not converge in products alone",
            "expected some that stand apart",
            "they need J itself (exact)",
        )
    if bool((bounds > LARGE_RESIDUAL * values[0]).any()):
        warn(f"the largest singular values lie too close together to be told apart: within {float(bounds.max()):.2g}")
    return values, bounds
