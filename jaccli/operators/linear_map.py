"""Batches of matrices that are known by their products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.errors import ResourceError, UsageError
from jaccli.operators.by_rows import one_hot_blocks
from jaccli.operators.magnitude import norm, singular_values

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from jaccli.operators.extremes import Which


class LinearMap(ABC):
    """A matrix for each sample, ``(batch, n_out, n_in)``, with products in place of entries.

    ``A.T``, ``A + B``, ``A - B``, ``c * A``, ``-A`` and ``A @ B`` are such maps again, nothing is computed for
    them; B may be a tensor ``(n_out, n_in)`` or ``(batch, n_out, n_in)``, and in ``A @ B`` with a tensor
    ``(batch, n_in, k)`` it is multiplied at once. ``A - A.I`` is J − I. ``A[b]`` is sample b as a SciPy
    ``LinearOperator``.

    Products raise ``UsageError`` for vectors of other shapes.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """``(batch, n_out, n_in)``."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the matrices, and of the vectors they take."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the matrices and their vectors live."""

    @abstractmethod
    def forth(self, v: Tensor) -> Tensor:
        """As ``matmat``, of vectors that fit."""

    @abstractmethod
    def back(self, u: Tensor) -> Tensor:
        """As ``rmatmat``, of vectors that fit."""

    @abstractmethod
    def sample(self, b: int) -> LinearMap:
        """That of one sample alone, with a batch of 1."""

    def matvec(self, v: Tensor) -> Tensor:
        """Jv for each sample: ``(batch, n_in)`` → ``(batch, n_out)``."""
        return self.forth(self._checked(v, 2, 2).unsqueeze(-1)).squeeze(-1)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Jᵀu for each sample: ``(batch, n_out)`` → ``(batch, n_in)``."""
        return self.back(self._checked(u, 2, 1).unsqueeze(-1)).squeeze(-1)

    def matmat(self, v: Tensor) -> Tensor:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``."""
        return self.forth(self._checked(v, 3, 2))

    def rmatmat(self, u: Tensor) -> Tensor:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``."""
        return self.back(self._checked(u, 3, 1))

    def _checked(self, vectors: Tensor, dims: int, side: int) -> Tensor:
        want = (self.shape[0], self.shape[side])
        if not isinstance(vectors, Tensor) or vectors.dim() != dims or tuple(vectors.shape[:2]) != want:
            got = f"a tensor of shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
            tail = ", k" if dims == 3 else ""
            size = ("", "n_out", "n_in")[side]
            raise UsageError(f"got {got}", f"expected (batch, {size}{tail}) = ({want[0]}, {want[1]}{tail})")
        return vectors.to(self.device, self.dtype)

    @property
    def T(self) -> LinearMap:  # noqa: N802 - as in NumPy
        """The transposed map, ``(batch, n_in, n_out)``."""
        from jaccli.operators.algebra import Transposed

        return Transposed(self)

    def identity(self) -> LinearMap:
        """The identity of this size, also as ``A.I`` (which of a NumPy matrix would be the inverse).

        Raises:
            UsageError: not square.
        """
        return self.I

    @property
    def I(self) -> LinearMap:  # noqa: E743, N802 - the field's name
        """The identity of this size.

        Raises:
            UsageError: not square.
        """
        from jaccli.operators.algebra import Identity, check_square

        return Identity(check_square(self), self.dtype, self.device)

    def __add__(self, other: LinearMap | Tensor) -> LinearMap:
        from jaccli.operators.algebra import Sum, as_map

        return Sum(self, as_map(other, self))

    def __sub__(self, other: LinearMap | Tensor) -> LinearMap:
        from jaccli.operators.algebra import Sum, as_map

        return Sum(self, as_map(other, self), -1.0)

    def __mul__(self, factor: float) -> LinearMap:
        from jaccli.operators.algebra import Scaled

        return Scaled(self, float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> LinearMap:
        return self * -1.0

    def __matmul__(self, other: Any) -> Any:
        from jaccli.operators.algebra import Composed

        return Composed(self, other) if isinstance(other, LinearMap) else self.matmat(other)

    def __getitem__(self, b: int) -> LinearOperator:
        return self.as_scipy(b)

    def as_scipy(self, b: int | None = None) -> LinearOperator:
        """Sample ``b`` as a SciPy ``LinearOperator`` ``(n_out, n_in)``, which takes and gives NumPy arrays.

        Without ``b`` all samples at once, as the block-diagonal ``(batch * n_out, batch * n_in)``.

        Raises:
            UsageError: there is no such sample.
        """
        from jaccli.operators.scipy_operator import SciPyOperator

        batch = self.shape[0]
        if b is not None and not -batch <= b < batch:
            raise UsageError(f"sample {b} is not there", f"expected 0 to {batch - 1}")
        return SciPyOperator(self if b is None else self.sample(b % batch))

    def materialise(self, max_memory: int | None = None) -> Tensor:
        """The matrices, ``(batch, n_out, n_in)``, from products with the identity on the smaller side.

        Cost: min(n_out, n_in) products. For a layer pair of a network ``jaccli.jacobian`` is faster.

        Raises:
            ResourceError: they need more than ``max_memory`` bytes.
        """
        batch, n_out, n_in = self.shape
        need = batch * n_out * n_in * self.dtype.itemsize
        if max_memory is not None and need > max_memory:
            raise ResourceError(
                f"{batch} matrices, {n_out} x {n_in} each, need {need} bytes", f"expected at most {max_memory}"
            )
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for start, block in self.blocks():
            out.narrow(1 if n_out <= n_in else 2, start, block.shape[-1]).copy_(block.mT if n_out <= n_in else block)
        return out

    def blocks(self) -> Any:
        """The rows (as columns of Jᵀ) or, where those are fewer, the columns: ``(start, (batch, n, k))`` each."""
        batch, n_out, n_in = self.shape
        take, sizes = (self.back, (n_out, n_in)) if n_out <= n_in else (self.forth, (n_in, n_out))
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for start, seeds in one_hot_blocks(batch, *sizes, like):
            yield start, take(seeds)

    def frobenius(self) -> Tensor:
        """‖J‖_F of each sample, exact: ``(batch,)`` float64. Cost: min(n_out, n_in) products, J is not held."""
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        for _, block in self.blocks():
            total = torch.hypot(total, norm(block, (1, 2)))
        return total

    def trace(self) -> Tensor:
        """The trace of each sample, exact: ``(batch,)`` float64. Cost: n products, J is not held.

        Raises:
            UsageError: not square.
        """
        from jaccli.operators.algebra import check_square

        check_square(self)
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        for start, block in self.blocks():
            total += block.double().diagonal(-start, dim1=1, dim2=2).sum(1)
        return total

    def singular_values(self, k: int | None = None, which: Which = "largest") -> Tensor:
        """Singular values of each sample, descending: ``(batch, k)`` float64.

        All of them, from the matrices themselves, without ``k``; see ``extreme_singular_values`` for k of them.

        Raises:
            UsageError: more are asked for than there are.
            UnsupportedError: the k smallest do not converge.
        """
        from jaccli.operators.extremes import extreme_singular_values

        if k is None:
            return singular_values(self.materialise())
        return extreme_singular_values(self, k, which).values.to(self.device)

    def spectral_norm(self) -> Tensor:
        """‖J‖₂ of each sample: ``(batch,)`` float64; some tens of products."""
        return self.singular_values(1)[:, 0]
