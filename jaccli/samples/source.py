"""A file or standard input as a seekable source, and what kind of content it has."""

from __future__ import annotations

import codecs
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias, cast

from jaccli.errors import RefusedError, ResourceError, UsageError
from jaccli.safety.archives import open_archive
from jaccli.samples.expected import ARRAYS, READABLE

Kind: TypeAlias = Literal["npy", "npz", "safetensors", "pt", "image", "json", "text"]

STDIN = "standard input"
_HEAD = 4096
_IMAGE_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_FOREIGN = {
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF\r\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"MATLAB": "a MATLAB file",
    b"version https://git-lfs": "a git LFS pointer: the data was never downloaded",
}


@dataclass(frozen=True)
class Source:
    """An open, seekable file of ``size`` bytes at ``path``; ``name`` is for messages and is inert."""

    name: str
    path: str
    handle: BinaryIO
    size: int


@contextmanager
def open_source(path: str, stdin: BinaryIO | None = None) -> Iterator[Source]:
    """Open a path, or standard input for ``-``; a pipe is spooled to a temporary file.

    Raises:
        RefusedError: unreadable.
        UsageError: standard input is a terminal.
        ResourceError: the disk is full.
    """
    if path == "-":
        stream = stdin if stdin is not None else sys.stdin.buffer
        if stream.isatty():
            raise UsageError(
                "-: standard input is a terminal",
                "expected data in a pipe or a file: < x.npy",
                "as 'cat x.npy | jaccli …'",
            )
        with _spooled(stream, STDIN) as source:
            yield source
        return
    name = repr(path)
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise RefusedError(f"{name} cannot be read: {error.strerror}", READABLE, "check its permissions") from None
    with handle:
        status = os.fstat(handle.fileno())
        if stat.S_ISREG(status.st_mode):
            yield Source(name, path, handle, status.st_size)
        else:
            with _spooled(handle, name) as source:
                yield source


@contextmanager
def _spooled(stream: BinaryIO, name: str) -> Iterator[Source]:
    with tempfile.NamedTemporaryFile(prefix="jaccli-") as spool:
        try:
            shutil.copyfileobj(stream, spool, 1 << 20)
            spool.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise ResourceError(
                f"{name} could not be copied to {folder!r}: {error.strerror}",
                remedy="point TMPDIR at a folder with more room",
            ) from None
        size = spool.tell()
        spool.seek(0)
        yield Source(name, spool.name, cast(BinaryIO, spool), size)


def sniff(source: Source) -> Kind:
    """The kind of content, by its first bytes and never by its name. Leaves the position at 0.

    Raises:
        RefusedError: empty, or something that holds no arrays.
    """
    source.handle.seek(0)
    head = source.handle.read(_HEAD)
    source.handle.seek(0)
    if not head:
        from_pipe = "did the command before it fail?" if source.name == STDIN else ""
        raise RefusedError(f"{source.name} is empty", ARRAYS, from_pipe or "write it again: it has 0 bytes")
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _sniff_zip(source)
    # safetensors begins with the length of its JSON header, eight bytes, little-endian.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    # A pickle of protocol 2 to 5: what torch.save wrote before it wrote archives.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pt"
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise _refusal(source, kind)
    if head.startswith(_IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    return _sniff_text(source, head)


def _sniff_zip(source: Source) -> Kind:
    with open_archive(source.handle, source.name) as archive:
        names = archive.namelist()
    source.handle.seek(0)
    parts = [name.split("/") for name in names]
    if any(path[-1] == "constants.pkl" or "code" in path[1:2] for path in parts):
        raise _refusal(source, "a TorchScript model")
    if any(path[-1] == "data.pkl" for path in parts):
        return "pt"
    if any(path[-1].endswith(".npy") for path in parts) or not names:
        return "npz"
    raise _refusal(source, "a zip archive without arrays")


def _sniff_text(source: Source, head: bytes) -> Kind:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"
    try:
        # A character cut in two at the end of the head is no error.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < _HEAD)
    except UnicodeDecodeError:
        raise _refusal(source, "of an unknown kind") from None
    if "\0" in text:
        raise _refusal(source, "of an unknown kind")
    start = text.lstrip()[:64].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml")):
        raise _refusal(source, "an HTML or XML page")
    return "json" if start.startswith("{") else "text"


def _refusal(source: Source, kind: str) -> RefusedError:
    return RefusedError(f"{source.name} is {kind}", ARRAYS, "save it in one of these formats: numpy.save('x.npy', …)")
