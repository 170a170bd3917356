"""Which format to write, and whether the output may be written. Needs neither torch nor numpy."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from typing import Literal, TypeAlias, cast, get_args

from jaccli.errors import UsageError
from jaccli.sinks.standard import results

Format: TypeAlias = Literal["table", "json", "jsonl", "csv", "markdown", "npy", "npz", "pt", "safetensors", "zarr"]
Kind: TypeAlias = Literal["numbers", "matrix"]

NUMBERS: tuple[Format, ...] = ("table", "json", "jsonl", "csv", "markdown")
MATRIX: tuple[Format, ...] = ("table", "json", "jsonl", "csv", "npy", "npz", "pt", "safetensors", "zarr")
# Those that hold a sparse J.
SPARSE: tuple[Format, ...] = ("npz", "safetensors")
BINARY: tuple[Format, ...] = ("npy", "npz", "pt", "safetensors", "zarr")

_EXTENSIONS: dict[str, Format] = {
    **{f".{name}": name for name in ("json", "jsonl", "csv", "npy", "npz", "pt", "safetensors", "zarr")},
    ".ndjson": "jsonl",
    ".md": "markdown",
    ".pth": "pt",
    ".txt": "table",
}

# Names that say nothing of a format's structure: any text may be in such a file.
_ANY_TEXT = (".txt",)
_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def choose_format(explicit: str | None, out: str | None, stdout_is_tty: bool, kind: Kind) -> Format:
    """``--format``, else the extension of ``-o``, else what standard output is.

    Args:
        explicit: the value of ``--format``.
        out: the value of ``-o``; ``-`` and None are standard output.
        stdout_is_tty: standard output is a terminal.
        kind: numbers about J, or J itself.

    Raises:
        UsageError: an unknown format or extension, one that does not fit ``kind``, a format that the
            extension contradicts, binary data to a terminal, or zarr to a stream.
    """
    allowed = NUMBERS if kind == "numbers" else MATRIX
    streaming = is_stream(out)
    terminal = stdout_is_tty if is_stdout(out) else streaming and _is_terminal(str(out))
    if explicit is not None:
        chosen = _named(explicit, allowed, kind)
        _check_name(chosen, out)
    elif streaming and (is_stdout(out) or _extension(out) not in _EXTENSIONS):
        chosen = "table" if terminal else ("jsonl" if kind == "numbers" else "npy")
    else:
        chosen = _by_extension(cast(str, out), allowed, kind)
    if chosen in BINARY and terminal:
        raise UsageError(
            f"--format {chosen}: binary data is never written to a terminal",
            remedy=f"use -o FILE.{chosen}, a pipe, or --format table",
        )
    if chosen == "zarr" and streaming:
        raise UsageError("--format zarr: a zarr store is a folder", remedy="name it with -o NAME.zarr")
    return chosen


def check_output(path: str | None, force: bool) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        UsageError: it exists and ``force`` is not given, is a folder, or its folder is missing or
            not writable; standard output is closed.
    """
    if is_stdout(path):
        _check_stdout()
    if path is None or is_stream(path):
        return
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        missing = os.path.dirname(path) or folder
        raise UsageError(
            f"--output {path!r}: no such folder {missing!r}",
            "expected a folder that exists",
            f"make it: mkdir -p {shlex.quote(missing)}",
        )
    if os.path.isdir(target) and not (force and is_zarr(target)):
        if is_zarr(target):
            raise UsageError(f"--output {path!r} exists", remedy="use --force to replace it")
        raise _is_folder(path)
    if os.path.exists(target) and not force:
        raise UsageError(f"--output {path!r} exists", remedy="use --force to replace it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"--output {path!r}: no permission to write into {os.path.dirname(path) or folder!r}",
            "expected a folder that you may write into",
            "choose another place with -o",
        )


def is_stream(path: str | None) -> bool:
    """Standard output, a pipe or a device: nothing that can be replaced."""
    if path is None or is_stdout(path):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_stdout(path: str | None) -> bool:
    """Standard output, by any of its names."""
    return path in (None, "-") or os.path.normpath(str(path)) in _STDOUT


def is_zarr(path: str) -> bool:
    """A folder with a zarr store's mark in it."""
    return any(os.path.exists(os.path.join(path, mark)) for mark in ("zarr.json", ".zgroup", ".zarray"))


def _check_stdout() -> None:
    try:
        number = results().fileno()
    except (OSError, ValueError):  # what stands for it has no descriptor
        return
    try:
        os.write(number, b"")  # an empty write finds a closed descriptor without writing anything
    except OSError as error:
        if error.errno == errno.EBADF:
            remedy = "name a file with -o"
            raise UsageError("standard output is closed", "expected somewhere to write results to", remedy) from None


def _is_terminal(path: str) -> bool:
    return os.path.realpath(path).startswith(("/dev/pts/", "/dev/tty"))


def _named(explicit: str, allowed: tuple[Format, ...], kind: Kind) -> Format:
    if explicit not in get_args(Format):
        raise UsageError(
            f"--format {explicit!r} is unknown",
            f"expected one of {', '.join(allowed)}",
            "leave --format out: the extension of -o tells it",
        )
    return _fitting(cast(Format, explicit), allowed, kind, f"--format {explicit}")


def _check_name(chosen: Format, out: str | None) -> None:
    if is_stdout(out):
        return
    named = _EXTENSIONS.get(_extension(out), chosen)
    if named != chosen and _extension(out) not in _ANY_TEXT:
        usual = next(end for end, format in _EXTENSIONS.items() if format == chosen)
        raise UsageError(
            f"--output {out!r} is a name for {named}, and --format is {chosen}",
            "expected the two to agree",
            f"leave --format out, or name the file {os.path.splitext(str(out))[0] + usual!r}",
        )


def _by_extension(out: str, allowed: tuple[Format, ...], kind: Kind) -> Format:
    extension = _extension(out)
    if extension not in _EXTENSIONS and os.path.isdir(out):
        raise _is_folder(out)
    if extension not in _EXTENSIONS:
        extensions = ", ".join(end for end, name in _EXTENSIONS.items() if name in allowed)
        problem = f"extension {extension!r} names no format" if extension else "no extension, so no format"
        raise UsageError(f"--output {out!r}: {problem}", f"expected {extensions}", "or give --format")
    return _fitting(_EXTENSIONS[extension], allowed, kind, f"--output {out!r}")


def _is_folder(path: str) -> UsageError:
    return UsageError(
        f"--output {path!r} is a folder", f"expected a file, as {os.path.join(path, 'J.npz')!r}", "add a file name"
    )


def _extension(out: str | None) -> str:
    return os.path.splitext(str(out))[1].lower()


def _fitting(chosen: Format, allowed: tuple[Format, ...], kind: Kind, where: str) -> Format:
    if chosen in allowed:
        return chosen
    content = "numbers about J" if kind == "numbers" else "matrices"
    raise UsageError(
        f"{where}: {chosen} does not hold {content}",
        f"expected one of {', '.join(allowed)}",
        "choose another --format or name",
    )
