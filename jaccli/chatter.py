"""Where the code of models and scripts may print: standard error, by a stream of its own."""

from __future__ import annotations

import os
import sys
import weakref
from typing import TextIO


def chatter() -> TextIO:
    """A stream to take the place of ``sys.stdout`` while code of others runs; what it gets goes to standard error.

    It has a descriptor of its own: scripts close ``sys.stdout``, or wrap its buffer, which closes with the
    wrapper; standard error must outlive that. It is ``sys.stderr`` itself where that has no descriptor.
    """
    error = sys.stderr
    try:
        number = os.dup(error.fileno())
    except (AttributeError, OSError, ValueError):
        return error
    stream = os.fdopen(number, "w", buffering=1, encoding=error.encoding, errors=error.errors, closefd=False)
    # The descriptor goes with the last who holds the stream: a logger may keep it for good.
    weakref.finalize(stream.buffer.raw, os.close, number).atexit = False  # type: ignore[attr-defined]
    return stream
