"""Values as JSON: without NaN tokens, and in ASCII."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


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
