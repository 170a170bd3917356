"""JSON from strangers: what it takes in memory is estimated before it is parsed."""

from __future__ import annotations

import json
from typing import Any, Final

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_unpacked
from jaccli.safety.reading import DAMAGED_OR_FORGED

# Bytes of Python objects, at most, for each of these characters: an element of a list, a list, a dict, text.
_COSTS: Final = ((b",", 40), (b":", 120), (b"[", 64), (b"{", 72), (b'"', 32))

# A shorter text takes no MiB or two, and asking the system for every line of a file takes longer than to parse it.
_LONG: Final = 1 << 14


def parse_json(text: bytes, name: str) -> Any:
    """What a JSON text holds.

    Args:
        text: UTF-8, with or without a byte order mark; other bytes are replaced.
        name: for messages.

    Raises:
        ValueError: not JSON.
        RefusedError: nested too deep to be read.
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


def plain_values(found: Any) -> dict[str, str]:
    """The plain values of an object by name: what is nested in them is passed over."""
    if not isinstance(found, dict):
        return {}
    plain = (str, int, float, bool, type(None))
    return {str(key): str(value) for key, value in found.items() if isinstance(value, plain)}
