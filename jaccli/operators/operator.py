"""``jaccli.operator``: J as a linear map, never built."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from jaccli.errors import ResourceError, UnsupportedError, UsageError
from jaccli.operators.faults import is_out_of_memory, reason
from jaccli.operators.linearised import Linearised


class JacobianOperator:
    """The Jacobians of a batch of samples as one batched linear map at a fixed point.

    The forward pass was made when the operator was; ``rmatvec`` costs one backward pass, ``matvec``
    one forward pass with dual numbers, or two backward passes where an operator of the model has no
    forward-mode formula. Nothing of size ``n_out × n_in`` is ever held. Products raise ``UsageError``
    once the model's parameters or buffers have changed, and ``UnsupportedError`` where no pass works.

    Attributes:
        shape: ``(batch, n_out, n_in)``.
    """

    def __init__(self, linear: Linearised, session: Callable[[], AbstractContextManager[None]]) -> None:
        self._linear, self._session = linear, session
        self._forward_mode = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(batch, n_out, n_in)``."""
        return self._linear.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of J and of the vectors it takes."""
        return self._linear.value.dtype

    @property
    def device(self) -> torch.device:
        """Where J and its vectors live."""
        return self._linear.value.device

    def matvec(self, v: Tensor) -> Tensor:
        """Jv for each sample: ``(batch, n_in)`` → ``(batch, n_out)``."""
        return self.matmat(self._checked(v, 2, "n_in").unsqueeze(-1)).squeeze(-1)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Jᵀu for each sample: ``(batch, n_out)`` → ``(batch, n_in)``."""
        return self.rmatmat(self._checked(u, 2, "n_out").unsqueeze(-1)).squeeze(-1)

    def matmat(self, v: Tensor) -> Tensor:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``; k products, one after another."""
        v = self._checked(v, 3, "n_in")
        with self._session():
            return torch.stack([self._forward(column) for column in v.unbind(-1)], dim=-1)

    def rmatmat(self, u: Tensor) -> Tensor:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``; k products, one after another."""
        u = self._checked(u, 3, "n_out")
        with self._session():
            return torch.stack([_product("Jᵀu", self._linear.vjp, column) for column in u.unbind(-1)], dim=-1)

    @property
    def T(self) -> TransposedOperator:  # noqa: N802 - as in NumPy
        """The transposed map, ``(batch, n_in, n_out)``."""
        return TransposedOperator(self)

    def __repr__(self) -> str:
        f = self._linear.f
        return f"JacobianOperator({f.source.address!s} → {f.target.address!s}, shape={self.shape}, {self.dtype})"

    def _forward(self, v: Tensor) -> Tensor:
        if self._forward_mode:
            try:
                return self._linear.jvp(v)
            except (RuntimeError, NotImplementedError):
                self._forward_mode = False
        return _product("Jv", self._linear.jvp_by_transposition, v)

    def _checked(self, vectors: Tensor, dims: int, size: str) -> Tensor:
        batch, n_out, n_in = self.shape
        want = (batch, n_in if size == "n_in" else n_out)
        if vectors.dim() != dims or tuple(vectors.shape[:2]) != want:
            tail = ", k" if dims == 3 else ""
            raise UsageError(
                f"got a tensor of shape {tuple(vectors.shape)}",
                f"expected (batch, {size}{tail}) = ({want[0]}, {want[1]}{tail})",
            )
        return vectors.to(self.device, self.dtype)


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


class TransposedOperator:
    """Jᵀ: the same products, the other way round."""

    def __init__(self, operator: JacobianOperator) -> None:
        self.T = operator
        self.matvec, self.rmatvec = operator.rmatvec, operator.matvec
        self.matmat, self.rmatmat = operator.rmatmat, operator.matmat

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(batch, n_in, n_out)``."""
        batch, n_out, n_in = self.T.shape
        return batch, n_in, n_out

    def __repr__(self) -> str:
        return f"{self.T!r}.T"
