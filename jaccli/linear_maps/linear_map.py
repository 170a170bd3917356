"""``LinearMap``: matrices that are known by their products, with the operators of matrices, and what these return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from jaccli.errors import UsageError
from jaccli.linear_maps.extreme_singular_values import Which, extreme_singular_values
from jaccli.linear_maps.matrix_free import MatrixFree, OneSample
from jaccli.linear_maps.norms import singular_values
from jaccli.linear_maps.square import check_square

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from scipy.sparse.linalg import LinearOperator


class LinearMap(MatrixFree):
    """A matrix for each sample, ``(batch, n_out, n_in)``, with products in place of entries.

    ``A.T``, ``A + B``, ``A - B``, ``c * A``, ``-A`` and ``A @ B`` are such maps again, made without any computation;
    B may be a tensor ``(n_out, n_in)`` or ``(batch, n_out, n_in)``, and in ``A @ B`` with a tensor
    ``(batch, n_in, k)`` it is multiplied at once. ``A - A.I`` is J − I. ``A[b]`` is sample b as a SciPy
    ``LinearOperator``.

    Products raise ``UsageError`` for vectors of other shapes.
    """

    def sample(self, b: int) -> LinearMap:
        return self if self.shape[0] == 1 else OneOf(self, b)

    @property
    def T(self) -> LinearMap:  # noqa: N802 - as in NumPy
        """The transposed map, ``(batch, n_in, n_out)``."""
        return Transposed(self)

    def identity(self) -> LinearMap:
        """The identity of this size, also as ``A.I`` (which of a NumPy matrix would be the inverse).

        Raises:
            UsageError: not square.
        """
        return self.I

    @property
    def I(self) -> LinearMap:  # noqa: E743, N802 - the field's name
        """The identity of this size, as ``identity()``.

        Raises:
            UsageError: not square.
        """
        check_square(*self.shape[1:])
        return Identity(self.shape, self.dtype, self.device)

    def __add__(self, other: LinearMap | Tensor) -> LinearMap:
        """A + B, B also a matrix as for ``as_map``: ``(n_out, n_in)`` or ``(batch, n_out, n_in)``."""
        return Sum(self, as_map(other, self))

    def __sub__(self, other: LinearMap | Tensor) -> LinearMap:
        """A - B, B also a matrix as for ``as_map``: ``(n_out, n_in)`` or ``(batch, n_out, n_in)``."""
        return Sum(self, as_map(other, self), -1.0)

    def __mul__(self, factor: float) -> LinearMap:
        return Scaled(self, float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> LinearMap:
        return self * -1.0

    def __matmul__(self, other: Any) -> Any:
        return Composed(self, other) if isinstance(other, LinearMap) else self.matmat(other)

    def __getitem__(self, b: int) -> LinearOperator:
        return self.as_scipy(b)

    def __iter__(self) -> Iterator[LinearOperator]:
        """``A[0]``, ``A[1]``, …: a SciPy ``LinearOperator`` for each sample."""
        return (self.as_scipy(b) for b in range(self.shape[0]))

    def as_scipy(self, b: int | None = None) -> LinearOperator:
        """Sample ``b`` as a SciPy ``LinearOperator`` ``(n_out, n_in)``, which takes and gives NumPy arrays.

        Without ``b`` all samples at once, as the block-diagonal ``(batch * n_out, batch * n_in)``.

        Raises:
            UsageError: there is no such sample.
        """
        from jaccli.linear_maps.scipy_operator import SciPyOperator

        batch = self.shape[0]
        if b is not None and not -batch <= b < batch:
            raise UsageError(f"there is no sample {b}", f"expected 0 to {batch - 1}")
        return SciPyOperator(self if b is None else self.sample(b % batch))

    def singular_values(self, k: int | None = None, which: Which = "largest") -> Tensor:
        """Singular values of each sample, descending: ``(batch, k)`` float64.

        All of them, from the matrices themselves, without ``k``; see ``extreme_singular_values`` for k of them.

        Raises:
            UsageError: more are asked for than there are.
            UnsupportedError: the k smallest do not converge.
        """
        if k is None:
            return singular_values(self.materialise())
        return extreme_singular_values(self, k, which).values.to(self.device)

    def spectral_norm(self) -> Tensor:
        """‖J‖₂ of each sample: ``(batch,)`` float64; some tens of products."""
        return self.singular_values(1)[:, 0]


class OneOf(OneSample, LinearMap):
    """See ``OneSample``."""


class Transposed(LinearMap):
    """Jᵀ: the products of J, exchanged."""

    def __init__(self, base: LinearMap) -> None:
        batch, n_out, n_in = base.shape
        super().__init__((batch, n_in, n_out), base.dtype, base.device)
        self.base = base

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self.base._rmatmat(v)

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self.base._matmat(u)

    def sample(self, b: int) -> Self:
        return type(self)(self.base.sample(b))

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self.base

    def __repr__(self) -> str:
        return f"{self.base!r}.T"


class Scaled(LinearMap):
    """cJ."""

    def __init__(self, base: LinearMap, factor: float) -> None:
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


class Sum(LinearMap):
    """A + cB, on A's device and in its dtype; B may live elsewhere."""

    def __init__(self, base: LinearMap, other: LinearMap, factor: float = 1.0) -> None:
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


class Composed(LinearMap):
    """BA, B being ``base`` and A ``first``: as of two layer pairs of which the first ends where the second begins."""

    def __init__(self, base: LinearMap, first: LinearMap) -> None:
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


class Identity(LinearMap):
    """The identity of each sample, ``(batch, n, n)``."""

    def _matmat(self, v: Shaped[Tensor, "batch n k"]) -> Shaped[Tensor, "batch n k"]:
        return v

    def _rmatmat(self, u: Shaped[Tensor, "batch n k"]) -> Shaped[Tensor, "batch n k"]:
        return u

    def sample(self, b: int) -> Self:
        del b
        return type(self)((1, *self.shape[1:]), self.dtype, self.device)

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self

    def __repr__(self) -> str:
        return "I"


class Matrices(LinearMap):
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


def as_map(other: LinearMap | Tensor, like: LinearMap) -> LinearMap:
    """An operand of ``like`` as a map: ``(n_out, n_in)`` for every sample, or ``(batch, n_out, n_in)``.

    Raises:
        UsageError: neither a map nor a matrix.
    """
    if isinstance(other, LinearMap):
        return other
    if isinstance(other, Tensor) and other.dim() in (2, 3):
        return Matrices(other.to(like.device, like.dtype).expand(like.shape[0], *other.shape[-2:]))
    got = f"a tensor of shape {tuple(other.shape)}" if isinstance(other, Tensor) else repr(other)
    raise UsageError(f"{got} added to a linear map", "expected a map or a matrix", "A - A.I is J - I")
