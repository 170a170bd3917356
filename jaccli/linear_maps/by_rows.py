"""Products by the rows of a matrix, where nothing but its transpose is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.seeds import one_hot_blocks


def identity_blocks(batch: int, size: int, other: int, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``one_hot_blocks`` of as many columns as fit a cache with their products: these have ``other`` elements each."""
    column_bytes = batch * (size + other) * like.element_size()
    return one_hot_blocks(batch, size, defaults.WORKING_SET // max(column_bytes, 1), like)


class ByRows:
    """JV by ``back``, JᵀU: n_out backward passes serve all vectors of a call; a J that is small is kept.

    Args:
        back: ``(batch, n_out, k)`` → ``(batch, n_in, k)``.
        shape: ``(batch, n_out, n_in)``.
        mixes: a sample's target depends on other samples: then a pass for each sample and row.
        hold: bytes up to which J is kept.
    """

    def __init__(
        self,
        back: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        mixes: bool = False,
        hold: int = defaults.WORKING_SET,
    ) -> None:
        self._back, self._shape, self._mixes, self._hold = back, shape, mixes, hold
        self._kept: Tensor | None = None

    def __call__(self, v: Tensor) -> Tensor:
        """``(batch, n_in, k)`` → ``(batch, n_out, k)``."""
        batch, n_out, n_in = self._shape
        if self._mixes:
            return self._across(v)
        if self._kept is not None:
            return self._kept @ v
        keep = batch * n_out * n_in * v.element_size() <= self._hold
        kept = v.new_empty(self._shape) if keep else None
        out = v.new_empty(batch, n_out, v.shape[-1])
        for start, seeds in identity_blocks(batch, n_out, n_in, v):
            rows = self._back(seeds).mT
            out[:, start : start + rows.shape[1]] = rows @ v
            if kept is not None:
                kept[:, start : start + rows.shape[1]] = rows
        self._kept = kept
        return out

    def _across(self, v: Tensor) -> Tensor:
        batch, n_out, n_in = self._shape
        out = v.new_zeros(batch, n_out, v.shape[-1])
        for b in range(batch):
            for start, seeds in identity_blocks(batch, n_out, n_in, v):
                alone = torch.zeros_like(seeds)
                alone[b] = seeds[b]
                rows = self._back(alone)
                out[b, start : start + rows.shape[-1]] = torch.einsum("bik,biq->kq", rows, v)
        return out
