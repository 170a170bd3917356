"""Step 3a: whether a tensor of a run holds the activation that was put in at a source, with no operator between.

Then source and target are the same activation, and J is the identity. It is decided by memory: both lie in the same
bytes of the same storage, which was not written to in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from jaccli.activations.sample_view import SampleView

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class TensorMemory:
    """Where a strided tensor lies: its storage, at which version, and its layout there. It keeps no tensor alive."""

    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> TensorMemory | None:
        """That of a tensor of any shape; None where it has no strided memory or no version."""
        if tensor.layout != torch.strided or tensor.is_inference():
            return None
        storage = StorageWeakRef(tensor.untyped_storage())
        shape, strides, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return cls(storage, tensor._version, tensor.dtype, shape, strides, offset)

    def shares_storage(self, other: TensorMemory) -> bool:
        """Whether both lie in one storage that was not written to in between."""
        same = self.storage == other.storage and not self.storage.expired()
        return same and (self.version, self.dtype) == (other.version, other.dtype)

    def is_same(self, other: TensorMemory) -> bool:
        """Whether both are the same bytes in the same layout."""
        layouts = [(one.shape, one.strides, one.offset) for one in (self, other)]
        return self.shares_storage(other) and layouts[0] == layouts[1]

    def addresses(self, view: SampleView) -> Int[Tensor, "batch size"]:
        """Positions in the storage of the elements of an activation, int64."""
        positions = torch.full((), self.offset)
        for size, stride in zip(self.shape, self.strides, strict=True):
            positions = positions.unsqueeze(-1) + stride * torch.arange(size, device=positions.device)
        positions = view.get(positions)
        return positions.reshape(len(positions), -1)


@dataclass
class SubstitutedSource:
    """The activation of a source, as a run goes on.

    Attributes:
        view: how it lies in the tensors that hold it.
        memories: of the tensor that was put in, and of its copies that later sources put in its place.
    """

    view: SampleView
    memories: list[TensorMemory]

    def follow(self, before: TensorMemory | None, after: TensorMemory | None) -> None:
        """Another source has put a copy, in memory ``after``, in place of a tensor in memory ``before``."""
        if before is not None and after is not None and any(before.is_same(one) for one in self.memories):
            self.memories.append(after)

    def is_in(self, tensor: Tensor, view: SampleView) -> bool:
        """Whether a tensor of any shape holds this activation, its elements in the same order.

        Views and reshapes of it count as the same, and so does the output of ``nn.Identity``.
        """
        memory = TensorMemory.of(tensor)
        if memory is None:
            return False
        shared = (one for one in self.memories if one.shares_storage(memory))
        # Layouts may differ, as after a reshape: what counts is that the elements lie in the same places, in order.
        return any(torch.equal(one.addresses(self.view), memory.addresses(view)) for one in shared)
