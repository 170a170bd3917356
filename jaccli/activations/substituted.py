"""Whether a tensor of a run holds an activation that was put in before, with no operator between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from jaccli.activations.sample_view import SampleView


@dataclass(frozen=True)
class Imprint:
    """Where in memory a tensor lay, and how often that had been written to. It keeps nothing alive."""

    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Imprint | None:
        """None for tensors without such memory."""
        if tensor.layout != torch.strided or tensor.is_inference():
            return None
        storage = StorageWeakRef(tensor.untyped_storage())
        shape, strides, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return cls(storage, tensor._version, tensor.dtype, shape, strides, offset)

    def overlaps(self, other: Imprint) -> bool:
        """The same memory, not written to between."""
        same = self.storage == other.storage and not self.storage.expired()
        return same and (self.version, self.dtype) == (other.version, other.dtype)

    def is_laid_out_as(self, other: Imprint) -> bool:
        """The same memory, seen in the same way."""
        return self.overlaps(other) and self._layout == other._layout

    @property
    def _layout(self) -> tuple[object, ...]:
        return self.shape, self.strides, self.offset

    def addresses(self, slot: SampleView) -> Tensor:
        """Where each element of the activations lies, ``(batch, size)``."""
        places = torch.full((), self.offset)
        for size, stride in zip(self.shape, self.strides, strict=True):
            places = places.unsqueeze(-1) + stride * torch.arange(size, device=places.device)
        found = slot.get(places)
        return found.reshape(len(found), -1)


@dataclass
class Placed:
    """A source's activation: the tensor put in, and copies of it that further sources put in its place."""

    slot: SampleView
    imprints: list[Imprint]

    def follow(self, before: Imprint | None, after: Imprint | None) -> None:
        """Another source took the place of a tensor."""
        if before is not None and after is not None and any(before.is_laid_out_as(one) for one in self.imprints):
            self.imprints.append(after)

    def is_in(self, tensor: Tensor, slot: SampleView) -> bool:
        """Whether these are the activations in a tensor, in the same order: views and reshapes that only look at them
        count as the same, as does what ``nn.Identity`` hands on."""
        now = Imprint.of(tensor)
        if now is None:
            return False
        alike = (one for one in self.imprints if one.overlaps(now))
        return any(torch.equal(one.addresses(self.slot), now.addresses(slot)) for one in alike)
