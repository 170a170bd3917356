"""Memory for J: that of an earlier result which nobody holds any longer is used again; new memory is in large pages."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import deque

import torch
from torch import Tensor

# From this size in bytes on the C library maps new memory for each result, and every page of it costs a fault.
MAPPED = 32 * 2**20
_MADV_HUGEPAGE = 14


class Pool:
    """Keeps the memory of the last result. Whoever holds a result, or a view of it, keeps it out of use.

    Invariant: no two callers get one piece of memory: a storage is put back only once the new result holds it too.
    """

    def __init__(self) -> None:
        self._last: deque[torch.UntypedStorage] = deque(maxlen=1)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor ``shape``; its memory may have held an earlier result that was let go."""
        size = math.prod(shape) * dtype.itemsize
        try:
            storage = self._last.pop()  # one caller at a time may have it
        except IndexError:
            storage = None
        if storage is None or storage.nbytes() != size or storage.device != device or _holders(storage) > 1:
            storage = _new_storage(size, device)
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


def _new_storage(size: int, device: torch.device) -> torch.UntypedStorage:
    """New memory; on Linux in huge pages where it would be mapped anyway."""
    storage = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
    if device.type == "cpu" and size >= MAPPED and sys.platform == "linux":
        start = -(-storage.data_ptr() // 4096) * 4096
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size - 4096), _MADV_HUGEPAGE)
    return storage
