"""``LinearMap``: matrices that are known by their products, with the operators of matrices, and what these return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jaccli.errors import UsageError
from jaccli.linear_maps import algebra
from jaccli.linear_maps.extreme_singular_values import Which, extreme_singular_values
from jaccli.linear_maps.matrix_free import MatrixFree, OneSample
from jaccli.linear_maps.norms import singular_values
from jaccli.linear_maps.square import check_square

if TYPE_CHECKING:
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


class Transposed(algebra.Transposed, LinearMap):
    """See ``algebra``."""

    base: LinearMap

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self.base


class Scaled(algebra.Scaled, LinearMap):
    """See ``algebra``."""


class Sum(algebra.Sum, LinearMap):
    """See ``algebra``."""


class Composed(algebra.Composed, LinearMap):
    """See ``algebra``."""


class Identity(algebra.Identity, LinearMap):
    """See ``algebra``."""

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self


class Matrices(algebra.Matrices, LinearMap):
    """See ``algebra``."""


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
