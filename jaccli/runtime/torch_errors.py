"""What an error of torch means. Needs no torch."""

from __future__ import annotations

import sys


def reason(error: BaseException) -> str:
    """The first line of an error of torch, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


# How messages of plain RuntimeErrors say that the CPU's memory ran out: torch's allocator, C++, and the system.
_NO_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, or of a reader of files, means that memory ran out. Does not import torch."""
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    return isinstance(error, MemoryError | of_torch) or any(words in str(error) for words in _NO_MEMORY)


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise an error again that means that memory ran out: no other way to the same result would need less."""
    if is_out_of_memory(error):
        raise error
