"""Sums over singular values, Σ f(σ), from products: stochastic Lanczos quadrature.

Each probe gives one unbiased sample of tr f(√JᵀJ) = E gᵀ f(√JᵀJ) g, for which the bidiagonalisation of J from g on
is a Gauss rule (G. H. Golub and G. Meurant, *Matrices, moments and quadrature*, 1994; S. Ubaru, J. Chen and Y. Saad,
*Fast estimation of tr f(A) via stochastic Lanczos quadrature*, 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import warn
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.statistics.jackknife import Estimate, jackknifed
from jaccli.statistics.probing import random_signs

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Elements of the Lanczos vectors that are in memory at once.
HELD = 2**26
# A rule with this share of the steps shows the error of the quadrature itself.
SHORTER = 0.75
# A singular value of up to SINGULAR × eps × √n × the largest one may be zero: then log σ cannot be summed.
SINGULAR = 30
# The smallest node is known if its residual is at most this share of it: then the singular value near it is not 0.
KNOWN = 0.9
# Steps of each starting vector, and how many of these, by default.
STEPS = 30
PROBES = 16


@dataclass(frozen=True)
class QuadratureRule:
    """A quadrature rule for sums over singular values, of each probe.

    Args:
        nodes: σ; float64 on the CPU, as the other two.
        weights: they sum up to n, the number of singular values.
        residuals: J has a singular value this near to each node.
    """

    nodes: Shaped[Tensor, "probes batch steps"]
    weights: Shaped[Tensor, "probes batch steps"]
    residuals: Shaped[Tensor, "probes batch steps"]

    def sums(self) -> Shaped[Tensor, "probes batch 5"]:
        """Σσ, Σσ², Σσ⁴, Σσ log σ and Σ log σ of each probe."""
        s, w = self.nodes, self.weights
        logs = s.clamp(min=1e-300).log()
        # A node at zero without weight is an artefact of a breakdown: its logarithm must not count.
        used = w > 1e-14 * w.sum(-1, keepdim=True)
        logs = torch.where(used, logs, 0.0)
        terms = (s, s.square(), s.pow(4), s * logs, logs)
        return torch.stack([(w * term).sum(-1) for term in terms], -1)


def bidiagonalised(
    a: MatrixFree, starts: Shaped[Tensor, "batch n k"], steps: int, transposed: bool = False
) -> tuple[Shaped[Tensor, "batch k steps"], Shaped[Tensor, "batch k steps"]]:
    """Golub–Kahan–Lanczos bidiagonalisation from k starting vectors of each sample, with full reorthogonalisation.

    Args:
        a: the map.
        starts: vectors of length 1 over the source, n = n_in.
        steps: of the recurrence; each is one product with J and one with Jᵀ, for all k.
        transposed: bidiagonalise Jᵀ in place of J; the starts are then over the target, n = n_out.

    Returns:
        The diagonal and the superdiagonal of B in JV = UB, float64; zeros once the vectors span an invariant space.
    """
    push, pull = (a.rmatmat, a.matmat) if transposed else (a.matmat, a.rmatmat)
    v, vs = starts, [starts]
    u, us = starts, list[Tensor]()
    diagonal, above = [], []
    beta = torch.zeros(starts.shape[0], starts.shape[2], dtype=torch.float64, device=starts.device)
    scale = beta
    for _ in range(steps):
        new = push(v)
        if us:
            new = _orthogonalised(new - beta.to(new.dtype)[:, None] * u, us)
        u, alpha = _unit(new, scale)
        scale = torch.maximum(scale, alpha)
        us.append(u)
        new = _orthogonalised(pull(u) - alpha.to(v.dtype)[:, None] * v, vs)
        v, beta = _unit(new, scale)
        scale = torch.maximum(scale, beta)
        vs.append(v)
        diagonal.append(alpha)
        above.append(beta)
    return torch.stack(diagonal, -1), torch.stack(above, -1)


def _orthogonalised(vectors: Tensor, before: list[Tensor]) -> Tensor:
    """Vectors ``(batch, n, k)`` made orthogonal to those before, twice: once is not enough in floating point."""
    basis = torch.stack(before, -1)
    for _ in range(2):
        along = torch.einsum("bnks,bnk->bks", basis, vectors)
        vectors = vectors - torch.einsum("bnks,bks->bnk", basis, along)
    return vectors


def _unit(vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors ``(batch, n, k)`` divided by their lengths ``(batch, k)``; both are zero for a length that is rounding.

    ``scale`` is the largest length so far, ``(batch, k)``.
    """
    length = torch.linalg.vector_norm(vectors.double(), dim=1)
    eps = torch.finfo(vectors.dtype).eps * vectors.shape[1] ** 0.5
    nonzero = length > (4 * eps * scale).clamp(min=1e-300)
    factor = torch.where(nonzero, 1 / length.clamp(min=1e-300), 0.0).to(vectors.dtype)
    return vectors * factor[:, None], torch.where(nonzero, length, 0.0)


def rules(
    a: MatrixFree, probes: int, steps: int, generator: torch.Generator, most: int | None = None
) -> tuple[QuadratureRule, QuadratureRule]:
    """The rule of ``steps`` steps, and one of fewer.

    Cost: ``probes * steps`` products with J and as many with Jᵀ; memory: the vectors of a group of probes, which is
    as large as fits, or has at most ``most`` vectors.
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)  # the recurrence runs on the shorter side, where all singular values are
    group = max(1, min(probes, HELD // max(2 * batch * n * (steps + 1), 1)))
    if most is not None:
        group = max(1, min(group, most // steps))
    groups = []
    for start in range(0, probes, group):
        count = min(group, probes - start)
        starts = random_signs(a, n, count, generator) / math.sqrt(n)
        groups.append(bidiagonalised(a, starts, steps, n_out < n_in))
    diagonal = torch.cat([d for d, _ in groups], 1)
    above = torch.cat([b for _, b in groups], 1)
    return _rule(diagonal, above, steps, n), _rule(diagonal, above, max(1, int(SHORTER * steps)), n)


def _rule(diagonal: Tensor, above: Tensor, steps: int, n: int) -> QuadratureRule:
    """The rule of the first ``steps`` rows of B, whose diagonals are ``(batch, probes, steps or more)``."""
    b = torch.diag_embed(diagonal[..., :steps])
    if steps > 1:
        b = b + torch.diag_embed(above[..., : steps - 1], 1)
    p, s, vt = torch.linalg.svd(b.cpu())
    # Golub and Kahan: J v = σ u holds exactly, Jᵀu = σ v up to the last β times the last entry of the left vector.
    residuals = above[..., steps - 1, None].cpu() * p[..., -1, :].abs()
    # Gauss: a node's weight is the squared first entry of its vector; E‖g‖² = n scales the unit start.
    return QuadratureRule(s.movedim(1, 0), n * vt[..., 0].square().movedim(1, 0), residuals.movedim(1, 0))


def spectral_figures(
    a: MatrixFree, probes: int, steps: int, generator: torch.Generator, most: int | None = None
) -> dict[str, Estimate]:
    """The figures of a spectrum that are functions of sums over it, each with its standard error.

    An error has two parts: the spread over probes, and the difference from the shorter rule, for the quadrature.
    ``log_abs_det`` and ``log_volume`` are NaN, with a warning, if J is singular to its precision or the rule has not
    converged.

    Args:
        a: the map.
        probes: independent starting vectors.
        steps: of each.
        generator: draws the starting vectors.
        most: vectors over source and target that may be in memory at once; steps are reduced to fit.

    Example:
        >>> import jaccli
        >>> j = jaccli.operator(torch.nn.Tanh(), torch.zeros(1, 9))  # the identity
        >>> figures = spectral_figures(j, 4, 9, torch.Generator().manual_seed(0))
        >>> round(figures["effective_rank"].value.item(), 3), round(figures["log_volume"].value.item(), 3)
        (9.0, 0.0)
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)
    steps = min(steps, n, max(2, most // 2) if most is not None else n)
    rule, shorter = rules(a, probes, steps, generator, most)
    fine, rough = (jackknifed(r.sums(), _figures) for r in (rule, shorter))
    estimates = {name: _widened(e, rough[name], name.startswith("log_"), a.dtype, n) for name, e in fine.items()}
    singular, settled = _bottom(rule, torch.finfo(a.dtype).eps * n**0.5)
    bad = singular | ~settled
    if bool(bad.any()):
        why = "J is singular to its precision" if bool(singular.any()) else "its smallest singular value is not known"
        warn(f"log|det J| cannot be estimated for {int(bad.sum())} of {batch} samples: {why} after {steps} steps")
        nan = torch.full(bad.shape, torch.nan, dtype=torch.float64)
        for name in ("log_volume", "log_abs_det"):
            e = estimates[name]
            estimates[name] = Estimate(torch.where(bad, nan, e.value), torch.where(bad, nan, e.stderr))
    if n_out != n_in:
        del estimates["log_abs_det"]
    return estimates


def _widened(e: Estimate, rough: Estimate, logs: bool, dtype: torch.dtype, n: int) -> Estimate:
    """An estimate with the errors of the rule and of rounding added.

    The rule of a logarithm converges like 1/steps where σ comes near 0: its error counts twice.
    """
    of_rule = (e.value - rough.value) * (2 if logs else 1)
    rounding = torch.finfo(dtype).eps * (e.value.abs() + (n if logs else 0))
    return Estimate(e.value, (e.stderr.square() + of_rule.square() + rounding.square()).sqrt())


def _bottom(rule: QuadratureRule, eps: float) -> tuple[Tensor, Tensor]:
    """Whether the smallest singular value is zero to precision, and whether it is known not to be: ``(batch,)`` each.

    The logarithm has no bound near 0, so that a rule that has not found the lower end of the spectrum may be off by any
    amount.
    """
    used = rule.weights > 1e-12 * rule.weights.sum(-1, keepdim=True)
    nodes = torch.where(used, rule.nodes, torch.inf)
    lowest, place = nodes.min(-1)
    residual = rule.residuals.gather(-1, place.unsqueeze(-1)).squeeze(-1)
    singular = (lowest <= SINGULAR * eps * rule.nodes.amax(-1)).any(0)
    best = lowest.min(0).indices.unsqueeze(0)
    return singular, (residual.gather(0, best) <= KNOWN * lowest.gather(0, best)).squeeze(0)


def _figures(sums: Tensor) -> dict[str, Tensor]:
    """Figures ``(…)`` of ``QuadratureRule.sums``, ``(…, 5)``."""
    one, two, four, plogp, logs = sums.unbind(-1)
    return {
        # H(σ/Σσ) = log Σσ − Σσ log σ / Σσ; of J = 0 no direction counts.
        "effective_rank": torch.where(one > 0, (one.log() - plogp / one).exp(), 0.0),
        "participation_ratio": torch.where(four > 0, two.square() / four, 0.0),
        "log_volume": logs,
        "log_abs_det": logs,
    }
