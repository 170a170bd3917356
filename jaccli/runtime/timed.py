"""Seconds of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def synchronize() -> None:
    """Wait for the work that an accelerator, where there is one, has been given: its calls return before it is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call, with the work that it gives to an accelerator, and its result."""
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - start, result
