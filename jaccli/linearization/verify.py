"""Is a product that of J? It is compared with plain backward passes, or with differences of f.

The passes take a random cotangent and a one-hot one (a row of J). Every implementation is verified, at every batch of
points: rules of torch are wrong at some points only, and an implementation that agrees with its own transpose may be
wrong both ways. ``linear_maps/agreement.py`` has the tolerances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from jaccli.autograd.seeds import gaussian
from jaccli.autograd.walk import graph_nodes
from jaccli.linear_maps.agreement import agrees, is_adjoint
from jaccli.linearization.differences import Differences
from jaccli.linearization.linearized_function import LinearizedFunction

if TYPE_CHECKING:
    from jaxtyping import Shaped

# A cotangent times minus this shows whether a backward pass is linear.
_SCALE = 8.0


@dataclass
class Truth:
    """What products with J at a point are compared with. Cost: two backward passes in all, or ``Differences``.

    Args:
        linear: f at the point.
        mixes: a sample's target depends on other samples.
        backward: whether there is a backward pass.
        undecided_samples: how many the differences could not judge.
    """

    linear: LinearizedFunction
    mixes: bool = False
    backward: bool = True
    undecided_samples: int = 0

    @cached_property
    def z(self) -> Shaped[Tensor, "batch n_in"]:
        """A random tangent, ``(batch, n_in)``."""
        return self._drawn(self.linear.f.n_in, 2) if self.backward else self._differences.z

    @cached_property
    def _differences(self) -> Differences:
        return Differences(self.linear)

    @cached_property
    def w(self) -> Shaped[Tensor, "batch n_out"]:
        """A random cotangent, ``(batch, n_out)``."""
        return self._drawn(self.linear.f.n_out, 3)

    def is_image(self, image: Shaped[Tensor, "batch n_out"]) -> bool:
        """Whether ``(batch, n_out)`` is Jz."""
        if not self.backward:
            verdict = self._differences.judge(image)
            self.undecided_samples = verdict.undecided_samples
            return verdict.relative_error is None
        eps = self.linear.rounding
        return all(is_adjoint(image, self.z, w, pulled, eps, self.mixes) for w, pulled in self._pulled)

    def is_pulled(self, pulled: Shaped[Tensor, "batch n_in"]) -> bool:
        """Whether ``(batch, n_in)`` is Jᵀw."""
        return not self.backward or agrees(pulled, self._pulled[0][1], self.linear.rounding)

    @cached_property
    def _pulled(self) -> list[tuple[Tensor, Tensor]]:
        """Cotangents, random and one-hot, and Jᵀ times each by a plain pass: ``(batch, n_out)``, ``(batch, n_in)``."""
        batch, n_out = self.w.shape
        # A random cotangent averages over rows; a wrong row alone shows in a cotangent that is one row's.
        picks = torch.randint(n_out, (batch, 1), generator=torch.Generator().manual_seed(4)).to(self.w.device)
        one_hot = torch.zeros_like(self.w).scatter_(1, picks, 1.0)
        return [(w, self.linear.vjp(w)) for w in (self.w, one_hot)]

    def _drawn(self, size: int, seed: int) -> Shaped[Tensor, "batch _"]:
        return gaussian((self.linear.batch, size), seed, self.linear.value)


def is_odd(linear: LinearizedFunction, u: Shaped[Tensor, "batch n_out"], row: Shaped[Tensor, "batch n_in"]) -> bool:
    """Whether a backward pass of −8u gives −8 times ``row``, that of u: a clipped or rectified gradient does not.

    A power of two commutes with rounding. Cost: one backward pass, where the graph holds an ``autograd.Function``;
    torch's own derivatives are linear.
    """
    graph = linear.recorded_pass
    if graph is None or not any(isinstance(node, BackwardCFunction) for node in graph_nodes(graph.target)):
        return True
    return agrees(linear.vjp(-_SCALE * u), -_SCALE * row, linear.rounding)
