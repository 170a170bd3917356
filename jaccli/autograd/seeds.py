"""Vectors to multiply J with: one-hot ones, which give its rows or columns, and random ones, to verify with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped


def spans(size: int, chunk: int) -> list[tuple[int, int]]:
    """``0:size`` in pieces of at most ``chunk``, as (start, stop)."""
    # A chunk of 0 is what memory // bytes of a row gives for a row that does not fit: that goes alone.
    return [(start, min(start + chunk, size)) for start in range(0, size, max(chunk, 1))]


def one_hot(
    start: int, stop: int, batch: int, size: int, like: Tensor, samples: slice = slice(None)
) -> Shaped[Tensor, "k batch size"]:
    """One-hot vectors ``start:stop`` for some samples, zero for the others: ``(stop - start, batch, size)``.

    They have the dtype and device of ``like``, a tensor of any shape.
    """
    seeds = like.new_zeros(stop - start, batch, size)
    # Seed k is 1 at element start + k of every chosen sample: a diagonal of dimensions 0 and 2, written in one call.
    seeds[:, samples, start:stop].diagonal(dim1=0, dim2=2).fill_(1)
    return seeds


def one_hot_blocks(
    batch: int, size: int, chunk: int, like: Tensor
) -> Iterator[tuple[int, Shaped[Tensor, "batch size k"]]]:
    """The identity of every sample, ``chunk`` columns at a time: ``(start, (batch, size, k))``."""
    for start, stop in spans(size, chunk):
        yield start, one_hot(start, stop, batch, size, like).movedim(0, -1)


def gaussian(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Standard normal numbers of a shape, in the dtype and on the device of ``like``, a tensor of any shape."""
    # Drawn on the CPU: other devices give other numbers for one seed. The device is named, since a caller may have set
    # another default device, for which torch refuses a generator of the CPU.
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").to(like)
