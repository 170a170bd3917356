"""Figures of a spectrum, from all singular values or all eigenvalues."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.linear_maps.norms import power_of_two, singular_values
from jaccli.statistics.determinant import sign_and_log

if TYPE_CHECKING:
    from jaxtyping import Shaped

FIELDS = (
    "singular_values",
    "condition",
    "log_abs_det",
    "sign_det",
    "log_volume",
    "mean_squared_singular_value",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "spectral_norm",
    "frobenius",
)


def spectrum(matrix: Shaped[Tensor, "n_out n_in"]) -> dict[str, Any]:
    """The figures of the spectrum of one sample's J, exact.

    With singular values σ, n of them: condition σ_max/σ_min; log|det J| and the sign of det J of a square J, see
    ``determinant``; the log-volume ½ log det JᵀJ (JJᵀ of a J with more columns than rows), which is log|det J| of a
    square J and Σ log σ of others; Σσ²/n; the effective rank exp H(σ/Σσ) (O. Roy and M. Vetterli, 2007); the stable
    rank ‖J‖_F²/‖J‖₂²; the participation ratio (Σσ²)²/Σσ⁴.

    Args:
        matrix: J; the figures are computed in float64 on the CPU.

    Cost: a singular value decomposition, O(n_out n_in min(n_out, n_in)).

    Example:
        >>> figures = spectrum(torch.diag(torch.tensor([4.0, 2.0])))
        >>> figures["singular_values"], figures["condition"], figures["stable_rank"]
        ([4.0, 2.0], 2.0, 1.25)
    """
    j = matrix.detach().to("cpu", torch.float64)
    if not bool(j.isfinite().all()):
        nan = dict.fromkeys(_names(square=j.shape[0] == j.shape[1]), math.nan)
        return {"singular_values": [math.nan] * min(j.shape), **nan}
    sigma = singular_values(j)
    return figures(sigma, sign_and_log(j, sigma) if j.shape[0] == j.shape[1] else None)


def _names(square: bool) -> list[str]:
    return [name for name in FIELDS[1:] if square or name not in ("log_abs_det", "sign_det")]


def figures(sigma: Shaped[Tensor, "n"], determinant: tuple[float, float] | None) -> dict[str, Any]:
    """The figures of all singular values, float64, descending.

    ``determinant`` is sign and logarithm of a square J's determinant.
    """
    # Fourth powers overflow float64 from 1e77 on: sums are those of σ / size.
    size = float(power_of_two(sigma))
    unit = sigma / size
    largest, smallest = float(unit[0]), float(unit[-1])
    squares, total = float(unit.square().sum()), float(unit.sum())
    share = unit / total if total else unit
    sign, logs = determinant or (math.nan, float(sigma.log().sum()))
    return {
        "singular_values": sigma.tolist(),
        "condition": largest / smallest if smallest else math.inf if largest else math.nan,
        **({"log_abs_det": logs, "sign_det": int(sign)} if determinant else {}),
        "log_volume": logs,
        "mean_squared_singular_value": squares / len(sigma) * size * size,
        "effective_rank": float(torch.exp(-torch.xlogy(share, share).sum())) if total else 0.0,
        "stable_rank": squares / largest**2 if largest else 0.0,
        "participation_ratio": squares**2 / float(unit.pow(4).sum()) if largest else 0.0,
        "spectral_norm": largest * size,
        "frobenius": math.sqrt(squares) * size,
    }


def singular_to_precision(matrix: Shaped[Tensor, "n_out n_in"], record: dict[str, Any]) -> bool:
    """Whether the smallest singular value is below the rounding of J's entries, n eps σ_max, as in a numerical rank."""
    values, kind = record["singular_values"], torch.finfo(matrix.dtype)
    # Below ``tiny`` the spacing of numbers does not shrink further.
    return bool(values[0] > 0 and values[-1] < max(matrix.shape) * kind.eps * max(values[0], kind.tiny))


def eigenvalues(matrix: Shaped[Tensor, "n n"]) -> dict[str, Any]:
    """Eigenvalues of a square J and how far it is from normal.

    ``spectral_radius`` max|λ|, ``spectral_abscissa`` max Re λ, ``non_normality`` Henrici's departure
    √(‖J‖_F² − Σ|λ|²) / ‖J‖_F (P. Henrici, 1962): 0 of a normal matrix, 1 of a nilpotent one.

    Args:
        matrix: J; the figures are computed in float64 on the CPU.

    Cost: O(n³), about 10 n³ operations.

    Example:
        >>> figures = eigenvalues(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> figures["spectral_radius"], figures["non_normality"]
        (0.0, 1.0)
    """
    j = matrix.detach().to("cpu", torch.float64)
    if not bool(j.isfinite().all()):
        return {"eigenvalues": [], **dict.fromkeys(("spectral_radius", "spectral_abscissa", "non_normality"), math.nan)}
    size = float(power_of_two(j))
    unit = j / size
    values = torch.linalg.eigvals(unit)
    order = torch.argsort(values.abs(), descending=True, stable=True)
    values = values[order]
    squares = float(unit.square().sum())
    # Rounding may make the difference of a normal matrix negative.
    departure = max(squares - float(values.abs().square().sum()), 0.0)
    return {
        "eigenvalues": [[float(v.real) * size, float(v.imag) * size] for v in values],
        "spectral_radius": float(values[0].abs()) * size,
        "spectral_abscissa": float(values.real.max()) * size,
        "non_normality": math.sqrt(departure / squares) if squares else 0.0,
    }


def lyapunov(matrices: list[Tensor]) -> Shaped[Tensor, "n"]:
    """Lyapunov exponents of a chain of Jacobians, per step: float64, descending.

    The logarithms of the diagonal of R in the QR decomposition of the product, one factor at a time, over the
    number of factors (G. Benettin, L. Galgani, A. Giorgilli and J.-M. Strelcyn, 1980; J.-P. Eckmann and D. Ruelle,
    1985). A network is a short chain: they describe these layers, and are no limit.

    Args:
        matrices: J ``(n_out, n_in)`` of each pair, in the order of layers; n_in of each is n_out of the one before.

    Example:
        >>> lyapunov([torch.diag(torch.tensor([2.0, 1.0]))] * 3).exp().round(decimals=6)
        tensor([2., 1.], dtype=torch.float64)
    """
    basis: Tensor | None = None
    total: Tensor | None = None
    for matrix in matrices:
        j = matrix.detach().to("cpu", torch.float64)
        size = power_of_two(j)
        # One factor at a time: the product itself would lose its small directions in the rounding of the large ones.
        q, r = torch.linalg.qr(j / size if basis is None else (j / size) @ basis)
        logs = r.diagonal().abs().log() + size.log()
        # A narrower layer ends the directions that it cannot carry.
        total = logs if total is None else total[: len(logs)] + logs
        basis = q
    assert total is not None
    return (total / len(matrices)).sort(descending=True).values
