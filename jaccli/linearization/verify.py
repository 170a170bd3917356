"""The one verifier: is a product that of J?

The truth is a plain backward pass, with a random cotangent and with a one-hot one (a row of J), or a difference of f
where there is no backward pass. It is asked of every route, at every batch of points: rules of torch are wrong at
some points only, and a route that agrees with its own transpose may be wrong both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from jaccli import defaults
from jaccli.linear_maps.norms import norm
from jaccli.linearization.differences import Differences
from jaccli.linearization.linearization import LinearizedFunction, graph_nodes

# An element of a product that is this much smaller than the others is judged by their size, not by its own.
_NOT_SMALLER = 1e-2
# By so much, and with the other sign, a cotangent is scaled that asks whether a backward pass is linear.
_SCALE = 8.0


def tolerance(eps: float) -> float:
    """Relative difference up to which two ways of one product agree, for a rounding of ``eps``."""
    return float(eps**defaults.BELIEF_POWER)


def same(found: Tensor, truth: Tensor, eps: float) -> bool:
    """Whether vectors ``(batch, n)`` are those of the truth up to rounding.

    A sample whose truth is not finite says nothing; else what is not finite is wrong.
    """
    floor = torch.finfo(truth.dtype).tiny
    return _small(norm(found - truth, (1,)), norm(truth, (1,)), truth.isfinite().all(1), eps, floor)


def dual(found: Tensor, z: Tensor, w: Tensor, pulled: Tensor, eps: float, together: bool = False) -> bool:
    """Whether ⟨w, Jz⟩ = ⟨Jᵀw, z⟩ for ``found`` = Jz and ``pulled`` = Jᵀw, of each sample, or of all ``together``.

    The gap is held against the size of the terms of the sums, whose errors are independent: of n terms one wrong one
    is seen as long as n is below 1 / eps.
    """
    left, right = (torch.where(a != 0, a * b, 0).double() for a, b in ((w, found), (z, pulled)))
    typical = norm(found, (1,)) / found.shape[1] ** 0.5
    if together:
        left, right, typical = left.reshape(1, -1), right.reshape(1, -1), typical.max()[None]
    size = torch.maximum(norm(left, (1,)) + norm(right, (1,)), _NOT_SMALLER * typical)
    floor = torch.finfo(found.dtype).tiny
    return _small((left.sum(1) - right.sum(1)).abs(), size, right.isfinite().all(1), eps, floor)


def _small(gap: Tensor, size: Tensor, known: Tensor, eps: float, floor: float) -> bool:
    """Gaps ``(batch,)`` beside sizes, of ``known`` samples; one far below the others has their rounding.

    Below ``floor``, the smallest normal number, digits are lost. A gap that is NaN is not small.
    """
    if not bool(known.any()):
        return True
    gap, size = gap[known], size[known]
    reach = tolerance(eps)
    return bool((gap <= reach * torch.maximum(size, reach * size.max()) + floor).all())


@dataclass
class Truth:
    """What products with J at a point are compared with. Cost: two backward passes in all, or ``Differences``.

    Args:
        linear: f at the point.
        mixes: a sample's target depends on other samples.
        backward: whether there is a backward pass.
        unsettled: of how many samples differences said nothing.
    """

    linear: LinearizedFunction
    mixes: bool = False
    backward: bool = True
    unsettled: int = 0

    @cached_property
    def z(self) -> Tensor:
        """A random tangent, ``(batch, n_in)``."""
        return self._drawn(self.linear.f.n_in, 2) if self.backward else self._differences.z

    @cached_property
    def _differences(self) -> Differences:
        return Differences(self.linear)

    @cached_property
    def w(self) -> Tensor:
        """A random cotangent, ``(batch, n_out)``."""
        return self._drawn(self.linear.f.n_out, 3)

    def is_image(self, found: Tensor) -> bool:
        """Whether ``(batch, n_out)`` is Jz."""
        if not self.backward:
            verdict = self._differences.judge(found)
            self.unsettled = verdict.unsettled
            return verdict.off is None
        eps = self.linear.rounding
        return all(dual(found, self.z, w, pulled, eps, self.mixes) for w, pulled in self._pulled)

    def is_pulled(self, found: Tensor) -> bool:
        """Whether ``(batch, n_in)`` is Jᵀw."""
        return not self.backward or same(found, self._pulled[0][1], self.linear.rounding)

    @cached_property
    def _pulled(self) -> list[tuple[Tensor, Tensor]]:
        """Cotangents, random and one-hot, each with Jᵀ times it by a plain backward pass."""
        batch, n_out = self.w.shape
        picks = torch.randint(n_out, (batch, 1), generator=torch.Generator().manual_seed(4)).to(self.w.device)
        one_hot = torch.zeros_like(self.w).scatter_(1, picks, 1.0)
        return [(w, self.linear.vjp(w)) for w in (self.w, one_hot)]

    def _drawn(self, size: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.linear.batch, size, generator=generator).to(self.linear.value)


def is_odd(linear: LinearizedFunction, u: Tensor, row: Tensor) -> bool:
    """Whether a backward pass of −8u gives −8 times ``row``, that of u: what is clipped, or rectified, does not.

    A power of two commutes with rounding. Cost: one backward pass, where the graph holds code in Python, which
    torch's own derivatives need no question of.
    """
    if linear.live is None or not any(isinstance(n, BackwardCFunction) for n in graph_nodes(linear.live.target)):
        return True
    return same(linear.vjp(-_SCALE * u), -_SCALE * row, linear.rounding)
