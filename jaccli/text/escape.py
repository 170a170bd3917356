"""Text from files made harmless: it cannot steer a terminal, and is short and one line where a message quotes it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

# Controls, invisible formatting (text direction among it), lone surrogates, line and paragraph ends.
_ACTIVE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def inert(text: str) -> str:
    r"""Text that a terminal only shows: control characters and their like as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _ACTIVE else char
        for char in text
    )


def printable(text: str, limit: int = 120) -> str:
    """One line: what is not printable becomes a space, runs of spaces one, and the end is left out when it is long."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def quote(text: object, limit: int = 80) -> str:
    """``text`` quoted, control characters escaped, the middle left out when it is long."""
    return cut(repr(os.fspath(text) if isinstance(text, os.PathLike) else str(text)), limit)


def cut(text: str, limit: int) -> str:
    """``text``, the middle left out when it is longer."""
    keep = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:keep]}…{text[-keep:]}"


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first few of ``names``, quoted, and how many more there are."""
    every = list(names)
    shown = ", ".join(quote(name, 60) for name in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def shortened(error: BaseException, limit: int = 120) -> str:
    """An exception as ``Type: message`` on one line."""
    lines = str(error).strip().splitlines()
    message = quote(lines[0], limit)[1:-1] if lines else ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name


_MOST_COMPARED = 1000
_LONGEST_COMPARED = 200


def nearest(name: str, names: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names most like ``name``, nearest first.

    Of very many names those with the same last part are compared first, and so many in all that it takes no
    second: each comparison costs the product of the lengths.
    """
    last = name.rpartition(".")[2]
    every = [one for one in names if len(one) <= _LONGEST_COMPARED]
    if len(every) > _MOST_COMPARED:
        alike = [one for one in every if one.rpartition(".")[2] == last]
        every = list(islice(dict.fromkeys([*alike, *every]), _MOST_COMPARED))
    return get_close_matches(name[:_LONGEST_COMPARED], every, n=count, cutoff=cutoff)
