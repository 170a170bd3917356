"""Gradient checkpoints in a pass of jaccli: they run their function as it is, where its activations are looked at.

``torch.utils.checkpoint(…, use_reentrant=True)`` runs a function without a graph, and once more in the backward pass;
with False it runs it once more for the tensors that the backward pass needs. What was put in, or looked at, in the
first run is not part of the second, and of the reentrant kind only ``backward()`` is served. The result is that of the
function, so that the function alone has every derivative.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.utils import checkpoint as module
from torch.utils.checkpoint import CheckpointFunction

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
# What a checkpoint that is not reentrant does around its function: a generator of one step.
_AROUND = "_checkpoint_without_reentrant_generator"
_lock = threading.Lock()
_here = threading.local()
_count = 0


@contextmanager
def checkpoints_bypassed(every: bool) -> Iterator[None]:
    """In here, and in this thread alone, reentrant checkpoints are what they compute; ``every``: the others too.

    A checkpoint that is not reentrant saves memory, and is right where the source lies outside.
    """
    global _count
    with _lock:
        _count += 1
        if _count == 1:
            _install()
    before = getattr(_here, "kinds", (False, False))
    _here.kinds = (True, every)
    try:
        yield
    finally:
        _here.kinds = before
        with _lock:
            _count -= 1
            if _count == 0:
                _remove()


def _install() -> None:
    inherited: Any = CheckpointFunction.apply
    around: Any = getattr(module, _AROUND, None)

    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        if getattr(_here, "kinds", (False,))[0]:
            return function(*args)
        return inherited(function, preserve_rng_state, *args)

    def nothing_around(*args: Any, **kwargs: Any) -> Any:
        if getattr(_here, "kinds", (False, False))[1]:
            return _one_step()
        return around(*args, **kwargs)

    CheckpointFunction.apply = staticmethod(apply)  # type: ignore[method-assign]
    if around is not None:
        nothing_around.original = around  # type: ignore[attr-defined]
        setattr(module, _AROUND, nothing_around)


def _one_step() -> Iterator[None]:
    yield


def _remove() -> None:
    del CheckpointFunction.apply  # what it inherits is seen again
    ours: Any = getattr(module, _AROUND, None)
    if hasattr(ours, "original"):
        setattr(module, _AROUND, ours.original)


def _frames() -> Iterator[FrameType]:
    at: FrameType | None = sys._getframe(1)
    while at is not None:
        yield at
        at = at.f_back


def inside_a_function() -> bool:
    """Whether the caller runs in the forward pass of an ``autograd.Function``, whose operators leave no graph."""
    return any(frame.f_code is _APPLY for frame in _frames())


def inside_a_checkpoint() -> bool:
    """Whether the caller runs in a checkpoint."""
    codes = ((frame.f_code.co_name, frame.f_globals.get("__name__")) for frame in _frames())
    return ("checkpoint", module.__name__) in codes
