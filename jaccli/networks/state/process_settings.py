"""Settings of the process that a forward pass may change, put back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
]


@contextmanager
def restored_settings() -> Iterator[None]:
    """Put back default dtype, threads, precision of float32 products and determinism. Cost: some microseconds."""
    before = [read() for read, _ in _SETTINGS]
    try:
        yield
    finally:
        for (read, put), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                put(value)
