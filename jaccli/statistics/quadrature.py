"""Sums over singular values, Σ f(σ), from products: stochastic Lanczos quadrature.

Each probe gives one unbiased sample of tr f(√JᵀJ) = E gᵀ f(√JᵀJ) g, for which the bidiagonalisation of J from g on
is a Gauss rule (G. H. Golub and G. Meurant, *Matrices, moments and quadrature*, 1994; S. Ubaru, J. Chen and Y. Saad,
*Fast estimation of tr f(A) via stochastic Lanczos quadrature*, 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli.errors import warn
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.statistics.jackknife import Estimate, jackknifed

# Elements of the Lanczos vectors that are held at once.
HELD = 2**26
# A rule with so much fewer steps shows how far the quadrature itself is off.
SHORTER = 0.75
# log σ of a map that is singular to its precision cannot be summed; so many roundings are told from 0.
SINGULAR = 30
# The smallest node is known where its residual is at most this share of it: then the value nearby is not 0.
KNOWN = 0.9
STEPS = 30
PROBES = 16


@dataclass(frozen=True)
class Rule:
    """Of each probe the nodes σ, their weights, and within how much of a node J has a singular value.

    ``(probes, batch, steps)`` each.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor

    def sums(self) -> Tensor:
        """Σσ, Σσ², Σσ⁴, Σσ log σ and Σ log σ of each probe: ``(probes, batch, 5)``."""
        s, w = self.nodes, self.weights
        logs = s.clamp(min=1e-300).log()
        used = w > 1e-14 * w.sum(-1, keepdim=True)
        logs = torch.where(used, logs, 0.0)
        terms = (s, s.square(), s.pow(4), s * logs, logs)
        return torch.stack([(w * term).sum(-1) for term in terms], -1)


def bidiagonalised(a: MatrixFree, starts: Tensor, steps: int, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """Golub–Kahan–Lanczos from k vectors of each sample, reorthogonalised in full.

    Args:
        a: the map.
        starts: ``(batch, n_in, k)``, of length 1 each.
        steps: of the recurrence; each is one product with J and one with Jᵀ, for all k.
        transposed: of Jᵀ in place of J; the starts have its n_out then.

    Returns:
        The diagonal and the superdiagonal of B, ``(batch, k, steps)`` float64, JV = UB; zeros once the vectors
        span an invariant space.
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
            new = _apart(new - beta.to(new.dtype)[:, None] * u, us)
        u, alpha = _unit(new, scale)
        scale = torch.maximum(scale, alpha)
        us.append(u)
        new = _apart(pull(u) - alpha.to(v.dtype)[:, None] * v, vs)
        v, beta = _unit(new, scale)
        scale = torch.maximum(scale, beta)
        vs.append(v)
        diagonal.append(alpha)
        above.append(beta)
    return torch.stack(diagonal, -1), torch.stack(above, -1)


def _apart(vectors: Tensor, before: list[Tensor]) -> Tensor:
    """Made orthogonal to those before, twice: once is not enough in floating point."""
    basis = torch.stack(before, -1)
    for _ in range(2):
        along = torch.einsum("bnks,bnk->bks", basis, vectors)
        vectors = vectors - torch.einsum("bnks,bks->bnk", basis, along)
    return vectors


def _unit(vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 and their lengths; what is rounding, beside the largest length so far, becomes zero."""
    length = torch.linalg.vector_norm(vectors.double(), dim=1)
    eps = torch.finfo(vectors.dtype).eps * vectors.shape[1] ** 0.5
    kept = length > (4 * eps * scale).clamp(min=1e-300)
    share = torch.where(kept, 1 / length.clamp(min=1e-300), 0.0).to(vectors.dtype)
    return vectors * share[:, None], torch.where(kept, length, 0.0)


def rules(
    a: MatrixFree, probes: int, steps: int, generator: torch.Generator, most: int | None = None
) -> tuple[Rule, Rule]:
    """The rule of ``steps`` steps, and one of fewer.

    Cost: ``probes * steps`` products with J and as many with Jᵀ; the vectors of a group of probes are held.
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)
    group = max(1, min(probes, HELD // max(2 * batch * n * (steps + 1), 1)))
    if most is not None:
        group = max(1, min(group, most // steps))
    found = []
    for start in range(0, probes, group):
        count = min(group, probes - start)
        signs = 2 * torch.randint(0, 2, (batch, n, count), generator=generator, dtype=torch.int8) - 1
        starts = signs.to(a.device, a.dtype) / math.sqrt(n)
        found.append(bidiagonalised(a, starts, steps, n_out < n_in))
    diagonal = torch.cat([d for d, _ in found], 1)
    above = torch.cat([b for _, b in found], 1)
    return _rule(diagonal, above, steps, n), _rule(diagonal, above, max(1, int(SHORTER * steps)), n)


def _rule(diagonal: Tensor, above: Tensor, steps: int, n: int) -> Rule:
    b = torch.diag_embed(diagonal[..., :steps])
    if steps > 1:
        b = b + torch.diag_embed(above[..., : steps - 1], 1)
    p, s, vt = torch.linalg.svd(b.cpu())
    residuals = above[..., steps - 1, None].cpu() * p[..., -1, :].abs()
    return Rule(s.movedim(1, 0), n * vt[..., 0].square().movedim(1, 0), residuals.movedim(1, 0))


def spectral_figures(
    a: MatrixFree, probes: int, steps: int, generator: torch.Generator, most: int | None = None
) -> dict[str, Estimate]:
    """The figures of a spectrum that are functions of sums over it, each with its standard error.

    The errors hold the spread over probes and the difference to the shorter rule, which is what the quadrature
    still moves by. ``log_abs_det`` and ``log_volume`` are NaN, with a warning, where J is singular to its precision
    or the rule has not settled.

    Args:
        a: the map.
        probes: independent starting vectors.
        steps: of each.
        generator: draws them.
        most: vectors over source and target that may be held at once; steps are cut short to fit.
    """
    batch, n_out, n_in = a.shape
    n = min(n_out, n_in)
    steps = min(steps, n, max(2, most // 2) if most is not None else n)
    rule, shorter = rules(a, probes, steps, generator, most)
    found, rough = (jackknifed(r.sums(), _figures) for r in (rule, shorter))
    found = {name: _widened(e, rough[name], name.startswith("log_"), a.dtype, n) for name, e in found.items()}
    singular, settled = _bottom(rule, torch.finfo(a.dtype).eps * n**0.5)
    bad = singular | ~settled
    if bool(bad.any()):
        why = "J is singular to its precision" if bool(singular.any()) else "its smallest singular value is not known"
        warn(f"log|det J| cannot be estimated for {int(bad.sum())} of {batch} samples: {why} after {steps} steps")
        nan = torch.full(bad.shape, torch.nan, dtype=torch.float64)
        for name in ("log_volume", "log_abs_det"):
            e = found[name]
            found[name] = Estimate(torch.where(bad, nan, e.value), torch.where(bad, nan, e.stderr))
    if n_out != n_in:
        del found["log_abs_det"]
    return found


def _widened(e: Estimate, rough: Estimate, logs: bool, dtype: torch.dtype, n: int) -> Estimate:
    """With the error of the rule and of rounding; a logarithm's rule converges like 1/steps where σ comes near 0."""
    moved = (e.value - rough.value) * (2 if logs else 1)
    rounding = torch.finfo(dtype).eps * (e.value.abs() + (n if logs else 0))
    return Estimate(e.value, (e.stderr.square() + moved.square() + rounding.square()).sqrt())


def _bottom(rule: Rule, eps: float) -> tuple[Tensor, Tensor]:
    """Of each sample: is its smallest singular value zero to its precision; and is it known to be none?

    The logarithm has no bound near 0, so that a rule that has not found the end of the spectrum may miss anything.
    """
    used = rule.weights > 1e-12 * rule.weights.sum(-1, keepdim=True)
    nodes = torch.where(used, rule.nodes, torch.inf)
    lowest, place = nodes.min(-1)
    residual = rule.residuals.gather(-1, place.unsqueeze(-1)).squeeze(-1)
    singular = (lowest <= SINGULAR * eps * rule.nodes.amax(-1)).any(0)
    best = lowest.min(0).indices.unsqueeze(0)
    return singular, (residual.gather(0, best) <= KNOWN * lowest.gather(0, best)).squeeze(0)


def _figures(sums: Tensor) -> dict[str, Tensor]:
    one, two, four, plogp, logs = sums.unbind(-1)
    return {
        # H(σ/Σσ) = log Σσ − Σσ log σ / Σσ; of J = 0 no direction counts.
        "effective_rank": torch.where(one > 0, (one.log() - plogp / one).exp(), 0.0),
        "participation_ratio": torch.where(four > 0, two.square() / four, 0.0),
        "log_volume": logs,
        "log_abs_det": logs,
    }
