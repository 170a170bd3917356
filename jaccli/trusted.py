"""Differentiable programs that are believed: they agree with backward passes of autograd, in value and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import UnsupportedError
from jaccli.execution import disbelief
from jaccli.graph.differentiable import Accumulation, accumulation
from jaccli.graph.program import alike
from jaccli.graph.recorder import tensors_in
from jaccli.layers.record import Inputs
from jaccli.prepare import Prepared
from jaccli.rows import Rows, wide


@dataclass(frozen=True)
class Wish:
    """What is to be computed: J itself, or so many products.

    Args:
        probes: vectors of a call; 0 for J.
        there_and_back: JJᵀU, not JᵀU.
        square: J must be.
    """

    probes: int
    there_and_back: bool
    square: bool


def recorded(prepared: Prepared, inputs: Inputs, live: list[Tensor], wish: Wish) -> Accumulation | None:
    """J or its products as a program that agrees with an independent backward pass; None where it does not."""
    batch, n_out, n_in = prepared.linear.shape
    given = [*tensors_in((inputs.args, dict(inputs.kwargs))), *live]
    if not wish.probes:
        made = accumulation(prepared.linear.f, live)
        with torch.no_grad():
            factors = made(given)
        return made if factors is not None and disbelief(prepared, *factors) is None else None
    u, row, some = prepared.probe.cotangent, prepared.probe.row, prepared.probe.samples
    if u is None or row is None or (wish.there_and_back and n_out > n_in):
        return None
    vectors = u.unsqueeze(-1).expand(batch, n_out, wish.probes).contiguous()
    made = accumulation(prepared.linear.f, live, vectors, wish.there_and_back)
    with torch.no_grad():
        found = made([*given, vectors])
    if found is None:
        return None
    if wish.there_and_back:  # ⟨u, JJᵀu⟩ = ‖Jᵀu‖²
        got, want = (u.unsqueeze(-1) * found[0])[some].sum(1), row[some].square().sum(1, keepdim=True)
    else:
        got, want = found[0][some], row[some].unsqueeze(-1)
    return made if alike(got, want.expand(got.shape)) else None


def gradients_agree(
    made: Sequence[Tensor], rows: Rows, vectors: Tensor | None, wish: Wish, wanted: list[Tensor]
) -> bool:
    """Whether the gradient of a random product is that of a backward pass which is differentiated again.

    Some kernels have no derivative and do not say so, or a wrong one for strides that are not what they expect.
    True where autograd has no second derivative to hold it against.

    Args:
        made: what the program gave, at the point of ``rows``.
        rows: of the same pass, recorded.
        vectors: that the program took.
        wish: what it computes.
        wanted: tensors that the gradient is by.
    """
    generator = torch.Generator().manual_seed(1)
    batch, n_out = rows.target.shape[0], rows.target[0].numel()
    u = vectors[..., 0] if vectors is not None else torch.randn(batch, n_out, generator=generator).to(rows.target)
    if vectors is not None:
        image = made[0][..., 0]
    else:
        image = u.unsqueeze(1)
        for factor in made:
            image = image @ factor
        image = image.squeeze(1)
    w = torch.randn(image.shape, generator=generator).to(image)
    try:
        truth = rows.images(u.unsqueeze(-1), wish.there_and_back)[..., 0]
        want = torch.autograd.grad((wide(truth) * w).sum(), wanted, allow_unused=True)
    except (RuntimeError, NotImplementedError, UnsupportedError):
        return True
    try:
        got = torch.autograd.grad((wide(image) * w).sum(), wanted, retain_graph=True, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return False
    zero = torch.zeros((), dtype=torch.float64, device=image.device)
    pairs = [tuple(zero if g is None else g.double() for g in both) for both in zip(got, want, strict=True)]
    gap = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    size = sum(float(b.square().sum()) for _, b in pairs) ** 0.5
    reach = torch.finfo(image.dtype).eps ** defaults.BELIEF_POWER
    return not gap > reach * max(size, torch.finfo(image.dtype).tiny)
