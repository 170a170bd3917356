"""Where the code of models and scripts may print: standard error, by a stream of its own."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


def chatter() -> TextIO:
    """A stream to take the place of ``sys.stdout`` while code of others runs; what it gets goes to standard error.

    It has a descriptor of its own: scripts close ``sys.stdout``, or wrap its buffer, which closes with the
    wrapper; standard error must outlive that. It is ``sys.stderr`` itself where that has no descriptor.
    """
    error = sys.stderr
    try:
        raw = _Chatter(os.dup(error.fileno()))
    except (AttributeError, OSError, ValueError):
        return error
    return io.TextIOWrapper(io.BufferedWriter(raw), error.encoding, error.errors, line_buffering=True)


class _Chatter(io.RawIOBase):
    """A descriptor, closed with the last who holds the stream.

    What cannot be written, since the reader left or the disk is full, is lost: no reason to lose J as well.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return os.write(self._number, data)
        except OSError:
            return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._number)
