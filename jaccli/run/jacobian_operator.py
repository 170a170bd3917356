"""``jaccli.operator``: J as a linear map, never built."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

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

Session = Callable[[], AbstractContextManager[None]]
# Products asked for before a route is tried that imports, or captures the network, first.
BATCHED_FROM = 8
GRAPH_FROM = 2


@dataclass(frozen=True)
class Setting:
    """What is known of a pair beside f at the point.

    Args:
        session: in which products are made.
        alone: the operator of one sample.
        structured: JV and JᵀU by the derivatives of the network's operators; None where those are out of reach.
        last_resort: J as ``jaccli.jacobian`` has it, where no product is to be had.
        connected: a path leads from source to target.
        mixes: products are of the whole batch's Jacobian, not of each sample's own block.
        backward: there is a backward pass.
        hold: bytes up to which a J that must be taken row by row is kept.
        set_aside: routes that failed on the same samples before.
        quiet: no notes.
    """

    session: Session
    alone: Callable[[int], LinearMap]
    structured: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    last_resort: Callable[[], Tensor]
    connected: bool = True
    mixes: bool = False
    backward: bool = True
    hold: int = defaults.WORKING_SET
    set_aside: frozenset[str] = frozenset()
    quiet: bool = False


class JacobianOperator(LinearMap):
    """The Jacobians of a batch of samples as one batched linear map at a fixed point.

    The forward pass was made when the operator was. ``rmatvec`` costs one backward pass. ``matvec`` has several routes:
    the derivatives of the network's operators, one by one (as in ``structured``), a backward pass that is
    differentiated again, forward mode, and, where all of these are absent or wrong, the rows of J. Of each product the
    first route that works is taken; it is verified against plain backward passes once, and left for the next where it
    is wrong, with a note. Nothing of size ``n_out × n_in`` is held, but for a small J that must be taken row by row.

    Products raise ``UsageError`` once the model's parameters or buffers have changed, and ``UnsupportedError`` where
    no route works, nor J itself.

    Args:
        linear: f at the point, with its graph.
        setting: what else is known.
    """

    def __init__(self, linear: LinearizedFunction, setting: Setting) -> None:
        self._linear, self._setting = linear, setting
        self.mixes = setting.mixes
        truth = Truth(linear, setting.mixes, setting.backward)
        forth, back = self._routes()
        aside, quiet = set(setting.set_aside), setting.quiet
        name = "a backward pass" if setting.backward else "differences"

        def holds(image: Tensor) -> bool:
            held = truth.is_image(image)
            if held and truth.unsettled:
                warn(unchecked("Jv", truth.unsettled, linear.batch))
            return held

        self._forth = Implementations("Jv", forth, lambda: truth.z, holds, name, quiet, aside)
        self._back = Implementations("Jᵀu", back, lambda: truth.w, truth.is_pulled, name, quiet, aside)

    def _routes(self) -> tuple[list[Implementation], list[Implementation]]:
        """The routes of JV and of JᵀU, by preference."""
        linear, setting = self._linear, self._setting
        push, pull = setting.structured or (None, None)
        forth = [Implementation("structured", push, GRAPH_FROM)] if push is not None else []
        back: list[Implementation] = []
        if setting.backward:
            forth += [
                Implementation("double backward" + BATCHED, _together(linear.jvps_by_transposition), BATCHED_FROM, 2),
                Implementation("double backward", _one_by_one(linear.jvp_by_transposition)),
            ]
            back += [Implementation("backward" + BATCHED, _together(linear.vjps), BATCHED_FROM, 2)]
            back += [Implementation("structured", pull, BATCHED_FROM, 2)] if pull is not None else []
            back += [Implementation("backward", _one_by_one(linear.vjp), reference=True)]
        forth += [
            Implementation("forward mode" + BATCHED, _together(linear.jvps), BATCHED_FROM, 2),
            Implementation("forward mode", _one_by_one(linear.jvp)),
        ]
        if setting.backward:
            rows = ByRows(lambda u: self._back(u), linear.shape, setting.mixes, setting.hold)
            forth += [Implementation("rows of J", rows, reference=True)]
        else:
            batch, n_out, n_in = linear.shape
            columns = ByRows(lambda v: self._forth(v), (batch, n_in, n_out), setting.mixes, setting.hold)
            forth += [Implementation("J itself", lambda v: setting.last_resort() @ v, reference=True)]
            back += [Implementation("columns of J", columns, reference=True)]
        return forth, back

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._linear.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._linear.value.dtype

    @property
    def device(self) -> torch.device:
        return self._linear.value.device

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
        """The routes that were verified, of ``matvec`` and of ``rmatvec``, and those that were set aside."""
        return {
            "matvec": sorted(self._forth.verified),
            "rmatvec": sorted(self._back.verified),
            "set aside": sorted(self._forth.set_aside | self._back.set_aside),
        }

    def _matmat(self, v: Tensor) -> Tensor:
        return self._product(self._forth, v, self.shape[1])

    def _rmatmat(self, u: Tensor) -> Tensor:
        return self._product(self._back, u, self.shape[2])

    def _product(self, routes: Implementations, vectors: Tensor, size: int) -> Tensor:
        if not vectors.shape[-1] or not self._setting.connected:
            return vectors.new_zeros(vectors.shape[0], size, vectors.shape[-1])
        with self._setting.session():
            return routes(vectors)

    def sample(self, b: int) -> LinearMap:
        return self if self.shape[0] == 1 else self._setting.alone(b)

    def __repr__(self) -> str:
        f = self._linear.f
        return f"JacobianOperator({f.source.address!s} → {f.target.address!s}, shape={self.shape}, {self.dtype})"


def _one_by_one(take: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A product with ``(batch, n)`` as one with ``(batch, n, k)``."""
    return lambda vectors: torch.stack([take(column) for column in vectors.unbind(-1)], dim=-1)


def _together(take: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A product with ``(k, batch, n)`` as one with ``(batch, n, k)``."""
    return lambda vectors: take(vectors.movedim(-1, 0)).movedim(0, -1)


class OneOf(LinearMap):
    """One sample of a map whose samples cannot be taken apart: the others' vectors are zero."""

    def __init__(self, of: LinearMap, b: int) -> None:
        self._of, self._b = of, b

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, *self._of.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self._of.dtype

    @property
    def device(self) -> torch.device:
        return self._of.device

    def _matmat(self, v: Tensor) -> Tensor:
        return self._of._matmat(self._among(v))[self._b : self._b + 1]

    def _rmatmat(self, u: Tensor) -> Tensor:
        return self._of._rmatmat(self._among(u))[self._b : self._b + 1]

    def sample(self, b: int) -> LinearMap:
        del b
        return self

    def _among(self, vectors: Tensor) -> Tensor:
        every = vectors.new_zeros(self._of.shape[0], *vectors.shape[1:])
        every[self._b] = vectors[0]
        return every
