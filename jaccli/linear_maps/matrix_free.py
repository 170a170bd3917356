"""``MatrixFree``: a batch of matrices that is known by its products, and what follows from products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import ResourceError, UsageError
from jaccli.linear_maps.by_rows import identity_blocks
from jaccli.linear_maps.norms import norm
from jaccli.linear_maps.square import check_square

if TYPE_CHECKING:
    from jaxtyping import Shaped


class MatrixFree(ABC):
    """A matrix for each sample, ``(batch, n_out, n_in)``, known by its products alone.

    A subclass writes the two products ``_matmat`` and ``_rmatmat``; ``sample``, where one sample's products cost less
    alone than among the others. The public products check their vectors and move them to the map's device and dtype;
    they raise ``UsageError`` for other shapes.

    Args:
        shape: ``(batch, n_out, n_in)``.
        dtype: of the matrices, and of the vectors they take.
        device: where the matrices and their vectors live.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device

    @abstractmethod
    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        """``matmat`` of vectors that have the right shape, device and dtype."""

    @abstractmethod
    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        """``rmatmat`` of vectors that have the right shape, device and dtype."""

    def sample(self, b: int) -> MatrixFree:
        """The map of one sample alone, with a batch of 1."""
        return self if self.shape[0] == 1 else OneSample(self, b)

    def matvec(self, v: Tensor) -> Tensor:
        """Jv for each sample: ``(batch, n_in)`` → ``(batch, n_out)``."""
        return self._matmat(self._checked(v, 2, 2).unsqueeze(-1)).squeeze(-1)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Jᵀu for each sample: ``(batch, n_out)`` → ``(batch, n_in)``."""
        return self._rmatmat(self._checked(u, 2, 1).unsqueeze(-1)).squeeze(-1)

    def matmat(self, v: Tensor) -> Tensor:
        """JV for each sample: ``(batch, n_in, k)`` → ``(batch, n_out, k)``."""
        return self._matmat(self._checked(v, 3, 2))

    def rmatmat(self, u: Tensor) -> Tensor:
        """JᵀU for each sample: ``(batch, n_out, k)`` → ``(batch, n_in, k)``."""
        return self._rmatmat(self._checked(u, 3, 1))

    def _checked(self, vectors: Tensor, dims: int, side: int) -> Tensor:
        """Vectors ``(batch, n)`` or ``(batch, n, k)`` as the products take them."""
        expected = (self.shape[0], self.shape[side])
        if not isinstance(vectors, Tensor) or vectors.dim() != dims or tuple(vectors.shape[:2]) != expected:
            got = f"a tensor of shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
            tail = ", k" if dims == 3 else ""
            size = ("", "n_out", "n_in")[side]
            raise UsageError(f"got {got}", f"expected (batch, {size}{tail}) = ({expected[0]}, {expected[1]}{tail})")
        return vectors.to(self.device, self.dtype)

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
        # Blocks come as columns, of Jᵀ (rows of J) or of J.
        for start, block in self.blocks():
            out.narrow(1 if n_out <= n_in else 2, start, block.shape[-1]).copy_(block.mT if n_out <= n_in else block)
        return out

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The rows (as columns of Jᵀ) or, where those are fewer, the columns: ``(start, (batch, n, k))`` each."""
        batch, n_out, n_in = self.shape
        take, sizes = (self._rmatmat, (n_out, n_in)) if n_out <= n_in else (self._matmat, (n_in, n_out))
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for start, seeds in identity_blocks(batch, *sizes, like):
            yield start, take(seeds)

    def frobenius(self) -> Tensor:
        """‖J‖_F of each sample, exact: ``(batch,)`` float64. Cost: min(n_out, n_in) products, without J in memory."""
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        # Norms and not squares are added up: those of large entries would overflow.
        for _, block in self.blocks():
            total = torch.hypot(total, norm(block, (1, 2)))
        return total

    def trace(self) -> Tensor:
        """The trace of each sample, exact: ``(batch,)`` float64. Cost: n products, without J in memory.

        Raises:
            UsageError: not square.
        """
        check_square(*self.shape[1:])
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        # Block and seed are shifted by ``start``: the diagonal of J lies that far below the block's own.
        for start, block in self.blocks():
            total += block.double().diagonal(-start, dim1=1, dim2=2).sum(1)
        return total


class OneSample(MatrixFree):
    """Sample ``b`` of a map whose samples are not taken apart: its products, with the others' vectors zero."""

    def __init__(self, of: MatrixFree, b: int) -> None:
        super().__init__((1, *of.shape[1:]), of.dtype, of.device)
        self._of, self._b = of, b

    def _matmat(self, v: Shaped[Tensor, "1 n_in k"]) -> Shaped[Tensor, "1 n_out k"]:
        return self._of._matmat(self._among(v))[self._b : self._b + 1]

    def _rmatmat(self, u: Shaped[Tensor, "1 n_out k"]) -> Shaped[Tensor, "1 n_in k"]:
        return self._of._rmatmat(self._among(u))[self._b : self._b + 1]

    def _among(self, vectors: Shaped[Tensor, "1 n k"]) -> Shaped[Tensor, "batch n k"]:
        padded = vectors.new_zeros(self._of.shape[0], *vectors.shape[1:])
        padded[self._b] = vectors[0]
        return padded
