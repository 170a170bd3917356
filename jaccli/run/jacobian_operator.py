"""``jaccli.operator``: J as a linear map, never built.

Each product has several implementations, tried in an order of preference and verified once (``Implementations``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.function import LayerFunction
from jaccli.errors import warn
from jaccli.linear_maps.by_rows import ByRows
from jaccli.linear_maps.implementations import BATCHED, Implementation, Implementations
from jaccli.linear_maps.linear_map import LinearMap
from jaccli.linearization.differences import unchecked
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.linearization.verify import Truth

if TYPE_CHECKING:
    from jaxtyping import Shaped


Session = Callable[[], AbstractContextManager[None]]
# JV or JᵀU: ``(batch, n, k)`` → ``(batch, m, k)``.
Product = Callable[[Tensor], Tensor]
# How many vectors must have been asked for before an implementation is tried that imports first (sympy, at the first
# batched pass: 0.4 s), or that captures the network as a graph first.
BATCHED_FROM = 8
GRAPH_FROM = 2


@dataclass(frozen=True)
class Setting:
    """What a ``JacobianOperator`` needs to know of a pair beside f at the point.

    Args:
        session: the context in which products are computed.
        alone: the operator of one sample.
        structured: JV and JᵀU by the derivatives of the network's operators; None where those are out of reach.
        last_resort: J ``(batch, n_out, n_in)`` as ``jaccli.jacobian`` has it, where no product works.
        connected: a path leads from source to target.
        mixes: products are of the whole batch's Jacobian, not of each sample's own block.
        backward: there is a backward pass.
        hold: bytes up to which a J that must be taken row by row is kept.
        set_aside: implementations that failed on the same samples before.
        quiet: no notes.
    """

    session: Session
    alone: Callable[[int], LinearMap]
    structured: tuple[Product, Product] | None
    last_resort: Callable[[], Tensor]
    connected: bool = True
    mixes: bool = False
    backward: bool = True
    hold: int = defaults.WORKING_SET
    set_aside: frozenset[str] = frozenset()
    quiet: bool = False


class JacobianOperator(LinearMap):
    """The Jacobians ``(batch, n_out, n_in)`` of a batch of samples as one batched linear map at a fixed point.

    ``matvec`` is Jv, ``(batch, n_in)`` → ``(batch, n_out)``; ``rmatvec`` is Jᵀu, the other way; ``matmat`` and
    ``rmatmat`` take k vectors at once, ``(batch, n, k)``. Results have the target's dtype and device.

    The forward pass was made when the operator was. ``rmatvec`` costs one backward pass. ``matvec`` has several
    implementations: the derivatives of the network's operators, one by one (as in ``structured``), a backward pass that
    is differentiated again, forward mode, and, where all of these are absent or wrong, the rows of J. Of each product
    the first that works is taken; it is compared with plain backward passes once, and set aside for the next where it
    is wrong, with a note. Nothing of size ``n_out × n_in`` is held, but for a small J that must be taken row by row.

    Products raise ``UsageError`` once the model's parameters or buffers have changed, and ``UnsupportedError`` where
    no implementation works, nor J itself.

    Source: Jv by two backward passes is J. Townsend, *A new trick for calculating Jacobian vector products*, 2017;
    forward mode is R. E. Wengert, 1964.

    Example:
        >>> import jaccli, torch
        >>> j = jaccli.operator(torch.nn.Softmax(dim=1), torch.zeros(1, 2))
        >>> j
        JacobianOperator(input → output, shape=(1, 2, 2), torch.float32)
        >>> j.matvec(torch.tensor([[1.0, 0.0]]))
        tensor([[ 0.2500, -0.2500]])

    Args:
        linear: f at the point, with its graph.
        setting: what else is known.
    """

    def __init__(self, linear: LinearizedFunction, setting: Setting) -> None:
        super().__init__(linear.shape, linear.value.dtype, linear.value.device)
        self._linear, self._setting = linear, setting
        self.mixes = setting.mixes
        truth = Truth(linear, setting.mixes, setting.backward)
        matmat, rmatmat = self._implementations()
        aside, quiet = set(setting.set_aside), setting.quiet
        name = "a backward pass" if setting.backward else "differences"

        def is_image(image: Tensor) -> bool:
            agrees = truth.is_image(image)
            if agrees and truth.undecided_samples:
                warn(unchecked("Jv", truth.undecided_samples, linear.batch))
            return agrees

        self._matmat_by = Implementations("Jv", matmat, lambda: truth.z, is_image, name, quiet, aside)
        self._rmatmat_by = Implementations("Jᵀu", rmatmat, lambda: truth.w, truth.is_pulled, name, quiet, aside)

    def _implementations(self) -> tuple[list[Implementation], list[Implementation]]:
        """The implementations of JV and of JᵀU, by preference."""
        linear, setting = self._linear, self._setting
        push, pull = setting.structured or (None, None)
        matmat = [Implementation("structured", push, GRAPH_FROM)] if push is not None else []
        rmatmat: list[Implementation] = []
        if setting.backward:
            matmat += [
                Implementation("double backward" + BATCHED, _together(linear.jvps_by_transposition), BATCHED_FROM, 2),
                Implementation("double backward", _one_by_one(linear.jvp_by_transposition)),
            ]
            rmatmat += [Implementation("backward" + BATCHED, _together(linear.vjps), BATCHED_FROM, 2)]
            rmatmat += [Implementation("structured", pull, BATCHED_FROM, 2)] if pull is not None else []
            rmatmat += [Implementation("backward", _one_by_one(linear.vjp), reference=True)]
        matmat += [
            Implementation("forward mode" + BATCHED, _together(linear.jvps), BATCHED_FROM, 2),
            Implementation("forward mode", _one_by_one(linear.jvp)),
        ]
        if setting.backward:
            rows = ByRows(lambda u: self._rmatmat_by(u), linear.shape, setting.mixes, setting.hold)
            matmat += [Implementation("rows of J", rows, reference=True)]
        else:
            batch, n_out, n_in = linear.shape
            columns = ByRows(lambda v: self._matmat_by(v), (batch, n_in, n_out), setting.mixes, setting.hold)
            matmat += [Implementation("J itself", lambda v: setting.last_resort() @ v, reference=True)]
            rmatmat += [Implementation("columns of J", columns, reference=True)]
        return matmat, rmatmat

    @property
    def value(self) -> Tensor:
        """The target's activation, ``(batch, …)``."""
        return self._linear.value

    @property
    def function(self) -> LayerFunction:
        """f, whose Jacobian it is."""
        return self._linear.f

    @property
    def passes(self) -> dict[str, int]:
        """How many passes through the network were made, by kind."""
        return dict(self._linear.passes)

    @property
    def routes(self) -> dict[str, list[str]]:
        """The implementations that were verified, of ``matvec`` and of ``rmatvec``, and those that were set aside."""
        return {
            "matvec": sorted(self._matmat_by.verified),
            "rmatvec": sorted(self._rmatmat_by.verified),
            "set aside": sorted(self._matmat_by.set_aside | self._rmatmat_by.set_aside),
        }

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self._product(self._matmat_by, v, self.shape[1])

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self._product(self._rmatmat_by, u, self.shape[2])

    def _product(self, by: Implementations, vectors: Tensor, size: int) -> Tensor:
        """``(batch, n, k)`` → ``(batch, size, k)``."""
        if not vectors.shape[-1] or not self._setting.connected:
            return vectors.new_zeros(vectors.shape[0], size, vectors.shape[-1])
        with self._setting.session():
            return by(vectors)

    def sample(self, b: int) -> LinearMap:
        return self if self.shape[0] == 1 else self._setting.alone(b)

    def __repr__(self) -> str:
        f = self._linear.f
        return f"JacobianOperator({f.source.address!s} → {f.target.address!s}, shape={self.shape}, {self.dtype})"


def _one_by_one(product: Product) -> Product:
    """A product with ``(batch, n)`` as one with ``(batch, n, k)``."""
    return lambda vectors: torch.stack([product(column) for column in vectors.unbind(-1)], dim=-1)


def _together(product: Product) -> Product:
    """A product with ``(k, batch, n)`` as one with ``(batch, n, k)``."""
    return lambda vectors: product(vectors.movedim(-1, 0)).movedim(0, -1)
