"""Products with J by its rows, where only products with its transpose are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.seeds import one_hot_blocks

if TYPE_CHECKING:
    from jaxtyping import Shaped


def identity_blocks(
    batch: int, size: int, other: int, like: Tensor
) -> Iterator[tuple[int, Shaped[Tensor, "batch size k"]]]:
    """``one_hot_blocks`` of as many columns as fit a cache with their products: these have ``other`` elements each.

    ``like`` is a tensor of any shape.
    """
    column_bytes = batch * (size + other) * like.element_size()
    return one_hot_blocks(batch, size, defaults.WORKING_SET // max(column_bytes, 1), like)


class ByRows:
    """JV from products JᵀU: n_out backward passes serve all vectors of a call; a small J is kept for later calls.

    Args:
        rmatmat: JᵀU, ``(batch, n_out, k)`` → ``(batch, n_in, k)``.
        shape: ``(batch, n_out, n_in)``.
        mixes: a sample's target depends on other samples: then there is a pass for each sample and row.
        max_bytes: bytes up to which J is kept.
    """

    def __init__(
        self,
        rmatmat: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        mixes: bool,
        max_bytes: int,
    ) -> None:
        """Of a product ``(batch, n_out, k)`` → ``(batch, n_in, k)``."""
        self._rmatmat, self._shape, self._mixes, self._max_bytes = rmatmat, shape, mixes, max_bytes
        self._matrix: Tensor | None = None

    def __call__(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        """``(batch, n_in, k)`` → ``(batch, n_out, k)``."""
        batch, n_out, n_in = self._shape
        if self._mixes:
            return self._across(v)
        if self._matrix is not None:
            return self._matrix @ v
        small = batch * n_out * n_in * v.element_size() <= self._max_bytes
        matrix = v.new_empty(self._shape) if small else None
        out = v.new_empty(batch, n_out, v.shape[-1])
        for start, seeds in identity_blocks(batch, n_out, n_in, v):
            rows = self._rmatmat(seeds).mT
            out[:, start : start + rows.shape[1]] = rows @ v
            if matrix is not None:
                matrix[:, start : start + rows.shape[1]] = rows
        self._matrix = matrix  # only once it is whole: a pass may have failed in between
        return out

    def _across(self, v: Shaped[Tensor, "batch n_in k"]) -> Shaped[Tensor, "batch n_out k"]:
        """J of the whole batch times V: every sample's rows reach every sample's source."""
        batch, n_out, n_in = self._shape
        out = v.new_zeros(batch, n_out, v.shape[-1])
        for b in range(batch):
            for start, seeds in identity_blocks(batch, n_out, n_in, v):
                alone = torch.zeros_like(seeds)
                alone[b] = seeds[b]
                rows = self._rmatmat(alone)
                out[b, start : start + rows.shape[-1]] = torch.einsum("bik,biq->kq", rows, v)
        return out
