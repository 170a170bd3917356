"""Products by the rows of a matrix, where nothing but its transpose is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jaccli import defaults


def one_hot_blocks(batch: int, size: int, other: int, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The identity in pieces that fit a cache: ``(start, (batch, size, k))``; results have ``other`` elements."""
    step = max(1, defaults.WORKING_SET // max(batch * (size + other) * like.element_size(), 1))
    for start in range(0, size, step):
        k = min(step, size - start)
        numbers = torch.arange(k, device=like.device)
        seeds = like.new_zeros(batch, size, k)
        seeds[:, start + numbers, numbers] = 1
        yield start, seeds


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
        for start, seeds in one_hot_blocks(batch, n_out, n_in, v):
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
            for start, seeds in one_hot_blocks(batch, n_out, n_in, v):
                alone = torch.zeros_like(seeds)
                alone[b] = seeds[b]
                rows = self._back(alone)
                out[b, start : start + rows.shape[-1]] = torch.einsum("bik,biq->kq", rows, v)
        return out
