"""Text from files in error messages: one line, short, and unable to steer a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice


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
