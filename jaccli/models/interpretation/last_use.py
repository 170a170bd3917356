"""When values are used for the last time: after that a run lets go of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def last_uses(uses: Iterable[Iterable[K]]) -> dict[K, int]:
    """Value → the last step that names it.

    Args:
        uses: for each step, the values that it reads or makes.
    """
    last: dict[K, int] = {}
    for step, values in enumerate(uses):
        last.update(dict.fromkeys(values, step))
    return last


def expiring(uses: Iterable[Iterable[K]], lasting: Collection[K]) -> dict[int, list[K]]:
    """Step → the values that nobody reads after it, without the ``lasting`` ones."""
    steps: dict[int, list[K]] = {}
    for value, step in last_uses(uses).items():
        if value not in lasting:
            steps.setdefault(step, []).append(value)
    return steps
