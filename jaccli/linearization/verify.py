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

from jaccli.autograd.walk import graph_nodes
from jaccli.linear_maps.agreement import agrees, is_adjoint
from jaccli.linearization.differences import Differences
from jaccli.linearization.linearized_function import LinearizedFunction

# By so much, and with the other sign, a cotangent is scaled that asks whether a backward pass is linear.
_SCALE = 8.0


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
        return all(is_adjoint(found, self.z, w, pulled, eps, self.mixes) for w, pulled in self._pulled)

    def is_pulled(self, found: Tensor) -> bool:
        """Whether ``(batch, n_in)`` is Jᵀw."""
        return not self.backward or agrees(found, self._pulled[0][1], self.linear.rounding)

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
    graph = linear.recorded_pass
    if graph is None or not any(isinstance(node, BackwardCFunction) for node in graph_nodes(graph.target)):
        return True
    return agrees(linear.vjp(-_SCALE * u), -_SCALE * row, linear.rounding)
