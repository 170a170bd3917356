"""Gradient checkpoints are bypassed in a pass of jaccli: the function in them runs directly.

``torch.utils.checkpoint(…, use_reentrant=True)`` runs a function without a graph, and again in the backward pass; with
False it runs it again for the tensors that the backward pass needs. An activation that was replaced or recorded in the
first run is not part of the second run, and the reentrant kind supports ``backward()`` only. A checkpoint has the
result of its function, so that calling the function directly gives the same values with all derivatives.
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
# The name of what a non-reentrant checkpoint runs around its function: a generator of one step.
_AROUND = "_checkpoint_without_reentrant_generator"
_lock = threading.Lock()
_thread = threading.local()
_count = 0


@contextmanager
def checkpoints_bypassed(every: bool) -> Iterator[None]:
    """Inside, and in this thread only, reentrant checkpoints run their function directly; with ``every``, all do.

    A non-reentrant checkpoint saves memory, and is right as long as no source lies within it.
    """
    global _count
    with _lock:
        _count += 1
        if _count == 1:
            _install()
    # The patch is global while any thread is inside; the thread-local flag decides for whom it acts.
    before = _bypassed()
    _thread.bypassed = (True, every)
    try:
        yield
    finally:
        _thread.bypassed = before
        with _lock:
            _count -= 1
            if _count == 0:
                _remove()


def _bypassed() -> tuple[bool, bool]:
    """Whether this thread bypasses reentrant checkpoints, and the others."""
    kinds: tuple[bool, bool] = getattr(_thread, "bypassed", (False, False))
    return kinds


def _install() -> None:
    inherited: Any = CheckpointFunction.apply
    around: Any = getattr(module, _AROUND, None)

    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        if _bypassed()[0]:
            return function(*args)
        return inherited(function, preserve_rng_state, *args)

    def nothing_around(*args: Any, **kwargs: Any) -> Any:
        if _bypassed()[1]:
            return _one_step()
        return around(*args, **kwargs)

    CheckpointFunction.apply = staticmethod(apply)  # type: ignore[method-assign]
    if around is not None:
        nothing_around.original = around  # type: ignore[attr-defined]
        setattr(module, _AROUND, nothing_around)


def _one_step() -> Iterator[None]:
    yield


def _remove() -> None:
    del CheckpointFunction.apply  # the inherited function is visible again
    ours: Any = getattr(module, _AROUND, None)
    if hasattr(ours, "original"):
        setattr(module, _AROUND, ours.original)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def inside_a_function() -> bool:
    """Whether the caller runs in the forward pass of an ``autograd.Function``, whose operators leave no graph."""
    return any(frame.f_code is _APPLY for frame in _frames())


def inside_a_checkpoint() -> bool:
    """Whether the caller runs in a checkpoint."""
    codes = ((frame.f_code.co_name, frame.f_globals.get("__name__")) for frame in _frames())
    return ("checkpoint", module.__name__) in codes
