"""Step 2b: a tensor of a run as one activation per sample: sample dimension first, index applied.

All functions of tensors here are out of place and use only operators that have rules for vmap and forward mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.errors import UnsupportedError, UsageError
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class SampleView:
    """How an activation ``(batch, *shape)`` lies in a tensor of a run.

    Attributes:
        dim: the tensor's sample dimension; None if the whole tensor belongs to the only sample.
        full: one sample's shape before the index.
        shape: one sample's shape after the index, which is that of the activation.
        positions: int64 ``(size,)``, of the activation's elements in one flattened sample; None without an index.
    """

    dim: int | None
    full: tuple[int, ...]
    shape: tuple[int, ...]
    positions: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of elements of one sample's activation."""
        return math.prod(self.shape)

    def samples(self, tensor: Tensor) -> Shaped[Tensor, "batch *full"]:
        """The tensor with its samples first, before the index: ``(batch, *full)``."""
        return tensor.unsqueeze(0) if self.dim is None else tensor.movedim(self.dim, 0)

    def get(self, tensor: Tensor) -> Shaped[Tensor, "batch *shape"]:
        """The activation ``(batch, *shape)`` in a tensor of a run."""
        samples = self.samples(tensor)
        if self.positions is None:
            return samples
        flat = samples.reshape(samples.shape[0], -1)
        return flat.index_select(1, self.positions.to(flat.device)).reshape(-1, *self.shape)

    def put(
        self, tensor: Shaped[Tensor, "*tensor"], activation: Shaped[Tensor, "batch *shape"]
    ) -> Shaped[Tensor, "*tensor"]:
        """The tensor with this activation ``(batch, *shape)`` in it; gradients flow to the activation and the rest."""
        new = activation
        if self.positions is not None:
            flat = self.samples(tensor).reshape(activation.shape[0], -1)
            # Out of place, for vmap and forward mode: new numbers are appended, and a gather picks them by position.
            both = torch.cat([flat, activation.reshape(activation.shape[0], -1)], dim=1)
            order = torch.arange(flat.shape[1], device=flat.device)
            order[self.positions.to(flat.device)] = flat.shape[1] + torch.arange(self.size, device=flat.device)
            new = both.index_select(1, order).reshape(activation.shape[0], *self.full)
        return new.squeeze(0) if self.dim is None else new.movedim(0, self.dim)

    def columns(self, rows: Shaped[Tensor, "k *tensor"]) -> Shaped[Tensor, "k batch size"]:
        """Derivatives by the whole tensor ``(k, *tensor.shape)`` → those by the activation ``(k, batch, size)``."""
        moved = rows.unsqueeze(1) if self.dim is None else rows.movedim(self.dim + 1, 1)
        flat = moved.reshape(moved.shape[0], moved.shape[1], -1)
        return flat if self.positions is None else flat.index_select(2, self.positions.to(flat.device))


def view_for(address: Address, tensor: Tensor, batch: int, *, distinct: bool) -> SampleView:
    """Find the sample dimension of a tensor of any shape, and resolve the address's index against one sample.

    With one sample and a first dimension of another size, the whole tensor belongs to that sample.

    Args:
        address: gives the dimension, if not the first, and the index.
        tensor: holds the activation.
        batch: number of samples.
        distinct: refuse an index that picks an element twice.

    Raises:
        UsageError: the samples are in another dimension, or the index does not fit.
        UnsupportedError: no dimension holds the samples.
    """
    dim = _sample_dim(address, tuple(tensor.shape), batch)
    full = tuple(tensor.shape) if dim is None else tuple(s for d, s in enumerate(tensor.shape) if d != dim)
    if address.index is None:
        return SampleView(dim, full, full)
    # NumPy itself resolves the index, on an array that holds each element's position.
    numbers = np.arange(math.prod(full)).reshape(full)
    index = tuple(list(item) if isinstance(item, tuple) else item for item in address.index)
    try:
        chosen = np.asarray(numbers[index])
    except (IndexError, ValueError, TypeError):
        raise UsageError(
            f"layer {str(address)!r}: the index does not fit one sample's shape {full}",
            "expected a NumPy-style index into it",
        ) from None
    if chosen.size == 0:
        raise UsageError(
            f"layer {str(address)!r}: the index picks nothing of one sample's shape {full}",
            "expected an index that picks one element at least",
            "leave the index out for the whole layer",
        )
    if distinct and np.unique(chosen).size != chosen.size:
        raise UsageError(f"layer {str(address)!r}: an element is named twice", "a source holds each element once")
    return SampleView(dim, full, tuple(chosen.shape), torch.from_numpy(chosen.flatten()))


class MisplacedError(UsageError):
    """The samples of an activation are in another dimension than the address says."""


class NowhereError(UnsupportedError):
    """No dimension of an activation has the size of the batch."""


def _sample_dim(address: Address, shape: tuple[int, ...], batch: int) -> int | None:
    name = str(address)
    if address.dim is not None:
        if address.dim >= len(shape) or shape[address.dim] != batch:
            raise MisplacedError(
                f"layer {name!r}: dimension {address.dim} of its shape {shape} does not hold the {batch} samples",
                _elsewhere(address, shape, batch),
            )
        return address.dim
    if shape and shape[0] == batch:
        return 0
    if batch == 1:
        return None
    if batch in shape:
        raise MisplacedError(
            f"layer {name!r}: the first dimension of its shape {shape} does not hold the {batch} samples",
            _elsewhere(address, shape, batch),
        )
    raise NowhereError(
        f"layer {name!r}: no dimension of its shape {shape} holds the {batch} samples",
        "J is taken for each sample, so its activation must be told apart from the others'",
        worded("take one sample ({samples:0:1}): then the whole activation belongs to it"),
    )


def _elsewhere(address: Address, shape: tuple[int, ...], batch: int) -> str:
    dims = [d for d, size in enumerate(shape) if size == batch]
    if not dims:
        return f"expected a dimension of size {batch}"
    return "expected " + " or ".join(address.with_dim(d) for d in dims)
