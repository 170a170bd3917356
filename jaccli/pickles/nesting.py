"""A limit on the depth of nested objects. Imports no torch.

The destructors of C++ containers call themselves once for each level, without a limit: a few megabytes of nested tuples
overflow the stack and end the process. No real file is nested so deep.
"""

from __future__ import annotations

from typing import Any, Final

from jaccli.pickles.stand_ins import OpaqueKey, StandIn
from jaccli.safety.reading import DamagedError

MAX_DEPTH: Final = 2000


def check_depth(root: Any) -> None:
    """Refuse objects that hold each other more than ``MAX_DEPTH`` levels deep.

    An object that holds itself counts as one level, since it is never destroyed.

    Cost: linear in the number of distinct objects.

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
    """The objects in a container or stand-in."""
    if isinstance(value, StandIn):
        return [*value.keys(), *value.values(), *value.args, *value.appended, value.state]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, OpaqueKey):
        return [value.value]
    return list(value) if isinstance(value, list | tuple) else []
