"""Values that may share memory, in sets."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class AliasSets(Generic[K]):
    """Disjoint sets of values. Invariant: a value is in exactly one set, alone until it is united with others.

    The smaller set is merged into the larger one: n unions cost O(n log n).
    """

    def __init__(self) -> None:
        self._sets: dict[K, set[K]] = {}

    def members(self, value: K) -> set[K]:
        """All values that may share memory with this one, itself included."""
        return self._sets.setdefault(value, {value})

    def unite(self, values: Iterable[K]) -> None:
        """Note that any two of these may share memory."""
        first: K | None = None
        for value in values:
            if first is None:
                first = value
                continue
            small, large = sorted((self.members(first), self.members(value)), key=len)
            if small is not large:
                large |= small
                self._sets.update(dict.fromkeys(small, large))
