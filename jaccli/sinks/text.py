"""Values as text: JSON without NaN tokens, and names from strangers' files made harmless."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

# Controls, invisible formatting (text direction among it), lone surrogates, line and paragraph ends.
_ACTIVE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def json_value(value: Any) -> Any:
    """``value`` in the types that JSON has: a non-finite number is ``"nan"``, ``"inf"`` or ``"-inf"``.

    NumPy and torch scalars become numbers, their arrays lists, anything unknown its ``str``.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return json_value(value.tolist())
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """Valid JSON, in ASCII: nothing in it can act on a terminal."""
    return json.dumps(json_value(value), indent=indent, allow_nan=False)


def inert(text: str) -> str:
    r"""Text that a terminal only shows: control characters and their like as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _ACTIVE else char
        for char in text
    )
