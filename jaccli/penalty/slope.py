"""The slope of a product with J along random changes of parameters and samples, by differences of backward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import Rows
from jaccli.errors import JaccliError
from jaccli.networks.network import Network
from jaccli.penalty.training_pass import training_pass
from jaccli.planning.linearize import Pair
from jaccli.runtime.torch_errors import is_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

# Steps relative to the size of what is moved: small, since J of a network with kinks jumps from piece to piece. In
# less than float64 rounding forbids small ones: the error of a central difference is eps / step + step².
_STEP = {torch.float64: 1e-6}
_SHORT_STEP = 5e-3
# The difference by h and that by 2h deviate by three times the truncation error of the first; the factor allows for the
# rounding of both as well.
_SPREAD = 8.0


@dataclass(frozen=True)
class Slope:
    """A directional derivative of Σ ⟨w, J…u⟩, by differences.

    Attributes:
        directions: one for each variable, of its shape, in float64.
        value: the derivative along all of them together.
        spread: by how much the differences of two steps deviate: an estimate of the error of ``value``.
    """

    directions: list[Tensor]
    value: float
    spread: float

    def relative_error(self, gradients: Sequence[Tensor | None]) -> float:
        """How far gradients are from the slope, relative to its terms; 0 within the slope's own error.

        Args:
            gradients: one for each variable, of its shape; None is zero.
        """
        terms = [
            ((g.real if g.is_complex() else g).double() * d).flatten()
            for g, d in zip(gradients, self.directions, strict=True)
            if g is not None and g.numel()
        ]
        # The terms may cancel: their size, and not that of their sum, says what rounding may do.
        derivative = sum(float(t.sum()) for t in terms)
        size = sum(float(t.square().sum()) for t in terms) ** 0.5 + abs(self.value)
        gap = abs(derivative - self.value)
        if not gap <= _SPREAD * self.spread:  # NaN is far off
            return gap / size if size else float("inf")
        return 0.0


@dataclass(frozen=True)
class MovedProduct:
    """A product with J of a layer pair, at parameters and samples that are moved off their values.

    Args:
        network: the model; what moves is a copy of it.
        pair: source and target.
        inputs: of the pass.
        variables: tensors of the network and of the inputs that the product has gradients by.
        mixes: a sample's target depends on other samples.
        gram: the product is with JJᵀ, or JᵀJ of a J with fewer columns than rows; otherwise with Jᵀ.
    """

    network: Network
    pair: Pair
    inputs: Inputs
    variables: Sequence[Tensor]
    mixes: bool
    gram: bool

    def slope(self, u: Float[Tensor, "batch n"], w: Float[Tensor, "batch m"]) -> Slope | None:
        """The derivative of Σ ⟨w, J…u⟩ by central differences with two steps, on a copy of the model.

        The copy is in float64 where there is such a form of the model.

        Cost: a copy of the model; four forward passes with one or two backward passes each, n_out of JᵀJ. None where
        the model cannot be copied or moved.
        """
        draws = self.network.draws
        # A model that draws random numbers draws others in another dtype: its J would be another one.
        for dtype in (None,) if draws.generators else (torch.float64, None):
            try:
                copy = self.network.cast(dtype=dtype)
                copy.draws.warned.update(draws.warned)
                return self._of_copy(copy, dtype or u.dtype, u, w)
            except (JaccliError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
                if is_out_of_memory(error):
                    return None
        return None

    def _of_copy(
        self, copy: Network, dtype: torch.dtype, u: Shaped[Tensor, "batch n"], w: Shaped[Tensor, "batch m"]
    ) -> Slope:
        generator = torch.Generator().manual_seed(6)
        # A copy has its tensors in the order of the original.
        twins = {id(t): twin for t, twin in zip(self.network.tensors(), copy.tensors(), strict=True)}
        directions = [_direction(t, generator) for t in self.variables]
        direction_of = {id(t): d for t, d in zip(self.variables, directions, strict=True)}
        moving = [(t, t.detach().clone(), direction_of[key]) for key, t in twins.items() if key in direction_of]

        def product(h: float) -> float:
            with torch.no_grad():
                for twin, start, d in moving:
                    twin.copy_(start + h * d)
            inputs = _displaced(self.inputs, dtype, direction_of, h)
            with (
                torch.enable_grad(),
                training_pass(copy, self.pair, inputs, differentiable=False, mixes=self.mixes, fused=False) as rows,
            ):
                return self._product(rows, u.to(dtype), w.to(dtype))

        step = _STEP.get(dtype, _SHORT_STEP)
        near, far = ((product(h) - product(-h)) / (2 * h) for h in (step, 2 * step))
        return Slope(directions, near, abs(near - far))

    def _product(self, rows: Rows, u: Float[Tensor, "batch n"], w: Float[Tensor, "batch m"]) -> float:
        """⟨w, Jᵀu⟩, ⟨w, JJᵀu⟩ or ⟨w, JᵀJu⟩, of first derivatives alone."""
        if not self.gram:
            return float((rows.row(u) * w).double().sum())
        if rows.target[0].numel() <= rows.n_in:
            return float((rows.row(u) * rows.row(w)).double().sum())
        j = rows.matrix()
        return float(((j @ u[..., None]) * (j @ w[..., None])).double().sum())


def _direction(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor of this one's shape and size in float64: each variable moves relative to its own numbers."""
    value = tensor.detach()
    size = float(torch.linalg.vector_norm(value.double())) / max(value.numel(), 1) ** 0.5
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, torch.float64)
    return drawn * (size if 0 < size < float("inf") else 1.0)


def _displaced(inputs: Inputs, dtype: torch.dtype, direction_of: Mapping[int, Tensor], h: float) -> Inputs:
    """The inputs in this dtype, those that have a direction ``h`` further along it, of its shape."""

    def moved(value: object) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        cast = value.detach().to(torch.float64)
        return (cast + h * direction_of[id(value)] if id(value) in direction_of else cast).to(dtype)

    return Inputs(tuple(map(moved, inputs.args)), {k: moved(v) for k, v in inputs.kwargs.items()}, inputs.dim)
