"""Limits on the text and the list items that one run of a script makes.

A few lines of code that double a text or list in a loop would fill the memory. The count is of one run, on one thread.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from jaccli.errors import ResourceError

_MOST_AT_ONCE: Final = 1 << 24
_MOST_IN_A_RUN: Final = 1 << 28
_CONTAINERS: Final = (list, tuple, dict)


class _Run(threading.local):
    items = 0


_run = _Run()


def start() -> None:
    """A run of a script begins, on this thread."""
    _run.items = 0


def count_items(length: int) -> None:
    """Count items or characters that an operator is about to make.

    Raises:
        ResourceError: more than any network makes at once, or in a run.
    """
    _run.items += max(length, 0)
    if length > _MOST_AT_ONCE or _run.items > _MOST_IN_A_RUN:
        raise ResourceError(
            f"the model makes a list or text of {length} items",
            "expected a network that computes with tensors",
            "check whether the model file is from a source that you trust",
        )


def count_nested(*values: Any) -> None:
    """Count the items of nested values, before an operator walks through all of them.

    A part that stands in several places counts in each.

    Raises:
        ResourceError: more than any network holds.
    """
    sizes: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(value, False) for value in values if isinstance(value, _CONTAINERS)]
    while stack:
        value, done = stack.pop()
        inner = [item for item in _items(value) if isinstance(item, _CONTAINERS)]
        if done or not inner:
            sizes[id(value)] = len(value) + sum(sizes.get(id(item), 1) for item in inner)
        elif id(value) not in sizes:
            sizes[id(value)] = 1
            stack += [(value, True), *((item, False) for item in inner)]
    for value in values:
        count_items(sizes.get(id(value), len(value) if isinstance(value, str) else 1))


def _items(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
