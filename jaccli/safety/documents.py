"""Untrusted JSON: the memory that it takes is estimated before it is parsed."""

from __future__ import annotations

import json
from typing import Any, Final

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_unpacked
from jaccli.safety.reading import DAMAGED_OR_FORGED

# The most bytes of Python objects for each of these characters: an element, an item of a dict, a list, a dict, text.
_COSTS: Final = ((b",", 40), (b":", 120), (b"[", 64), (b"{", 72), (b'"', 32))

# A shorter text takes at most a MiB or two, and asking the system for its free memory takes longer than to parse it.
_LONG: Final = 1 << 14


def parse_json(text: bytes, name: str) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8, with or without a byte order mark; other bytes are replaced.
        name: for messages.

    Raises:
        ValueError: not JSON.
        RefusedError: nested too deep.
        ResourceError: it takes more memory than is allowed.
    """
    if len(text) > _LONG:
        require_unpacked(2 * len(text) + sum(text.count(mark) * cost for mark, cost in _COSTS), len(text), name)
    try:
        return json.loads(text.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise RefusedError(
            f"{name} holds JSON that is nested too deep",
            "expected some levels of objects and lists",
            DAMAGED_OR_FORGED,
        ) from None


def plain_values(document: Any) -> dict[str, str]:
    """The items of a dict whose values are text, numbers, booleans or None, as text; empty for anything else."""
    if not isinstance(document, dict):
        return {}
    plain = (str, int, float, bool, type(None))
    return {str(key): str(value) for key, value in document.items() if isinstance(value, plain)}
