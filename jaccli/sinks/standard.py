"""Standard output belongs to results: what a model prints, in Python, in C or from a child, goes to standard error.

    with prepared_streams():        a command line: closed descriptors are open, encodings as the streams show them
        reserve_stdout_for_results()         a command's body: from now on ``results()`` alone leads to standard output

Where ``sys.stdout`` is no descriptor but what a caller put there, results go to that.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from jaccli.runtime.printing import chatter
from jaccli.sinks.charset import SUBSTITUTE, charset_of


@dataclass(frozen=True)
class _Redirection:
    """Results, and what it takes to undo the separation."""

    results: BinaryIO
    charset: str
    stdout: Any
    descriptor: int


_redirection: _Redirection | None = None
_prepared = False


def results() -> BinaryIO:
    """Where results go when no file is named."""
    return _redirection.results if _redirection is not None else sys.stdout.buffer


def results_charset() -> str:
    """The charset of text for people there."""
    return _redirection.charset if _redirection is not None else _charset(sys.stdout)


def reserve_stdout_for_results() -> None:
    """Keep standard output for ``results()``: descriptor 1 and ``sys.stdout`` lead to standard error."""
    global _redirection
    if _redirection is not None:
        return
    _flush()
    stdout, descriptor = sys.stdout, os.dup(1)
    is_descriptor_1 = _number(stdout) == 1
    stream: BinaryIO = os.fdopen(descriptor, "wb", closefd=False) if is_descriptor_1 else stdout.buffer
    _redirection = _Redirection(stream, _charset(stdout), stdout, descriptor)
    os.dup2(2, 1)
    sys.stdout = chatter()


def release_stdout() -> None:
    """Undo ``reserve_stdout_for_results``. Not at the end of a process: what runs at exit may print, too."""
    global _redirection
    if _redirection is None:
        return
    ended, _redirection = _redirection, None
    _flush()
    with contextlib.suppress(OSError, ValueError):
        ended.results.flush()
    os.dup2(ended.descriptor, 1)
    os.close(ended.descriptor)
    sys.stdout = ended.stdout


def are_streams_prepared() -> bool:
    """Whether this is a command line, which puts streams back itself, or ends with its process."""
    return _prepared


def flush_results() -> None:
    """Write what is held back.

    Raises:
        OSError: it cannot be written.
    """
    (_redirection.results if _redirection is not None else sys.stdout).flush()


def discard_results() -> None:
    """What is still held back goes nowhere: the interpreter flushes once more at exit, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), results().fileno())


def discard_messages() -> None:
    """What standard error could not take is lost: the interpreter would try once more, and exit with 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stderr.flush()


@contextlib.contextmanager
def prepared_streams() -> Iterator[None]:
    """Standard streams that are there, and can write anything: for the time of one command line."""
    global _prepared
    _open_closed()
    before = [
        (stream, stream.encoding, stream.errors)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper)
    ]
    for stream, *_ in before:
        with contextlib.suppress(OSError):
            stream.reconfigure(encoding=_charset(stream), errors=SUBSTITUTE)
    _prepared = True
    try:
        yield
    finally:
        _prepared = False
        for stream, encoding, errors in before:
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(encoding=encoding, errors=errors)


def _open_closed() -> None:
    """Open what the shell closed: the number would be the next file's, and prints would be written into that.

    Standard output is opened for reading, so that results find it bad, as they should.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def _flush() -> None:
    """Python's and C's buffers of descriptor 1, before it changes hands."""
    import ctypes

    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)


def _charset(stream: Any) -> str:
    return charset_of(getattr(stream, "encoding", None), stream.isatty())


def _number(stream: Any) -> int | None:
    """The descriptor of a stream, or None."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
