"""One-hot vectors: the product of Jᵀ (of J) with one of them is a row (a column) of J."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def spans(size: int, chunk: int) -> list[tuple[int, int]]:
    """``0:size`` in pieces of at most ``chunk``."""
    return [(start, min(start + chunk, size)) for start in range(0, size, max(chunk, 1))]


def one_hot(start: int, stop: int, batch: int, size: int, like: Tensor, samples: slice = slice(None)) -> Tensor:
    """One-hot vectors ``start:stop`` for some samples, zero for the others: ``(stop - start, batch, size)``.

    They have the dtype and device of ``like``.
    """
    seeds = like.new_zeros(stop - start, batch, size)
    seeds[:, samples, start:stop].diagonal(dim1=0, dim2=2).fill_(1)
    return seeds


def one_hot_blocks(batch: int, size: int, chunk: int, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The identity of every sample, ``chunk`` columns at a time: ``(start, (batch, size, k))``."""
    for start, stop in spans(size, chunk):
        yield start, one_hot(start, stop, batch, size, like).movedim(0, -1)
