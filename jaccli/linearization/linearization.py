"""f at a point: its value there and its derivative as products, counted."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from jaccli.activations.function import LayerFunction
from jaccli.autograd.walk import graph_nodes
from jaccli.runtime.dispatch import Within

__all__ = [
    "LinearizedFunction",
    "RecordedPass",
    "batching_imported",
    "coarsest",
    "gradient",
    "gradients",
    "graph_nodes",
]


def coarsest(target: Tensor) -> float:
    """The largest machine epsilon among a value's dtype and those of the results that it was computed from.

    That of bfloat16 where a float32 network works in bfloat16 somewhere inside, whatever its target's own dtype.
    Precision inside of an operator (a checkpoint, an ``autograd.Function``) is not seen. Cost: a walk over the graph.
    """
    dtypes = {target.dtype}
    for node in graph_nodes(target):
        dtypes |= {meta.dtype for meta in getattr(node, "_input_metadata", ())}
    found = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(found, default=0.0)


def batching_imported() -> bool:
    """Whether what the first batched pass of a process imports (sympy, 0.4 s) is there."""
    return "torch.fx.experimental.symbolic_shapes" in sys.modules


@dataclass
class RecordedPass:
    """The gradient graph of one forward pass: the raw source tensor and the target ``(batch, *shape)``."""

    source: Tensor
    target: Tensor

    @cached_property
    def rounding(self) -> float:
        """See ``coarsest``; found once."""
        return max(coarsest(self.target), torch.finfo(self.source.dtype).eps)

    def operators(self) -> int:
        """How many differentiable operators lead to the target; some microseconds each."""
        return sum(1 for _ in graph_nodes(self.target))


_NO_SECOND_GRAPH = "the backward pass leaves no graph of itself"


@dataclass
class LinearizedFunction:
    """f near a point.

    Products are batched over samples, and their vectors are flat: tangents ``(batch, n_in)``,
    cotangents ``(batch, n_out)``; the plural forms take k of them at once, ``(k, batch, n)``.
    A vjp is one backward pass through ``live``; a jvp is one forward pass of f with dual numbers.

    Args:
        f: the function.
        point: ``(batch, *source shape)``, detached.
        value: ``f(point)``, detached.
        live: the graph for vjps; None where it was not recorded.
        passes: how many products and evaluations of f were made.
    """

    f: LayerFunction
    point: Tensor
    value: Tensor
    live: RecordedPass | None
    passes: Counter[str] = field(default_factory=Counter)
    _turned: tuple[Tensor, Tensor] | None = None

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
        return self.live.rounding if self.live is not None else torch.finfo(self.value.dtype).eps

    def evaluate(self, h: Tensor, copies: int = 1) -> Tensor:
        """f without gradients, at ``copies`` stacked points ``(copies * batch, *shape)``."""
        self.passes["forward"] += copies
        f = self.f if copies == 1 else self.f.tiled(copies)
        return f(h)

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀu for each sample: ``(batch, n_out)`` → ``(batch, n_in)``."""
        row = self.vjp_or_none(u)
        return self.point.new_zeros(self.batch, self.f.n_in) if row is None else row

    def vjp_or_none(self, u: Tensor) -> Tensor | None:
        """As ``vjp``; None where no path leads from source to target."""
        live = self._graph()
        if not live.target.requires_grad:
            return None
        self.passes["vjp"] += 1
        row = gradient(live.target, live.source, u.reshape(live.target.shape))
        return None if row is None else self.f.source.view.columns(row[None])[0]

    def vjps(self, u: Tensor) -> Tensor:
        """k vjps in one batched backward pass: ``(k, batch, n_out)`` → ``(k, batch, n_in)``."""
        live = self._graph()
        if not live.target.requires_grad:
            return self.point.new_zeros(u.shape[0], self.batch, self.f.n_in)
        self.passes["vjp"] += u.shape[0]
        rows = gradients(live.target, live.source, u.reshape(u.shape[0], *live.target.shape))
        if rows is None:
            return self.point.new_zeros(u.shape[0], self.batch, self.f.n_in)
        return self.f.source.view.columns(rows)

    def jvp(self, v: Tensor) -> Tensor:
        """Jv for each sample, by dual numbers: ``(batch, n_in)`` → ``(batch, n_out)``."""
        self.passes["jvp"] += 1
        with fwad.dual_level(), Within(dual=True) if self.live is None else nullcontext():
            out = self.f(fwad.make_dual(self.point, v.to(self.point).reshape(self.point.shape)))
            tangent = fwad.unpack_dual(out).tangent
        return self._tangent(tangent).detach()

    def jvps(self, v: Tensor) -> Tensor:
        """k jvps in one vectorised pass: ``(k, batch, n_in)`` → ``(k, batch, n_out)``."""
        self.passes["jvp"] += v.shape[0]

        def one(tangent: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(self.f, (self.point,), (tangent,))[1]
            return self._tangent(out)

        with _quiet_vmap():
            tangents = v.to(self.point).reshape(v.shape[0], *self.point.shape)
            out: Tensor = torch.func.vmap(one, randomness="same")(tangents)
        return out.detach()  # a tensor outside the model may ask for gradients

    def jvp_by_transposition(self, v: Tensor) -> Tensor:
        """Jv without forward mode: Jᵀu is linear in u, and its derivative by u along v is Jv.

        The "double vjp" trick (J. Townsend, 2017). Cost: a backward pass with a graph, which is kept, and another
        one through that for each v.

        Raises:
            NotImplementedError: the backward pass leaves no graph: there is no second derivative to be had.
        """
        pulled, u = self._transposed()
        self.passes["vjp"] += 1
        out = gradient(pulled, u, v.to(pulled))
        if out is None:
            raise NotImplementedError(_NO_SECOND_GRAPH)
        return self._tangent(out)

    def jvps_by_transposition(self, v: Tensor) -> Tensor:
        """As ``jvp_by_transposition``, k of them in one batched pass: ``(k, batch, n_in)`` → ``(k, batch, n_out)``."""
        pulled, u = self._transposed()
        self.passes["vjp"] += v.shape[0]
        out = gradients(pulled, u, v.to(pulled))
        if out is None:
            raise NotImplementedError(_NO_SECOND_GRAPH)
        return out.reshape(v.shape[0], self.batch, -1)

    def _transposed(self) -> tuple[Tensor, Tensor]:
        """Jᵀu ``(batch, n_in)``, connected to u; u is random, since rules may have a kink at zero."""
        live = self._graph()
        if self._turned is None:
            generator = torch.Generator().manual_seed(5)
            target = live.target.detach()
            u = torch.randn(target.shape, generator=generator).to(target).requires_grad_()
            self.passes["vjp"] += 1
            with torch.enable_grad():
                row = gradient(live.target, live.source, u, create_graph=True)
            if row is None or not row.requires_grad:
                raise NotImplementedError(_NO_SECOND_GRAPH)
            self._turned = self.f.source.view.columns(row[None])[0], u
        return self._turned

    def _graph(self) -> RecordedPass:
        if self.live is None:
            raise NotImplementedError("there is no gradient graph")
        return self.live

    def _tangent(self, tangent: Tensor | None) -> Tensor:
        if tangent is None:
            return self.point.new_zeros(self.batch, self.f.n_out)
        return tangent.reshape(self.batch, -1)


def gradient(target: Tensor, source: Tensor, cotangent: Tensor, create_graph: bool = False) -> Tensor | None:
    """One backward pass.

    The first ``torch.autograd.grad`` that is handed a cotangent imports sympy (0.4 s); the gradient of an
    inner product does not.
    """
    if batching_imported():
        return torch.autograd.grad(target, source, cotangent, True, create_graph, allow_unused=True)[0]
    with torch.enable_grad():
        # A caller's vector of inference mode cannot be saved for a backward pass; a copy of it can.
        inner = (target * (cotangent.clone() if cotangent.is_inference() else cotangent)).sum()
    return torch.autograd.grad(inner, source, None, True, create_graph, allow_unused=True)[0]


def gradients(target: Tensor, source: Tensor, cotangents: Tensor, create_graph: bool = False) -> Tensor | None:
    """k backward passes in one: ``(k, *target.shape)`` → ``(k, *source.shape)``, or None without a path."""
    with _quiet_vmap():
        (rows,) = torch.autograd.grad(
            target, source, cotangents, True, create_graph, allow_unused=True, is_grads_batched=True
        )
    return rows


@contextmanager
def _quiet_vmap() -> Iterator[None]:
    """An operator without a batching rule is run one row at a time: slower, not wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
        yield
