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
from jaccli.operators.faults import is_out_of_memory
from jaccli.operators.linearised import Linearised, graph_nodes
from jaccli.operators.magnitude import norm

# An element of a product that is this much smaller than the others is judged by their size, not by its own.
_NOT_SMALLER = 1e-2
# A difference is believed to so many times what two steps of it differ by.
_SPREAD = 8.0
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
    """What products with J at a point are compared with. Cost: two backward passes in all, or six evaluations.

    Args:
        linear: f at the point.
        mixes: a sample's target depends on other samples.
        backward: whether there is a backward pass.
    """

    linear: Linearised
    mixes: bool = False
    backward: bool = True

    @cached_property
    def z(self) -> Tensor:
        """A random tangent, ``(batch, n_in)``."""
        return self._drawn(self.linear.f.n_in, 2)

    @cached_property
    def w(self) -> Tensor:
        """A random cotangent, ``(batch, n_out)``."""
        return self._drawn(self.linear.f.n_out, 3)

    def is_image(self, found: Tensor) -> bool:
        """Whether ``(batch, n_out)`` is Jz."""
        if not self.backward:
            return self.off_difference(found) is None
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

    def off_difference(self, found: Tensor) -> float | None:
        """By how much ``(batch, n_out)`` is off Jz by differences, relatively, where that is more than theirs; else
        None.
        """
        estimate = difference(self.linear, self.z)
        if estimate is None:
            return None
        truth, spread = estimate
        gap, size = norm(found - truth, (1,)), norm(truth, (1,))
        known = size.isfinite()
        if bool((gap <= _SPREAD * spread + tolerance(self.linear.rounding) * size)[known].all()):
            return None
        return float((gap / torch.maximum(size, norm(found, (1,))))[known].nan_to_num(torch.inf).max())


def is_odd(linear: Linearised, u: Tensor, row: Tensor) -> bool:
    """Whether a backward pass of −8u gives −8 times ``row``, that of u: what is clipped, or rectified, does not.

    A power of two commutes with rounding. Cost: one backward pass, where the graph holds code in Python, which
    torch's own derivatives need no question of.
    """
    if linear.live is None or not any(isinstance(n, BackwardCFunction) for n in graph_nodes(linear.live.target)):
        return True
    return same(linear.vjp(-_SCALE * u), -_SCALE * row, linear.rounding)


def difference(linear: Linearised, z: Tensor) -> tuple[Tensor, Tensor] | None:
    """Jz by central differences of f, ``(batch, n_out)``, and its error ``(batch,)``: by how much two step lengths
    differ, and the rounding of f, which may cancel out there by chance.

    Cost: four evaluations. None where the model does not take points nearby.
    """
    h, flat = linear.point, z.reshape(linear.point.shape).to(linear.point)
    samples = h.reshape(linear.batch, -1).double()
    size = norm(samples, (1,)).clamp(min=1e-6) / norm(z, (1,)).clamp(min=1e-300)
    step = (torch.finfo(h.dtype).eps ** (1 / 3) * size).to(h).reshape(-1, *[1] * (h.dim() - 1))
    found = []
    try:
        with torch.no_grad():
            for factor in (1.0, 2.0):
                up, down = linear.evaluate(h + factor * step * flat), linear.evaluate(h - factor * step * flat)
                slope = (up - down).reshape(linear.batch, -1) / (2 * factor * step.reshape(linear.batch, 1))
                found.append(slope)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
    value = linear.value.reshape(linear.batch, -1)
    rounding = linear.rounding * norm(value, (1,)) / step.reshape(-1).double()
    return found[0], norm(found[0] - found[1], (1,)) + rounding
