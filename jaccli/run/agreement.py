"""Whether a J agrees with products that were computed without it: plain backward passes, or differences of f."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.linear_maps.agreement import tolerance
from jaccli.linearization.rounding import distances, norms
from jaccli.planning.linearize import Linearization


def disagreement(linearization: Linearization, *factors: Tensor) -> float | None:
    """The relative difference of J from independent products, where it is more than rounding; else None.

    See ``compared``.
    """
    return compared(linearization, *factors)[0]


def compared(linearization: Linearization, *factors: Tensor) -> tuple[float | None, int]:
    """The relative difference of uᵀJ from rows by plain backward passes, where it is more than rounding; else None.

    With it the number of samples of which the comparison says nothing.

    Args:
        linearization: f at the point, with its probe: cotangents u ``(batch, n_out)`` and rows ``(batch, n_in)``.
        factors: matrices ``(batch, n_out, m)``, …, ``(batch, m, n_in)`` whose product is J.

    Rules are wrong at some points only, so all samples are compared. Cost: one more backward pass, a product with a
    vector and a norm of each factor, in their own dtype; where they differ by more than half of the digits, what
    rounding does to the row is measured, once. Without a backward pass Jz is compared with differences of f, of the
    first sample only where samples mix.
    """
    if not factors[0].numel():
        return None, 0
    if linearization.probe.backward_gap is not None:
        return _error_of_differences(linearization, factors)
    errors = [_error_of_rows(linearization, *check, factors) for check in linearization.adjoint_checks]
    return max((error for error in errors if error is not None), default=None), 0


def _error_of_rows(
    linearization: Linearization, samples: slice, u: Tensor, row: Tensor, factors: Sequence[Tensor]
) -> float | None:
    """The largest error of a sample's uᵀJ, relative to the norms of the factors; None where it is rounding.

    Args:
        linearization: knows what rounding does to the row.
        samples: those that are compared.
        u: cotangents ``(batch, n_out)``.
        row: uᵀJ ``(batch, n_in)`` by a backward pass.
        factors: of J.
    """
    u, row = u[samples], row[samples]
    # The error of uᵀJ is relative to ‖u‖ times the norms of the factors, as rounding is: uᵀJ itself may be small by
    # cancellation.
    product, size = u, norms(u)
    expects_finite = row.isfinite().all(1).cpu()
    finite = torch.ones_like(expects_finite)
    for factor in factors:
        product = torch.bmm(product.unsqueeze(1), factor[samples]).squeeze(1)
        size = size * _sizes(factor[samples])
        finite &= size.isfinite() | factor[samples].isfinite().all(2).all(1).cpu()
    difference, size = distances(product, row), torch.fmax(size, norms(row))
    error = difference / size.clamp(min=torch.finfo(size.dtype).tiny)
    error = torch.where(difference <= torch.finfo(row.dtype).tiny, 0.0, error)  # digits that subnormal numbers lack
    # A NaN of J where the backward pass is finite is an error of its own.
    error = torch.where(expects_finite & ~finite, torch.inf, error)
    if not bool((error > tolerance(torch.finfo(row.dtype).eps)).any()):
        return None
    # Only now is the rounding of the row measured: that takes passes, and most J agree without.
    rounding = linearization.rounding
    if rounding is not None and rounding.steady:
        error = torch.where((difference <= rounding.row[samples]) & error.isfinite(), 0.0, error)
    return float(error.max()) if bool((error > tolerance(linearization.linear.rounding)).any()) else None


def _error_of_differences(linearization: Linearization, factors: Sequence[Tensor]) -> tuple[float | None, int]:
    """The error of Jz against differences of f along z ``(batch, n_in)``; None where it is no more than theirs."""
    if linearization.linear.f.network.draws.nondeterminism:  # the user was warned of that
        return None, 0
    differences = linearization.differences
    image = differences.z.unsqueeze(-1)
    for factor in reversed(factors):
        image = torch.bmm(factor, image.to(factor))
    usual = _sizes(factors[0]) * norms(differences.z) / factors[0].shape[2] ** 0.5 if len(factors) == 1 else None
    verdict = differences.judge(image.squeeze(-1), usual)
    return verdict.relative_error, verdict.undecided_samples


def _sizes(factor: Tensor) -> Tensor:
    """The norm of each sample's matrix ``(batch, n, m)``, float64 ``(batch,)``.

    Computed in the factor's own dtype where squares neither overflow nor vanish.
    """
    sizes = torch.linalg.vector_norm(factor, dim=(1, 2)).double().cpu()
    least, most = torch.finfo(factor.dtype).tiny ** 0.25, torch.finfo(factor.dtype).max ** 0.25
    return sizes if bool(((sizes > least) & (sizes < most)).all()) else norms(factor)
