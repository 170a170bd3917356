"""Maps made of others, by their products: Jᵀ, cJ, A + cB, BA; and the maps of an identity and of a tensor.

``linear_map`` has the same classes with the operators of matrices, which return these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from jaccli.errors import UsageError
from jaccli.linear_maps.matrix_free import MatrixFree

if TYPE_CHECKING:
    from jaxtyping import Shaped


class Transposed(MatrixFree):
    """Jᵀ: the products of J, exchanged."""

    def __init__(self, base: MatrixFree) -> None:
        batch, n_out, n_in = base.shape
        super().__init__((batch, n_in, n_out), base.dtype, base.device)
        self.base = base

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self.base._rmatmat(v)

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self.base._matmat(u)

    def sample(self, b: int) -> Self:
        return type(self)(self.base.sample(b))

    def __repr__(self) -> str:
        return f"{self.base!r}.T"


class Scaled(MatrixFree):
    """cJ."""

    def __init__(self, base: MatrixFree, factor: float) -> None:
        super().__init__(base.shape, base.dtype, base.device)
        self.base, self.factor = base, factor

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self.factor * self.base._matmat(v)

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self.factor * self.base._rmatmat(u)

    def sample(self, b: int) -> Self:
        return type(self)(self.base.sample(b), self.factor)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.base!r}"


class Sum(MatrixFree):
    """A + cB, on A's device and in its dtype; B may live elsewhere."""

    def __init__(self, base: MatrixFree, other: MatrixFree, factor: float = 1.0) -> None:
        if base.shape != other.shape:
            raise UsageError(f"maps of shape {base.shape} and {other.shape}", "expected equal shapes")
        super().__init__(base.shape, base.dtype, base.device)
        self.base, self.other, self.factor = base, other, factor

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return torch.add(self.base._matmat(v), self.other._matmat(v).to(self.device, self.dtype), alpha=self.factor)

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return torch.add(self.base._rmatmat(u), self.other._rmatmat(u).to(self.device, self.dtype), alpha=self.factor)

    def sample(self, b: int) -> Self:
        return type(self)(self.base.sample(b), self.other.sample(b), self.factor)

    def __repr__(self) -> str:
        sign = "+" if self.factor > 0 else "-"
        return f"({self.base!r} {sign} {self.other!r})"


class Composed(MatrixFree):
    """BA, B being ``base`` and A ``first``: as of two layer pairs of which the first ends where the second begins."""

    def __init__(self, base: MatrixFree, first: MatrixFree) -> None:
        (batch, n_out, inner), (other, meets, n_in) = base.shape, first.shape
        if (batch, inner) != (other, meets):
            raise UsageError(
                f"a map of shape {base.shape} after one of shape {first.shape}",
                "expected the same samples, and as many columns as the other has rows",
            )
        super().__init__((batch, n_out, n_in), base.dtype, base.device)
        self.base, self.first = base, first

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self.base._matmat(self.first._matmat(v).to(self.device, self.dtype))

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self.first._rmatmat(self.base._rmatmat(u).to(self.first.device, self.first.dtype))

    def sample(self, b: int) -> Self:
        return type(self)(self.base.sample(b), self.first.sample(b))

    def __repr__(self) -> str:
        return f"({self.base!r} @ {self.first!r})"


class Identity(MatrixFree):
    """The identity of each sample, ``(batch, n, n)``."""

    def _matmat(self, v: Shaped[Tensor, "batch n k"]) -> Shaped[Tensor, "batch n k"]:
        return v

    def _rmatmat(self, u: Shaped[Tensor, "batch n k"]) -> Shaped[Tensor, "batch n k"]:
        return u

    def sample(self, b: int) -> Self:
        del b
        return type(self)((1, *self.shape[1:]), self.dtype, self.device)

    def __repr__(self) -> str:
        return "I"


class Matrices(MatrixFree):
    """The map of a tensor of matrices, ``(batch, n_out, n_in)``."""

    def __init__(self, matrices: Tensor) -> None:
        """Of any shape; others than ``(batch, n_out, n_in)`` are refused."""
        if matrices.dim() != 3:
            raise UsageError(f"a tensor of shape {tuple(matrices.shape)}", "expected (batch, n_out, n_in)")
        batch, n_out, n_in = matrices.shape
        super().__init__((batch, n_out, n_in), matrices.dtype, matrices.device)
        self._matrices = matrices

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self._matrices @ v

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self._matrices.mT @ u

    def sample(self, b: int) -> Self:
        return type(self)(self._matrices[b : b + 1])

    def __repr__(self) -> str:
        return f"Matrices(shape={self.shape}, {self.dtype})"
