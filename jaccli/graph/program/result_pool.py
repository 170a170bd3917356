"""Memory for results: what nobody holds any longer is used again, and new memory comes in large pages."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import deque

import torch
from torch import Tensor

# From this size on the C library maps new memory for each result, and every page of it costs a fault.
MAPPED = 32 * 2**20
_MADV_HUGEPAGE = 14


class Pool:
    """Keeps the memory of the last result. Holding a result, or a view of it, keeps it out of use."""

    def __init__(self) -> None:
        self._kept: deque[torch.UntypedStorage] = deque(maxlen=1)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor; its memory may have held an earlier result that was let go."""
        size = math.prod(shape) * dtype.itemsize
        try:
            storage = self._kept.pop()  # one caller at a time may have it
        except IndexError:
            storage = None
        if storage is None or storage.nbytes() != size or storage.device != device or _holders(storage) > 1:
            storage = fresh(size, device)
        # set_ takes untyped storages too, whatever its annotation says.
        out: Tensor = torch.empty(0, dtype=dtype, device=device).set_(storage, 0, torch.Size(shape))  # type: ignore[call-overload]
        self._kept.append(storage)  # only now: somebody holds it, and other callers see that
        return out


def _holders(storage: torch.UntypedStorage) -> int:
    if storage.device.type == "cpu" and storage.is_shared():
        return 2  # another process may
    return int(torch._C._storage_Use_Count(storage._cdata))


def fresh(size: int, device: torch.device) -> torch.UntypedStorage:
    """New memory; on Linux in huge pages where it would be mapped anyway."""
    storage = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
    if device.type == "cpu" and size >= MAPPED and sys.platform == "linux":
        start = -(-storage.data_ptr() // 4096) * 4096
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size - 4096), _MADV_HUGEPAGE)
    return storage
