"""``jaccli.operator``: J as a linear map, never built."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import ResourceError, UnsupportedError
from jaccli.layers.function import LayerFunction
from jaccli.operators.faults import is_out_of_memory, reason
from jaccli.operators.linear_map import LinearMap
from jaccli.operators.linearised import Linearised
from jaccli.operators.routes import Route, Routes

Session = Callable[[], AbstractContextManager[None]]
# Products asked for before another way than one pass after the other is tried: it imports or captures first.
BATCHED_FROM = 8
GRAPH_FROM = 2


class JacobianOperator(LinearMap):
    """The Jacobians of a batch of samples as one batched linear map at a fixed point.

    The forward pass was made when the operator was. ``rmatvec`` costs one backward pass, ``matvec`` one forward
    pass with dual numbers, or two backward passes where an operator of the model has no forward-mode formula.
    Once some products have been asked for, the derivatives of the network's operators, one by one (as in
    ``structured``), are tried too, or, where the network cannot be seen, batched passes; what is faster for so many
    vectors is kept. Nothing of
    size ``n_out × n_in`` is ever held. Products raise ``UsageError`` once the model's parameters or buffers have
    changed, and ``UnsupportedError`` where no pass works.

    Args:
        linear: f at the point, with its graph.
        session: in which products are made.
        alone: the operator of one sample.
        others: further ways of JV and of JᵀU.
        mixes: products are of the whole batch's Jacobian, not of each sample's own block.
    """

    def __init__(
        self,
        linear: Linearised,
        session: Session,
        alone: Callable[[int], LinearMap],
        others: tuple[Sequence[Route], Sequence[Route]] = ((), ()),
        mixes: bool = False,
    ) -> None:
        self._linear, self._session, self._alone = linear, session, alone
        self.mixes = mixes
        self._forward_mode = True
        forth = [*others[0], Route("batched", self._jvps, BATCHED_FROM)]
        back = [*others[1], Route("batched", self._vjps, BATCHED_FROM)]
        self._forth = Routes(Route("single", self._one_by_one(self._jvp)), forth, self._is_image)
        self._back = Routes(Route("single", self._one_by_one(self._vjp)), back, self._is_pulled)

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

    def forth(self, v: Tensor) -> Tensor:
        with self._session():
            return self._forth(v)

    def back(self, u: Tensor) -> Tensor:
        with self._session():
            return self._back(u)

    def sample(self, b: int) -> LinearMap:
        return self if self.shape[0] == 1 else self._alone(b)

    def __repr__(self) -> str:
        f = self._linear.f
        return f"JacobianOperator({f.source.address!s} → {f.target.address!s}, shape={self.shape}, {self.dtype})"

    @staticmethod
    def _one_by_one(take: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def each(vectors: Tensor) -> Tensor:
            if not vectors.shape[-1]:  # the shape of the result is that of a product with nothing
                return take(vectors.new_zeros(vectors.shape[:2])).unsqueeze(-1)[..., :0]
            return torch.stack([take(column) for column in vectors.unbind(-1)], dim=-1)

        return each

    def _vjp(self, u: Tensor) -> Tensor:
        return _product("Jᵀu", self._linear.vjp, u)

    def _jvp(self, v: Tensor) -> Tensor:
        if "torch._dynamo" not in sys.modules:
            # The first dual numbers of a process import the compiler (2 s); two backward passes do not.
            with suppress(RuntimeError, NotImplementedError):
                return self._linear.jvp_by_transposition(v)
        if self._forward_mode:
            try:
                return self._linear.jvp(v)
            except (RuntimeError, NotImplementedError):
                self._forward_mode = False
        return _product("Jv", self._linear.jvp_by_transposition, v)

    def _is_pulled(self, found: Tensor, u: Tensor) -> bool:
        """Whether the last column is that of a single backward pass."""
        row = self._vjp(u[..., -1])
        return _close((found[..., -1] - row).double().norm(dim=1), found, row.double().norm(dim=1))

    def _is_image(self, found: Tensor, v: Tensor) -> bool:
        """Whether ⟨w, Jv⟩ = ⟨Jᵀw, v⟩ for the last column and a random w: a forward pass may import for seconds."""
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(found.shape[:2], generator=generator).to(found)
        gap = (w * found[..., -1]).double().sum(1) - (self._vjp(w) * v[..., -1]).double().sum(1)
        return _close(gap.abs(), found, (w.double().norm(dim=1) * found[..., -1].double().norm(dim=1)))

    def _vjps(self, u: Tensor) -> Tensor:
        return self._linear.vjps(u.movedim(-1, 0)).movedim(0, -1)

    def _jvps(self, v: Tensor) -> Tensor:
        return self._linear.jvps(v.movedim(-1, 0)).movedim(0, -1)


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

    def forth(self, v: Tensor) -> Tensor:
        return self._of.forth(self._among(v))[self._b : self._b + 1]

    def back(self, u: Tensor) -> Tensor:
        return self._of.back(self._among(u))[self._b : self._b + 1]

    def sample(self, b: int) -> LinearMap:
        del b
        return self

    def _among(self, vectors: Tensor) -> Tensor:
        every = vectors.new_zeros(self._of.shape[0], *vectors.shape[1:])
        every[self._b] = vectors[0]
        return every


def _close(gap: Tensor, found: Tensor, size: Tensor) -> bool:
    """Whether a difference is rounding: small beside ``size``, or beside what other columns are."""
    reach = torch.finfo(found.dtype).eps ** defaults.BELIEF_POWER
    floor = reach * float(found.double().norm()) / max(found.shape[-1], 1) ** 0.5
    fine = gap <= reach * size.clamp(min=floor)
    return bool((fine | ~gap.isfinite()).all())


def _product(name: str, take: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    try:
        return take(vector)
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ResourceError(f"out of memory in {name}", "", "give fewer samples at a time") from None
        raise UnsupportedError(
            f"no product {name}: {reason(error)}",
            "expected a model that can be differentiated",
            "jaccli.jacobian(method='finite-difference') needs no gradients",
        ) from error
