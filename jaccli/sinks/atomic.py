"""A file appears whole or not at all.

    temporary file beside the target ─→ written, flushed to disk ─→ takes the target's name in one step

It is in the target's folder because a rename is atomic within a file system only. An error about it, in the block or
after it, is reported as one of ``--output``; an error about another file, such as a model being read, passes unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType
from typing import BinaryIO, NoReturn

from jaccli.errors import JaccliError, ResourceError, UsageError
from jaccli.sinks.choose import check_output, is_stdout, is_stream
from jaccli.sinks.standard import results

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def open_output(path: str | None, force: bool, stdout: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """A binary handle: standard output for None and ``-``, a pipe or device as it is, else an atomic file.

    Raises:
        BrokenPipeError: the reader of a pipe left.
        UsageError, ResourceError: as ``atomic_file``.
    """
    if path is not None and not is_stream(path):
        with atomic_file(path, force) as handle:
            yield handle
        return
    try:
        if path is None or is_stdout(path):
            stream = stdout if stdout is not None else results()
            yield stream
            stream.flush()
        else:
            with open(str(path), "wb") as device:
                yield device
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(error, path or "-") from None


@contextlib.contextmanager
def atomic_file(path: str, force: bool) -> Iterator[BinaryIO]:
    """A handle on a temporary file beside ``path`` that takes its place when the block ends well.

    On any exception, an interrupt, SIGTERM and SIGHUP included, the temporary file is removed and an existing
    file is as it was. A symlink stays and its target is replaced; permissions of an existing file are
    kept. Seekable and readable.

    Raises:
        UsageError: as ``check_output``, or the file appeared in the meantime.
        ResourceError: the disk is full.
    """
    check_output(path, force)
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    with terminate_as_exception():
        try:
            number, temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", suffix=".partial", dir=folder)
        except OSError as error:
            raise write_error(error, path) from None
        try:
            with os.fdopen(number, "w+b") as handle:
                yield handle
                handle.flush()
                os.fchmod(handle.fileno(), _mode(target))
                os.fsync(handle.fileno())
            _put(temporary, target, path, force)
        except OSError as error:
            _raise_if_of_another_file(error, temporary, target)
            raise write_error(error, path) from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: str, force: bool) -> Iterator[str]:
    """The same for a zarr store: a temporary folder that takes the place of ``path``."""
    check_output(path, force)
    target = os.path.realpath(path)
    with terminate_as_exception():
        try:
            temporary = tempfile.mkdtemp(
                prefix=f".{os.path.basename(target)[:100]}.", suffix=".partial", dir=os.path.dirname(target)
            )
        except OSError as error:
            raise write_error(error, path) from None
        try:
            store = os.path.join(temporary, "new")
            os.mkdir(store)
            yield store
            check_output(path, force)
            _exchange(store, target, os.path.join(temporary, "old"))
        except OSError as error:
            _raise_if_of_another_file(error, temporary, target)
            raise write_error(error, path) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def terminate_as_exception() -> Iterator[None]:
    """SIGTERM as ``SystemExit(143)`` inside, SIGHUP (a closed terminal) as 129: what is half done is cleaned up.

    A signal that has a handler, or is ignored as under ``nohup``, stays as it is.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    # Python lets the main thread alone set handlers.
    in_main = threading.current_thread() is threading.main_thread()
    unhandled = [number for number in _ENDINGS if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def write_error(error: OSError, path: str) -> JaccliError:
    """What a failed write means to the user: a full disk, or an output that cannot be written."""
    where = "standard output" if is_stdout(path) else f"--output {path!r}"
    if error.errno in _FULL:
        remedy = "make room" if is_stdout(path) else "nothing was written; make room, or write elsewhere"
        return ResourceError(f"{where}: {os.strerror(error.errno or 0)}", remedy=remedy)
    return UsageError(
        f"{where} cannot be written: {error.strerror or type(error).__name__}",
        "expected somewhere to write results to",
        "name a file with -o" if is_stdout(path) else "choose another place with -o",
    )


def _put(temporary: str, target: str, path: str, force: bool) -> None:
    if force:
        os.replace(temporary, target)
    else:
        try:
            os.link(temporary, target)  # unlike a rename, it refuses a file that appeared meanwhile
        except FileExistsError:
            raise UsageError(f"--output {path!r} exists", remedy="use --force to replace it") from None
        except OSError:  # a file system without hard links
            os.rename(temporary, target)
    with contextlib.suppress(OSError):  # so that the name survives a power cut too
        number = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _exchange(store: str, target: str, old: str) -> None:
    existed = os.path.lexists(target)
    if existed:
        os.rename(target, old)
    try:
        os.rename(store, target)
    except BaseException:
        if existed:
            os.rename(old, target)
        raise


def _raise_if_of_another_file(error: OSError, temporary: str, target: str) -> None:
    """The block may read models and write to pipes: such an error is not about the output."""
    is_output = error.filename is None or str(error.filename).startswith((temporary, target))
    if isinstance(error, BrokenPipeError) or not is_output:
        raise error


def _mode(target: str) -> int:
    try:
        return os.stat(target).st_mode & 0o777
    except OSError:  # a new file: as ``open`` would make it; the mask can be read only by setting it
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
