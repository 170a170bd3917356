"""Routes of one and the same product: the first that works and is verified is taken, by numbers, never by the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli.errors import JaccliError, ResourceError, UnsupportedError, note
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.text.wording import worded

# How the names of routes end that take the vectors of a call together.
BATCHED = ", batched"


@dataclass(frozen=True)
class Implementation:
    """One way of a product with vectors ``(batch, n, k)``.

    Args:
        name: for people.
        take: makes it.
        least: so many vectors must have been asked for before: it imports or captures first.
        width: so many vectors a call must have.
        sure: needs no verification: it is what others are compared with.
    """

    name: str
    take: Callable[[Tensor], Tensor]
    least: int = 0
    width: int = 1
    sure: bool = False


@dataclass
class Implementations:
    """The routes of one product, in order of preference; the last is sure.

    Each is verified with a random vector when it is first taken. One that raises, disagrees or gives what is not
    finite where a sure one is, is set aside for good, with a note. Which route a call takes depends on the numbers of
    vectors asked for, so that the same calls give the same digits.

    Args:
        product: its name, for people.
        routes: in order of preference.
        probe: a random vector ``(batch, n)``.
        holds: whether a product with the probe is right.
        truth: what it is compared with, for people.
        quiet: no notes.
        set_aside: routes that failed.
        verified: routes that did not.
    """

    product: str
    routes: Sequence[Implementation]
    probe: Callable[[], Tensor]
    holds: Callable[[Tensor], bool]
    truth: str = "a backward pass"
    quiet: bool = False
    set_aside: set[str] = field(default_factory=set)
    verified: set[str] = field(default_factory=set)
    asked: int = 0
    _not_finite: bool = False
    _untold: dict[str, str] = field(default_factory=dict)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with ``(batch, n, k)``, k at least 1.

        Raises:
            UnsupportedError: no route works.
            ResourceError: out of memory.
        """
        count = vectors.shape[-1]
        self.asked += count
        last: Exception | None = None
        for route in self.routes:
            if route.name in self.set_aside or self.asked < route.least or count < route.width:
                continue
            try:
                found = self._taken(route, vectors)
            except Exception as error:
                if is_out_of_memory(error):
                    raise ResourceError(
                        f"out of memory in {self.product}", "", "give fewer samples at a time"
                    ) from None
                last = error
                self._leave(route, reason(error))
                continue
            if found is not None:
                self._tell(route)
                return found
        if isinstance(last, JaccliError):
            raise last
        raise UnsupportedError(
            f"no product {self.product}: {reason(last) if last is not None else 'no route is left'}",
            "expected a model that can be differentiated",
            worded("J itself with {method:finite-difference} needs no gradients"),
        ) from last

    def _taken(self, route: Implementation, vectors: Tensor) -> Tensor | None:
        """The product; None where it is wrong."""
        if route.sure:
            return route.take(vectors)
        if route.name in self.verified:
            found = route.take(vectors)
        else:
            both = route.take(torch.cat([vectors, self.probe().unsqueeze(-1)], dim=-1))
            if not self.holds(both[..., -1]):
                self._leave(route, f"it disagrees with {self.truth}")
                return None
            self.verified.add(route.name)
            found = both[..., :-1]
        if self._not_finite or _finite(found) or not _finite(vectors):
            return found
        return self._checked(route, found, vectors)

    def _checked(self, route: Implementation, found: Tensor, vectors: Tensor) -> Tensor:
        """A product that is not finite, beside that of a sure route."""
        sure = self.routes[-1].take(vectors)
        if torch.equal(sure.isfinite(), found.isfinite()):
            self._not_finite = True
        else:
            self._leave(route, "it gives numbers that are not finite where a backward pass gives finite ones")
        return sure

    def _leave(self, route: Implementation, why: str) -> None:
        self.set_aside.add(route.name)
        self._untold.setdefault(route.name.removesuffix(BATCHED), why)

    def _tell(self, taken: Implementation) -> None:
        """One note of all that was set aside since the last one."""
        if self._untold and not self.quiet:
            reasons = "; ".join(f"{name} ({why})" for name, why in self._untold.items())
            note(f"{self.product} is taken by {taken.name}; set aside: {reasons}")
        self._untold.clear()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(tensor).isfinite()) or bool(tensor.isfinite().all())
