"""Text from files in error messages: one line, short, and unable to steer a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable


def quote(text: object, limit: int = 80) -> str:
    """``text`` quoted, control characters escaped, the middle left out when it is long."""
    shown = repr(os.fspath(text) if isinstance(text, os.PathLike) else str(text))
    if len(shown) <= limit:
        return shown
    keep = (limit - 1) // 2
    return f"{shown[:keep]}…{shown[-keep:]}"


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
