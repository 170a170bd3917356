"""Ways of one and the same product, tried in turn as products are asked for; the fastest is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli import defaults
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
    """The ways of one product. The first takes vectors one by one, and is the one that the others must agree with.

    Nothing is computed in order to be timed: calls go different ways at first, and are held against the clock,
    by the number of their vectors. A way that fails or disagrees is left out.
    """

    surest: Route
    others: Sequence[Route]
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
                if route.name in self.believed or self._agrees(found, vectors):
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

    def _agrees(self, found: Tensor, vectors: Tensor) -> bool:
        """The last column against the surest way."""
        truth = self._timed(self.surest, vectors[..., -1:])[..., 0].double()
        gap, size = (found[..., -1].double() - truth).norm(dim=1), truth.norm(dim=1)
        finite = gap.isfinite() & size.isfinite()
        reach = torch.finfo(found.dtype).eps ** defaults.BELIEF_POWER
        scale = found.double().norm() / found.shape[-1] ** 0.5
        return bool((gap[finite] <= reach * torch.maximum(size[finite], scale * reach)).all())

    def _chosen(self, count: int) -> Route:
        ways = [w for w in self.others if w.name not in self.broken and self.asked >= w.least]
        for way in ways:
            if len(self.times.get((way.name, count.bit_length()), ())) < TRIES:
                return way
        fastest, least = self.surest, min(self.times.get((self.surest.name, 1), [0.0])) * count
        for way in ways:
            seconds = min(self.times[way.name, count.bit_length()])
            if seconds < least:
                fastest, least = way, seconds
        return fastest
