"""Untrusted zip files: the sizes of the directory and of unpacked members are checked before they are read."""

from __future__ import annotations

import struct
import zipfile
from typing import IO, Final

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_unpacked
from jaccli.safety.reading import COPY_AGAIN, DAMAGED_OR_FORGED

_MOST_ENTRIES: Final = 400_000
_BYTES_OF_AN_ENTRY: Final = 1_500  # as Python objects
# Bytes at the end of a file that can hold the end record, its comment and the zip64 locator.
_TAIL: Final = 22 + 0xFFFF + 20
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"


def open_archive(handle: IO[bytes], name: str) -> zipfile.ZipFile:
    """The zip file in ``handle``, its directory read.

    Raises:
        RefusedError: it is no zip file, cut short, or has more entries than any network has tensors.
        ResourceError: its directory takes more memory than is allowed.
    """
    count = _entries(handle)
    if count > _MOST_ENTRIES:
        raise RefusedError(
            f"{name} is a zip archive of {count} entries",
            f"expected at most {_MOST_ENTRIES}",
            DAMAGED_OR_FORGED,
        )
    require_unpacked(count * _BYTES_OF_AN_ENTRY, count * 100, f"the directory of {name}")
    try:
        return zipfile.ZipFile(handle)
    except Exception as error:  # the module raises nearly anything on forged directories
        raise RefusedError(
            f"{name} is a zip archive that is cut short or damaged",
            "expected the whole file, with the directory at its end",
            COPY_AGAIN,
        ) from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    """All bytes of a member, unpacked.

    Raises:
        RefusedError, ResourceError: it is too large unpacked.
        Exception: it is damaged; of any type.
    """
    require_unpacked(info.file_size, info.compress_size, name)
    return archive.read(info)


def _entries(handle: IO[bytes]) -> int:
    """The number of directory entries: the stated one, or as many as fit the stated length, if more."""
    handle.seek(0, 2)
    size = handle.tell()
    start = max(size - _TAIL, 0)
    handle.seek(start)
    tail = handle.read()
    handle.seek(0)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        return 0
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if tail[at - 20 : at - 16] == _LOCATOR:
        (offset,) = struct.unpack("<Q", tail[at - 12 : at - 4])
        if offset + 56 <= size:
            handle.seek(offset)
            end = handle.read(56)
            handle.seek(0)
            if end[:4] == _END64:
                count, length = struct.unpack("<QQ", end[32:48])
    # An entry has 46 bytes and a name, so that a small forged count does not help.
    return max(count, min(length, size) // 64)
