"""J in float64 by the plainest means there are: what every contender is held against before it is timed."""

from __future__ import annotations

from typing import Any

import torch
from networks import Case
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

TOLERANCE = 1e-3


def oracle(case: Case, x: Tensor) -> Tensor:
    """``(batch, n_out, n_in)`` in float64, row by row, every sample on its own.

    Tall Jacobians (many more rows than columns) are taken column by column in forward mode, and some of
    their rows are taken again in reverse mode and compared.
    """
    model = case.model().double()
    with torch.no_grad():
        h = case.head(model, x.double())
        n_out = case.tail(model, h)[0].numel()
    n_in = h[0].numel()
    if n_out <= 4 * n_in:
        return torch.stack([_rows(case, model, sample[None], range(n_out)) for sample in h])
    columns = _columns(case, model, h)
    picks = range(0, n_out, max(n_out // 16, 1))
    rows = _rows(case, model, h[:1], picks)
    if not torch.allclose(columns[0, list(picks)], rows, rtol=1e-9, atol=1e-12):
        raise AssertionError(f"{case.name}: forward and reverse mode differ in float64")
    return columns


def _rows(case: Case, model: Any, h: Tensor, picks: range) -> Tensor:
    h = h.detach().requires_grad_()
    y = case.tail(model, h).flatten()
    return torch.stack([torch.autograd.grad(y[o], h, retain_graph=True)[0].flatten() for o in picks])


def _columns(case: Case, model: Any, h: Tensor) -> Tensor:
    columns = []
    for direction in torch.eye(h[0].numel(), dtype=h.dtype):
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            dual = forward_ad.make_dual(h, direction.view(1, *h.shape[1:]).expand_as(h).contiguous())
            columns.append(forward_ad.unpack_dual(case.tail(model, dual)).tangent.flatten(1))
    return torch.stack(columns, dim=2)


def relative_error(matrix: Tensor, truth: Tensor) -> float:
    """Largest relative Frobenius error of a sample; infinite where the shape is another."""
    if matrix.shape != truth.shape:
        return float("inf")
    off = torch.linalg.matrix_norm(matrix.double() - truth)
    worst = (off / torch.linalg.matrix_norm(truth).clamp_min(1e-300)).max()
    return float(worst) if worst == worst else float("inf")
