"""Ways of one and the same product: the surest one, and another that is held against it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli.errors import note
from jaccli.operators.faults import is_out_of_memory, reason

# Every way is tried so often: the first call of one imports, or computes what further calls share.
TRIES = 2


@dataclass
class Route:
    """One way of a product with ``(batch, n, k)``.

    Args:
        name: for people.
        take: makes it.
        least: so many products must have been asked for before it is tried.
    """

    name: str
    take: Callable[[Tensor], Tensor]
    least: int = 0


@dataclass
class Routes:
    """The ways of one product. The surest takes vectors one by one; the others must agree with it.

    Of the others the first that works is a rival. Nothing is computed in order to be timed: calls go either way
    at first, and are held against the clock, by the number of their vectors. A way that fails or disagrees is
    left out.

    Args:
        surest: one by one.
        others: in order of preference.
        agrees: whether a product, of these vectors, is right.
    """

    surest: Route
    others: Sequence[Route]
    agrees: Callable[[Tensor, Tensor], bool]
    asked: int = 0
    times: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    believed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with ``(batch, n, k)``; errors are those of the surest way."""
        count = vectors.shape[-1]
        if count == 0:
            return self.surest.take(vectors)
        self.asked += count
        while (route := self._chosen(count)) is not self.surest:
            try:
                found = self._timed(route, vectors)
                if route.name in self.believed or self.agrees(found, vectors):
                    self.believed.add(route.name)
                    return found
                note(f"products by the {route.name} way disagree with single ones, and are not used")
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                note(f"products by the {route.name} way are not to be had: {reason(error)}")
            self.broken.add(route.name)
        return self._timed(self.surest, vectors)

    def _timed(self, route: Route, vectors: Tensor) -> Tensor:
        start = time.perf_counter()
        found = route.take(vectors)
        if found.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        count = vectors.shape[-1]
        key = (route.name, 1 if route is self.surest else count.bit_length())
        self.times.setdefault(key, []).append(seconds / (count if route is self.surest else 1))
        return found

    def _chosen(self, count: int) -> Route:
        rival = next((w for w in self.others if w.name not in self.broken), None)
        if rival is None or self.asked < rival.least:
            return self.surest
        tried = self.times.get((rival.name, count.bit_length()), ())
        alone = self.times.get((self.surest.name, 1))
        if len(tried) < TRIES or alone is None:
            return rival
        return rival if min(tried) < count * min(alone) else self.surest
