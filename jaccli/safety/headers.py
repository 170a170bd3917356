"""Untrusted safetensors files: the length and the entries of the header are checked before it is parsed."""

from __future__ import annotations

import re
from typing import IO, Final

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_unpacked
from jaccli.safety.reading import COPY_AGAIN, DAMAGED_OR_FORGED

_LONGEST: Final = 100_000_000  # the limit of the format
_MOST_TENSORS: Final = 400_000
_BYTES_OF_A_CHARACTER: Final = 12  # of Python objects, while a header is parsed
_END: Final = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,20}\s*,\s*(\d{1,20})\s*\]')


def is_safetensors(head: bytes) -> bool:
    """Whether these first bytes are those of a safetensors file: the length of a header in 8 bytes, then JSON."""
    return len(head) >= 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LONGEST


def check_header(handle: IO[bytes], size: int, name: str) -> None:
    """Check the header of a file of ``size`` bytes. Leaves the position at 0.

    Raises:
        RefusedError: the file is cut short, or names more tensors than any network has.
        ResourceError: the header takes more memory than is allowed.
    """
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    require_unpacked(length * _BYTES_OF_A_CHARACTER, length, f"the header of {name}")
    # Found without a parser, which would take the memory that is to be limited.
    ends = [int(end) for end in _END.findall(handle.read(length))]
    handle.seek(0)
    if 8 + length + max(ends, default=0) != size:
        raise RefusedError(
            f"{name} is a safetensors file that is cut short or damaged",
            f"its header describes other data than the {size} bytes that are there",
            COPY_AGAIN,
        )
    if len(ends) > _MOST_TENSORS:
        raise RefusedError(
            f"{name} is a safetensors file of {len(ends)} tensors",
            f"expected at most {_MOST_TENSORS}",
            DAMAGED_OR_FORGED,
        )
