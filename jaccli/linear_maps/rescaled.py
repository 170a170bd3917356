"""Maps brought near size 1, sample by sample, for estimators that square their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.linear_maps.norms import power_of_two

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped


class Rescaled(MatrixFree):
    """J/s − cI, with s and c of each sample; in place of a J that is not finite the identity (1 on the diagonal).

    Args:
        base: J.
        size: s, powers of two, ``(batch,)`` float64, on the CPU as ``shift`` and ``finite``.
        shift: c, ``(batch,)`` float64; J is square where it is not 0.
        finite: ``(batch,)`` booleans: products with this sample's J are finite.
    """

    def __init__(
        self,
        base: MatrixFree,
        size: Float[Tensor, "batch"],
        shift: Float[Tensor, "batch"],
        finite: Bool[Tensor, "batch"],
    ) -> None:
        super().__init__(base.shape, base.dtype, base.device)
        self.base, self.size, self.shift, self.finite = base, size, shift, finite

    def _matmat(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        return self._product(v, self.base._matmat, self.shape[1])

    def _rmatmat(self, u: Shaped[Tensor, "batch n_out k"]) -> Shaped[Tensor, "batch n_in k"]:
        return self._product(u, self.base._rmatmat, self.shape[2])

    def _product(self, vectors: Tensor, product: Callable[[Tensor], Tensor], n: int) -> Tensor:
        """``(batch, m, k)`` → ``(batch, n, k)``, by the product of J."""
        # Half of the exponent goes to the vectors: neither 1/s nor a product with small J need be in range.
        first = power_of_two(self.size.sqrt()[:, None], (1,)).reshape(-1, 1, 1)
        second = self.size.reshape(-1, 1, 1) / first
        image = product(vectors / first.to(vectors)) / second.to(vectors)
        if bool(self.shift.any()):
            image = image - self.shift.reshape(-1, 1, 1).to(vectors) * vectors
        if bool(self.finite.all()):
            return image
        # A sample whose J is not finite gets the identity, so that it does not spoil a decomposition of the batch.
        same = torch.nn.functional.pad(vectors, (0, 0, 0, max(n - vectors.shape[1], 0)))[:, :n]
        return torch.where(self.finite.to(vectors.device).reshape(-1, 1, 1), image, same)

    def sample(self, b: int) -> Rescaled:
        one = slice(b, b + 1)
        return Rescaled(self.base.sample(b), self.size[one], self.shift[one], self.finite[one])


def rescaled(a: MatrixFree) -> Rescaled:
    """J/s of each sample, s a power of two near the size of its products. Cost: as ``measured``."""
    size, finite = measured(a)
    return Rescaled(a, size, torch.zeros_like(size), finite)


def measured(a: MatrixFree) -> tuple[Float[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """The size of each sample's products, a power of two, 1 of J = 0; and whether they are finite: ``(batch,)`` each.

    Cost: a product with J and one with Jᵀ, some more where one is zero or out of range.
    """
    generator = torch.Generator().manual_seed(0)
    size = torch.zeros(a.shape[0], dtype=torch.float64)
    finite = torch.zeros_like(size, dtype=torch.bool)
    limits = torch.finfo(a.dtype)
    for factor in (1.0, limits.tiny**0.5, limits.max**0.5):  # smaller, larger vectors where products over-, underflow
        probed, finite_now = _probed(a, factor, generator)
        better = finite_now & (~finite | (size == 0))
        size, finite = torch.where(better, probed, size), finite | finite_now
        if bool((finite & (size > 0)).all()):
            break
    return torch.where(finite & (size > 0), size, 1.0), finite


def _probed(a: MatrixFree, factor: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The size of random products with J and Jᵀ, 0 if these are 0; and whether they are finite: ``(batch,)`` each."""
    batch, n_out, n_in = a.shape
    images = []
    for product, n in ((a._matmat, n_in), (a._rmatmat, n_out)):
        v = torch.randn(batch, n, 1, generator=generator, dtype=torch.float64) * factor
        images.append(product(v.to(a.device, a.dtype)).flatten(1).cpu().double())
    both = torch.cat(images, 1)
    # The vectors have elements near 1 times ``factor``: divided out, what is left is the size of J.
    size = power_of_two(both, (1,)) / power_of_two(torch.tensor(factor))
    return torch.where(both.any(1), size, 0.0), both.isfinite().all(1)
