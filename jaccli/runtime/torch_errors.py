"""What an error of torch means."""

from __future__ import annotations

import torch


def reason(error: BaseException) -> str:
    """The first line of an error of torch, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out; on the CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
