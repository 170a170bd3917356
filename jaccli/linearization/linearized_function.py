"""``LinearizedFunction``: f at a point, its value there and products with its Jacobian, each counted as a pass."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from jaccli.activations.function import LayerFunction
from jaccli.autograd.products import DoubleVjp, NoSecondDerivative, quiet_vmap, vjp, vjps
from jaccli.autograd.seeds import gaussian
from jaccli.autograd.walk import coarsest, graph_nodes
from jaccli.runtime.dispatch import Within

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass
class RecordedPass:
    """The gradient graph of one forward pass.

    Args:
        source: the tensor in which the source activation lies, as the network computed it.
        target: the target activation, ``(batch, *shape)``.
    """

    source: Tensor
    target: Tensor

    @cached_property
    def rounding(self) -> float:
        """Machine epsilon of the shortest dtype in the graph (see ``coarsest``); the graph is walked once."""
        return max(coarsest(self.target), torch.finfo(self.source.dtype).eps)

    def operators(self) -> int:
        """How many differentiable operators lead to the target. Cost: some microseconds each."""
        return sum(1 for _ in graph_nodes(self.target))


@dataclass
class LinearizedFunction:
    """f near a point: ``f(point + h) ≈ value + J h``.

    Products are batched over samples, and their vectors are flat: tangents ``(batch, n_in)``,
    cotangents ``(batch, n_out)``; the plural forms take k of them at once, ``(k, batch, n)``.
    A vjp is one backward pass through ``recorded_pass``; a jvp is one forward pass of f with dual numbers.

    Args:
        f: the function.
        point: ``(batch, *source shape)``, detached.
        value: ``f(point)``, detached.
        recorded_pass: the graph for vjps; None where it was not recorded.
        passes: how many were made, by kind: ``forward``, ``vjp`` and ``jvp``.
    """

    f: LayerFunction
    point: Tensor
    value: Tensor
    recorded_pass: RecordedPass | None
    passes: Counter[str] = field(default_factory=Counter)
    _double: DoubleVjp | None = None

    @property
    def batch(self) -> int:
        """Number of samples."""
        return int(self.point.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(batch, n_out, n_in)``."""
        return self.batch, self.f.n_out, self.f.n_in

    @property
    def rounding(self) -> float:
        """Machine epsilon of the shortest dtype that the forward pass met."""
        return self.recorded_pass.rounding if self.recorded_pass is not None else torch.finfo(self.value.dtype).eps

    def evaluate(self, h: Tensor, copies: int = 1) -> Tensor:
        """f without gradients, at ``copies`` stacked points ``(copies * batch, *shape)``."""
        self.passes["forward"] += copies
        f = self.f if copies == 1 else self.f.tiled(copies)
        return f(h)

    def vjp(self, u: Shaped[Tensor, "batch n_out"]) -> Shaped[Tensor, "batch n_in"]:
        """Jᵀu for each sample: ``(batch, n_out)`` → ``(batch, n_in)``."""
        row = self.vjp_or_none(u)
        return self.point.new_zeros(self.batch, self.f.n_in) if row is None else row

    def vjp_or_none(self, u: Shaped[Tensor, "batch n_out"]) -> Shaped[Tensor, "batch n_in"] | None:
        """As ``vjp``; None where no path leads from source to target."""
        graph = self._graph()
        if not graph.target.requires_grad:
            return None
        self.passes["vjp"] += 1
        (row,) = vjp(graph.target, (graph.source,), u.reshape(graph.target.shape))
        return None if row is None else self.f.source.view.columns(row[None])[0]

    def vjps(self, u: Shaped[Tensor, "k batch n_out"]) -> Shaped[Tensor, "k batch n_in"]:
        """k vjps in one batched backward pass: ``(k, batch, n_out)`` → ``(k, batch, n_in)``."""
        graph, rows = self._graph(), None
        if graph.target.requires_grad:
            self.passes["vjp"] += u.shape[0]
            (rows,) = vjps(graph.target, (graph.source,), u.reshape(u.shape[0], *graph.target.shape))
        if rows is None:
            return self.point.new_zeros(u.shape[0], self.batch, self.f.n_in)
        return self.f.source.view.columns(rows)

    def jvp(self, v: Shaped[Tensor, "batch n_in"]) -> Shaped[Tensor, "batch n_out"]:
        """Jv for each sample, by dual numbers: ``(batch, n_in)`` → ``(batch, n_out)``."""
        self.passes["jvp"] += 1
        # A tensor that becomes a NumPy array loses its tangent without an error. Where a graph was recorded, autograd
        # has refused that already.
        with fwad.dual_level(), Within(dual=True) if self.recorded_pass is None else nullcontext():
            out = self.f(fwad.make_dual(self.point, v.to(self.point).reshape(self.point.shape)))
            tangent = fwad.unpack_dual(out).tangent
        return self._tangent(tangent).detach()

    def jvps(self, v: Shaped[Tensor, "k batch n_in"]) -> Shaped[Tensor, "k batch n_out"]:
        """k jvps in one vectorised pass: ``(k, batch, n_in)`` → ``(k, batch, n_out)``."""
        self.passes["jvp"] += v.shape[0]

        def one(tangent: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(self.f, (self.point,), (tangent,))[1]
            return self._tangent(out)

        # "same": dropout draws one mask for all tangents, as it does for the value.
        with quiet_vmap():
            tangents = v.to(self.point).reshape(v.shape[0], *self.point.shape)
            out: Tensor = torch.func.vmap(one, randomness="same")(tangents)
        return out.detach()  # a tensor outside of the model may require gradients

    def jvp_by_transposition(self, v: Shaped[Tensor, "batch n_in"]) -> Shaped[Tensor, "batch n_out"]:
        """Jv without forward mode, ``(batch, n_in)`` → ``(batch, n_out)``: see ``DoubleVjp``.

        Cost: a backward pass with a graph, which is kept, and another one through that for each v.

        Raises:
            NotImplementedError: the backward pass leaves no graph: there is no second derivative.
        """
        double = self._double_vjp()
        self.passes["vjp"] += 1
        return double.jvp(v.to(double.pulled)).reshape(self.batch, -1)

    def jvps_by_transposition(self, v: Shaped[Tensor, "k batch n_in"]) -> Shaped[Tensor, "k batch n_out"]:
        """As ``jvp_by_transposition``, k of them in one batched pass: ``(k, batch, n_in)`` → ``(k, batch, n_out)``."""
        double = self._double_vjp()
        self.passes["vjp"] += v.shape[0]
        return double.jvps(v.to(double.pulled)).reshape(v.shape[0], self.batch, -1)

    def _double_vjp(self) -> DoubleVjp:
        """Jᵀu ``(batch, n_in)`` and u ``(batch, *target shape)``, which is random: rules may have a kink at zero."""
        graph = self._graph()
        # Made once: every later Jv costs one pass through its graph.
        if self._double is None:
            u = gaussian(graph.target.shape, 5, graph.target.detach()).requires_grad_()
            self.passes["vjp"] += 1
            with torch.enable_grad():
                (row,) = vjp(graph.target, (graph.source,), u, create_graph=True)
            # Without an error, where a backward pass runs under no_grad or outside of torch.
            if row is None or not row.requires_grad:
                raise NoSecondDerivative
            self._double = DoubleVjp(self.f.source.view.columns(row[None])[0], u)
        return self._double

    def _graph(self) -> RecordedPass:
        if self.recorded_pass is None:
            raise NotImplementedError("there is no gradient graph")
        return self.recorded_pass

    def _tangent(self, tangent: Tensor | None) -> Tensor:
        """Flat, ``(batch, n_out)``. Forward mode gives None for a value that does not depend on the point."""
        if tangent is None:
            return self.point.new_zeros(self.batch, self.f.n_out)
        return tangent.reshape(self.batch, -1)
