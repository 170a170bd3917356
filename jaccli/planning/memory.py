"""How much memory may be used when the user sets no limit."""

from __future__ import annotations

import os

import torch

from jaccli import defaults
from jaccli.safety.memory import available_memory


def available(device: torch.device) -> int:
    """Bytes that may be used on a device when the user sets no limit.

    In coarse steps, so that what other processes hold at the moment seldom changes how a batch is cut: where samples
    influence each other through the batch, J depends on that.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _coarse(defaults.MEMORY_SHARE * free)
    unused = available_memory()
    return _coarse(defaults.MEMORY_SHARE * (unused if unused is not None else _physical_memory()))


def _coarse(size: float) -> int:
    """The largest of 1, 1.5, 2, 3, 4, 6, 8, … that is no larger.

    >>> _coarse(7.9), _coarse(3.0), _coarse(100.0)
    (6, 3, 96)
    """
    power = 1 << max(int(size).bit_length() - 1, 0)
    return power * 3 // 2 if size >= 1.5 * power else min(power, int(size))


def _physical_memory() -> int:
    """Bytes that the system has, for where it does not report what is free."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
