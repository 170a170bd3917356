"""Text from files made harmless: it cannot steer a terminal, and is short and one line where a message quotes it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

# Controls, invisible formatting (text direction among it), lone surrogates, line and paragraph ends.
_ACTIVE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_MOST_COMPARED, _LONGEST_COMPARED = 1000, 200


def inert(text: str) -> str:
    r"""Text that a terminal only shows: control characters and their like as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _ACTIVE else char
        for char in text
    )


def quote(text: object, limit: int = 80) -> str:
    """``text`` quoted, control characters escaped, the middle left out when it is long."""
    return cut(repr(os.fspath(text) if isinstance(text, os.PathLike) else str(text)), limit)


def cut(text: str, limit: int) -> str:
    """``text``, the middle left out when it is longer."""
    keep = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:keep]}…{text[-keep:]}"


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first few of ``names``, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(quote(name, 60) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def shortened(error: BaseException, limit: int = 120) -> str:
    """An exception as ``Type: message`` on one line."""
    lines = str(error).strip().splitlines()
    message = quote(lines[0], limit)[1:-1] if lines else ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def nearest(name: str, names: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names most like ``name``, nearest first.

    A comparison costs the product of the lengths. So that all take less than a second, long names are left out, and of
    very many names the first ``_MOST_COMPARED`` are compared: those with the same last part come first.
    """
    last = name.rpartition(".")[2]
    candidates = [other for other in names if len(other) <= _LONGEST_COMPARED]
    if len(candidates) > _MOST_COMPARED:
        same_end = [other for other in candidates if other.rpartition(".")[2] == last]
        candidates = list(islice(dict.fromkeys([*same_end, *candidates]), _MOST_COMPARED))
    return get_close_matches(name[:_LONGEST_COMPARED], candidates, n=count, cutoff=cutoff)
