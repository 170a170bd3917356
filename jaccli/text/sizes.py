"""Amounts of memory as people write them."""

from __future__ import annotations

import math
import operator
import re
from typing import SupportsIndex

from jaccli.errors import UsageError
from jaccli.text.wording import worded

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?(?:e\d{1,3})?)\s*([kmgt]i?)?b?\s*", re.ASCII)
_EXPECTED = "expected a number with a unit, as 4GiB or 500MB"
_LEFT_OUT = worded("leave {max_memory} out for a share of what is free")


def parse_bytes(text: str) -> int:
    """``4GiB``, ``500MB``, ``1e9`` → bytes.

    Raises:
        UsageError: not a size, or less than a byte.
    """
    match = _SIZE.fullmatch(text.lower())
    unit = (match[2] or "") if match else ""
    size = float(match[1]) * (_BINARY[unit] if unit.endswith("i") else _UNITS[unit]) if match else 0.0
    if not 1 <= size < math.inf:
        raise UsageError(worded("{max_memory:{text}} is not a size", text=repr(text)), _EXPECTED, _LEFT_OUT)
    return int(size)


def memory_limit(value: object) -> int | None:
    """``max_memory`` as a caller gives it → bytes; None where it is left to the free memory.

    Raises:
        UsageError: not a size from one byte on.
    """
    if value is None or isinstance(value, str):
        return None if value is None else parse_bytes(value)
    number: object = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(number, bool) or not isinstance(number, SupportsIndex) or (size := operator.index(number)) < 1:
        message = worded("{max_memory:{value}} is not a size", value=repr(value))
        raise UsageError(
            message, "expected a whole number of bytes from 1, a text as '4GiB' or '500MB', or None", _LEFT_OUT
        )
    return size
