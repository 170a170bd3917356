"""What a training step takes, verified: programs agree with backward passes in value, gradients with slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import Rows, no_second, wide
from jaccli.errors import UnsupportedError
from jaccli.graph import Accumulation, accumulation, tensors_in
from jaccli.graph.program.trace import alike
from jaccli.linearization.linearization import coarsest
from jaccli.linearization.verify import dual, same, tolerance
from jaccli.penalty.slope import Moved
from jaccli.planning.linearize import Linearization
from jaccli.run.execute import disagreement
from jaccli.runtime.torch_errors import is_out_of_memory, reason

# A gradient may be so many times the verifier's tolerance off a slope, and at the least so much.
_LOOSE = 30.0
_LEAST = 1e-5


@dataclass(frozen=True)
class Request:
    """What is to be computed: J itself, or so many products.

    Args:
        probes: vectors of a call; 0 for J.
        there_and_back: JJᵀU, not JᵀU.
        square: J must be.
    """

    probes: int
    there_and_back: bool
    square: bool


def recorded(linearization: Linearization, inputs: Inputs, live: list[Tensor], wish: Request) -> Accumulation | None:
    """J or its products as a program that agrees with an independent backward pass; None where it does not."""
    batch, n_out, n_in = linearization.linear.shape
    given = [*tensors_in((inputs.args, dict(inputs.kwargs))), *live]
    if not wish.probes:
        made = accumulation(linearization.linear.f, live)
        with torch.no_grad():
            factors = made(given)
        return made if factors is not None and disagreement(linearization, *factors) is None else None
    u, row, some = linearization.probe.cotangent, linearization.probe.row, linearization.probe.samples
    if u is None or row is None or (wish.there_and_back and n_out > n_in):
        return None
    vectors = u.unsqueeze(-1).expand(batch, n_out, wish.probes).contiguous()
    made = accumulation(linearization.linear.f, live, vectors, wish.there_and_back)
    with torch.no_grad():
        found = made([*given, vectors])
    if found is None:
        return None
    if wish.there_and_back:  # ⟨u, JJᵀu⟩ = ‖Jᵀu‖²
        got, want = (u.unsqueeze(-1) * found[0])[some].sum(1), row[some].square().sum(1, keepdim=True)
    else:
        got, want = found[0][some], row[some].unsqueeze(-1)
    return made if alike(got, want.expand(got.shape)) else None


@dataclass(frozen=True)
class Trial:
    """A program and passes, both at one point, compared with each other and with what is known to be right.

    Args:
        rows: of a recorded pass.
        made: what the program gave there; None without one.
        vectors: that the program took: of products.
        wish: what is computed.
        wanted: tensors that gradients are wanted by.
        moved: the product, to be moved.
    """

    rows: Rows
    made: Sequence[Tensor] | None
    vectors: Tensor | None
    wish: Request
    wanted: Sequence[Tensor]
    moved: Moved

    def single_rows(self) -> bool:
        """Whether products by second derivatives, or rows taken together, are wrong: then rows go one by one."""
        rows, eps = self.rows, self._eps
        w = self._drawn(rows.target.shape[0], rows.target[0].numel(), seed=8)
        pulled = rows.row(w)
        if self.wish.there_and_back:
            z = self._drawn(*pulled.shape, seed=9)
            try:
                return not dual(rows.push(z).detach(), z, w, pulled.detach(), eps, rows.mixes)
            except UnsupportedError:
                return True
        if self.wish.probes or self.made is not None:
            return False
        pulled_by_j = (w.unsqueeze(1) @ self._matrix.detach()).squeeze(1)
        return not rows.mixes and not same(pulled_by_j, pulled.detach(), eps)

    def program_is_right(self) -> bool:
        """Whether the program's product is that of plain passes."""
        u = self._u()
        return self.made is not None and same(self._by_program(u).detach(), self._by_passes(u).detach(), self._eps)

    def choose(self) -> tuple[Literal["program", "passes"], float]:
        """Through what the gradient is to be taken, and how far it is off the slope of the product.

        Both are derived independently: where they agree, they are right. Else the slope decides. What neither of
        them has, as the derivative that a network hides (detach), is the difference from the slope; 0 where it is
        rounding.

        Raises:
            UnsupportedError: neither the program nor passes have a gradient.
        """
        u = self._u()
        image = self._by_passes(u)
        w = self._drawn(*image.shape, seed=1)
        if not bool(image.isfinite().all()):  # of a J that is not finite itself nothing can be said
            return ("passes" if self.made is None else "program"), 0.0
        missing = self.rows.missing()
        passes, why = (None, missing) if missing is not None else self._gradient(image, w)
        program, _ = self._gradient(self._by_program(u), w) if self.made is not None else (None, None)
        if program is not None and passes is not None and self._agree(program, passes):
            return "program", 0.0
        slope = self.moved.slope(u.detach(), w)
        if slope is not None and not math.isfinite(slope.value):
            slope = None
        allowed = max(_LOOSE * self._eps**defaults.BELIEF_POWER, _LEAST)
        off = {
            name: slope.off(g) if slope is not None else 0.0
            for name, g in (("program", program), ("passes", passes))
            if g is not None and all(bool(t.isfinite().all()) for t in g if t is not None)
        }
        if slope is not None and off.get("program", 1.0) <= allowed:
            return "program", 0.0
        if not off or list(off) == ["program"]:
            raise no_second(RuntimeError(why or "it is not finite"))
        return "passes", off["passes"] if off["passes"] > allowed else 0.0

    def _u(self) -> Tensor:
        if self.vectors is not None:
            return self.vectors[..., 0]
        return self._drawn(self.rows.target.shape[0], self.rows.target[0].numel(), seed=1)

    def _by_program(self, u: Tensor) -> Tensor:
        assert self.made is not None
        if self.vectors is not None:
            return self.made[0][..., 0]
        image = u.unsqueeze(1)
        for factor in self.made:
            image = image @ factor
        return image.squeeze(1)

    def _by_passes(self, u: Tensor) -> Tensor:
        if not self.wish.probes and self.made is None and not self.rows.mixes:
            return (u.unsqueeze(1) @ self._matrix).squeeze(1)
        return self.rows.images(u.unsqueeze(-1), self.wish.there_and_back)[..., 0]

    def _gradient(self, image: Tensor, w: Tensor) -> tuple[tuple[Tensor | None, ...] | None, str | None]:
        try:
            inner = (wide(image) * w).sum()
            if not inner.requires_grad:  # J is constant
                return (None,) * len(self.wanted), None
            return torch.autograd.grad(inner, list(self.wanted), retain_graph=True, allow_unused=True), None
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            return None, reason(error)

    def _agree(self, got: Sequence[Tensor | None], want: Sequence[Tensor | None]) -> bool:
        zero = torch.zeros((), dtype=torch.float64, device=self.rows.target.device)
        pairs = [tuple(zero if g is None else _real(g) for g in both) for both in zip(got, want, strict=True)]
        gap = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
        size = sum(float(b.square().sum()) for _, b in pairs) ** 0.5
        return bool(gap <= tolerance(self._eps) * max(size, torch.finfo(self.rows.target.dtype).tiny))

    @cached_property
    def _matrix(self) -> Tensor:
        return self.rows.matrix()

    @cached_property
    def _eps(self) -> float:
        return coarsest(self.rows.target)

    def _drawn(self, *shape: int, seed: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.rows.target.detach())


def _real(gradient: Tensor) -> Tensor:
    return torch.view_as_real(gradient).double() if gradient.is_complex() else gradient.double()
