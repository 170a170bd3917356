"""Memory for J: that of an earlier result which nobody holds any longer is used again."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor


class Pool:
    """Keeps the memory of the last result. Whoever holds a result, or a view of it, keeps it out of use.

    Invariant: no two callers get one piece of memory: a storage is put back only once the new result holds it too.
    """

    def __init__(self) -> None:
        self._last: deque[torch.UntypedStorage] = deque(maxlen=1)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous, uninitialised ``(*shape,)``; its memory may have held an earlier result that was let go."""
        size = math.prod(shape) * dtype.itemsize
        try:
            storage = self._last.pop()  # one caller at a time may have it
        except IndexError:
            storage = None
        if storage is None or storage.nbytes() != size or storage.device != device or _holders(storage) > 1:
            storage = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
        # set_ takes untyped storages too, whatever its annotation says.
        out: Tensor = torch.empty(0, dtype=dtype, device=device).set_(storage, 0, torch.Size(shape))  # type: ignore[call-overload]
        self._last.append(storage)  # only now: somebody holds it, and other callers see that
        return out

    def clear(self) -> None:
        """Let go of the memory of the last result."""
        self._last.clear()


def _holders(storage: torch.UntypedStorage) -> int:
    if storage.device.type == "cpu" and storage.is_shared():
        return 2  # another process may hold it
    return int(torch._C._storage_Use_Count(storage._cdata))
