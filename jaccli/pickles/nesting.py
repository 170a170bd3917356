"""How deep objects are nested. Imports no torch.

The destructors of C++ containers call themselves once a level, with no limit: a few megabytes of nested
tuples overflow the stack and end the process. Nothing real is nested so.
"""

from __future__ import annotations

from typing import Any, Final

from jaccli.pickles.stand_ins import OpaqueKey, StandIn
from jaccli.safety.reading import DamagedError

MAX_DEPTH: Final = 2000


def check_depth(root: Any) -> None:
    """Refuse objects that hold each other more than 2,000 levels deep. Linear; an object met again costs nothing.

    An object within itself ends there: it is never destroyed.

    Raises:
        DamagedError: nested too deep.
    """
    depths: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        value, done = stack.pop()
        inner = _inner(value)
        if not inner:
            continue
        if done:
            depth = 1 + max(depths.get(id(item), 0) for item in inner)
            if depth > MAX_DEPTH:
                raise DamagedError("objects nested absurdly deep")
            depths[id(value)] = depth
        elif id(value) not in depths:
            depths[id(value)] = 0
            stack.append((value, True))
            stack += [(item, False) for item in inner]


def _inner(value: Any) -> list[Any]:
    """What an object of the pickle machine holds."""
    if isinstance(value, StandIn):
        return [*value.keys(), *value.values(), *value.given, *value.items_added, value.state]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, OpaqueKey):
        return [value.held]
    return list(value) if isinstance(value, list | tuple) else []
