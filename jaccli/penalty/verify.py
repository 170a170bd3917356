"""Verify a recorded differentiable program: its values must match backward passes, its gradients slopes or passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.autograd.seeds import gaussian
from jaccli.autograd.walk import coarsest
from jaccli.backward_graph.differentiable_rows import Rows, no_second, wide
from jaccli.errors import UnsupportedError
from jaccli.graph import Accumulation, accumulation, tensors_in
from jaccli.linear_maps.agreement import agrees, is_adjoint, programs_agree, tolerance
from jaccli.penalty.slope import MovedProduct
from jaccli.planning.linearize import Linearization
from jaccli.run.agreement import disagreement
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

# A slope is a difference of rounded numbers: the relative error of a gradient against it may be ``_LOOSE`` times the
# tolerance of products, and always ``_LEAST``.
_LOOSE = 30.0
_LEAST = 1e-5


@dataclass(frozen=True)
class ProductRequest:
    """What ``identity_deviation`` needs of J: all of it, or products.

    Args:
        probes: number of vectors; 0 for J itself.
        gram: products are JJᵀU, not JᵀU.
        square: J must be square.
    """

    probes: int
    gram: bool
    square: bool


def verified_program(
    linearization: Linearization, inputs: Inputs, trainable: list[Tensor], request: ProductRequest
) -> Accumulation | None:
    """J or its products as a program that agrees with an independent backward pass; None where it does not.

    Args:
        linearization: of the layer pair; its probe has a cotangent u and the row Jᵀu of an independent backward pass.
        inputs: of the pass.
        trainable: tensors of the network, of any shapes, that the program takes as arguments.
        request: J or its products.

    Raises:
        CaptureGap: the engine cannot record the network.
    """
    f, (batch, n_out, n_in) = linearization.linear.f, linearization.linear.shape
    args = [*tensors_in((inputs.args, dict(inputs.kwargs))), *trainable]
    if not request.probes:
        program = accumulation(f, trainable)
        with torch.no_grad():
            factors = program(args)
        return program if factors is not None and disagreement(linearization, *factors) is None else None
    u, row, probe_samples = linearization.probe.cotangent, linearization.probe.row, linearization.probe.samples
    # Of a J with more rows than columns JᵀJ is needed, to which the row Jᵀu says nothing.
    if u is None or row is None or (request.gram and n_out > n_in):
        return None
    vectors = u.unsqueeze(-1).expand(batch, n_out, request.probes).contiguous()
    program = accumulation(f, trainable, vectors, request.gram)
    with torch.no_grad():
        images = program([*args, vectors])
    if images is None:
        return None
    image, truth = images[0][probe_samples], row[probe_samples].unsqueeze(-1)
    if request.gram:  # ⟨u, JJᵀu⟩ = ‖Jᵀu‖²
        image, truth = (u[probe_samples].unsqueeze(-1) * image).sum(1), truth.square().sum(1)
    return program if programs_agree(image, truth.expand(image.shape)) else None


@dataclass(frozen=True)
class Verification:
    """A program and passes at one point, compared with each other and with slopes.

    Args:
        rows: of a recorded pass.
        factors: results of the program: J, ``(batch, n_out, n_in)``, its two factors, or products,
            ``(batch, m, probes)``; None without a program.
        vectors: that the products are with, ``(batch, n, probes)``; None of J.
        request: what is computed.
        variables: tensors that gradients are taken by.
        moved: the product, to be moved.
    """

    rows: Rows
    factors: Sequence[Tensor] | None
    vectors: Tensor | None
    request: ProductRequest
    variables: Sequence[Tensor]
    moved: MovedProduct

    def single_rows(self) -> bool:
        """Whether products by second derivatives, or rows taken together, are wrong: then rows go one by one.

        A wrong double-backward formula shows in ⟨Jz, w⟩ ≠ ⟨z, Jᵀw⟩; a wrong batching rule in Jᵀw by the matrix of
        batched rows ≠ Jᵀw by one pass.
        """
        rows, eps = self.rows, self._eps
        w = gaussian((rows.target.shape[0], rows.target[0].numel()), 8, like=rows.target.detach())
        pulled = rows.row(w)
        if self.request.gram:
            z = gaussian(pulled.shape, 9, like=rows.target.detach())
            try:
                return not is_adjoint(rows.push(z).detach(), z, w, pulled.detach(), eps, rows.mixes)
            except UnsupportedError:
                return True
        if self.request.probes or self.factors is not None:
            return False
        pulled_by_j = (w.unsqueeze(1) @ self._matrix.detach()).squeeze(1)
        return not rows.mixes and not agrees(pulled_by_j, pulled.detach(), eps)

    def program_is_right(self) -> bool:
        """Whether the program's product is that of plain passes."""
        u = self._test_cotangent()
        return self.factors is not None and agrees(self._by_program(u).detach(), self._by_passes(u).detach(), self._eps)

    def choose_gradient(self) -> tuple[Literal["program", "passes"], float]:
        """Which one the gradient is to be taken through, and how far it is off the slope of the product.

        Both are derived independently: where they agree, they are right. Otherwise the slope decides. Both may lack
        what a network hides (a detached derivative): then they differ from the slope. 0 where that is rounding.

        Raises:
            UnsupportedError: neither the program nor passes have a gradient.
        """
        u = self._test_cotangent()
        image = self._by_passes(u)
        w = gaussian(image.shape, 1, like=self.rows.target.detach())
        # A J that is not finite cannot be compared: nothing speaks against the program.
        if not bool(image.isfinite().all()):
            return ("passes" if self.factors is None else "program"), 0.0
        missing = self.rows.missing()
        passes, why = (None, missing) if missing is not None else self._gradient(image, w)
        program, _ = self._gradient(self._by_program(u), w) if self.factors is not None else (None, None)
        if program is not None and passes is not None and self._agree(program, passes):
            return "program", 0.0
        # The slope is expensive (a copy of the model and four passes): only where both disagree, or one is missing.
        slope = self.moved.slope(u.detach(), w)
        if slope is not None and not math.isfinite(slope.value):
            slope = None
        allowed = max(_LOOSE * tolerance(self._eps), _LEAST)
        errors = {
            name: slope.relative_error(g) if slope is not None else 0.0
            for name, g in (("program", program), ("passes", passes))
            if g is not None and all(bool(t.isfinite().all()) for t in g if t is not None)
        }
        if slope is not None and errors.get("program", 1.0) <= allowed:
            return "program", 0.0
        if not errors or list(errors) == ["program"]:
            raise no_second(RuntimeError(why or "it is not finite"))
        return "passes", errors["passes"] if errors["passes"] > allowed else 0.0

    def _test_cotangent(self) -> Float[Tensor, "batch n"]:
        """The vector that products are compared at: the first of ``vectors``, else random."""
        if self.vectors is not None:
            return self.vectors[..., 0]
        target = self.rows.target.detach()
        return gaussian((target.shape[0], target[0].numel()), 1, like=target)

    def _by_program(self, u: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        assert self.factors is not None
        if self.vectors is not None:
            return self.factors[0][..., 0]
        image = u.unsqueeze(1)
        for factor in self.factors:
            image = image @ factor
        return image.squeeze(1)

    def _by_passes(self, u: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        # Where J is taken row by row anyway, its gradient is the one that training uses.
        if not self.request.probes and self.factors is None and not self.rows.mixes:
            return (u.unsqueeze(1) @ self._matrix).squeeze(1)
        return self.rows.images(u.unsqueeze(-1), self.request.gram)[..., 0]

    def _gradient(
        self, image: Float[Tensor, "batch m"], w: Float[Tensor, "batch m"]
    ) -> tuple[tuple[Tensor | None, ...] | None, str | None]:
        """Gradients of ⟨image, w⟩ by the variables, of their shapes; or None, and why there are none."""
        try:
            inner = (wide(image) * w).sum()
            if not inner.requires_grad:  # J is constant
                return (None,) * len(self.variables), None
            return torch.autograd.grad(inner, list(self.variables), retain_graph=True, allow_unused=True), None
        except (RuntimeError, NotImplementedError) as error:
            reraise_out_of_memory(error)
            return None, reason(error)

    def _agree(self, gradients: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> bool:
        """Whether gradients of the shapes of the variables, as one vector, agree up to the tolerance; None is zero."""
        zero = torch.zeros((), dtype=torch.float64, device=self.rows.target.device)
        pairs = [tuple(zero if g is None else _real(g) for g in both) for both in zip(gradients, truth, strict=True)]
        gap = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
        size = sum(float(b.square().sum()) for _, b in pairs) ** 0.5
        return bool(gap <= tolerance(self._eps) * max(size, torch.finfo(self.rows.target.dtype).tiny))

    @cached_property
    def _matrix(self) -> Float[Tensor, "batch n_out n_in"]:
        return self.rows.matrix()

    @cached_property
    def _eps(self) -> float:
        return coarsest(self.rows.target)


def _real(gradient: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape_or_parts"]:
    return torch.view_as_real(gradient).double() if gradient.is_complex() else gradient.double()
