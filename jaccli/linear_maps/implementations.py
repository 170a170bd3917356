"""Implementations of one product: the first that works and is verified serves a call.

Which one that is depends on the numbers of vectors, never on the clock, so that the same calls give the same digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import JaccliError, ResourceError, UnsupportedError, note
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped

# How the names of implementations end that take the vectors of a call together.
BATCHED = ", batched"


@dataclass(frozen=True)
class Implementation:
    """One way to compute a product with vectors ``(batch, n, k)``.

    Args:
        name: for people.
        compute: vectors ``(batch, n, k)`` → their images ``(batch, m, k)``.
        least: how many vectors must have been asked for before it is tried, since it imports or captures first.
        width: how many vectors a call must have at least.
        reference: others are compared with it; it is not verified itself.
    """

    name: str
    compute: Callable[[Tensor], Tensor]
    least: int = 0
    width: int = 1
    reference: bool = False


@dataclass
class Implementations:
    """The implementations of one product, in order of preference; the last is the reference.

    Each candidate is verified with a random vector when it is first used. One that raises, disagrees, or is not finite
    where the reference is finite, is set aside for good, with a note.

    Args:
        product: its name, for people.
        candidates: in order of preference, the reference last.
        probe: gives a random vector ``(batch, n)``.
        holds: whether a product with the probe, ``(batch, m)``, is right.
        truth: what it is compared with, for people.
        quiet: no notes.
        set_aside: names of candidates that failed.
        verified: names of candidates that did not.
        requested: vectors so far.
    """

    product: str
    candidates: Sequence[Implementation]
    probe: Callable[[], Tensor]
    holds: Callable[[Tensor], bool]
    truth: str = "a backward pass"
    quiet: bool = False
    set_aside: set[str] = field(default_factory=set)
    verified: set[str] = field(default_factory=set)
    requested: int = 0
    _not_finite: bool = False
    _unreported: dict[str, str] = field(default_factory=dict)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with ``(batch, n, k)``, k at least 1: ``(batch, m, k)``.

        Raises:
            UnsupportedError: no implementation works.
            ResourceError: out of memory.
        """
        count = vectors.shape[-1]
        self.requested += count
        last: Exception | None = None
        # The first candidate that fits is used. What is set aside stays so: a second try would only fail again.
        for candidate in self.candidates:
            if candidate.name in self.set_aside or self.requested < candidate.least or count < candidate.width:
                continue
            try:
                images = self._computed(candidate, vectors)
            except Exception as error:
                if is_out_of_memory(error):
                    raise ResourceError(
                        f"out of memory in {self.product}", "", "give fewer samples at a time"
                    ) from None
                last = error
                self._reject(candidate, reason(error))
                continue
            if images is not None:
                self._report(candidate)
                return images
        raise self._none_left(last)

    def _none_left(self, last: Exception | None) -> JaccliError:
        if isinstance(last, JaccliError):
            return last
        error = UnsupportedError(
            f"no product {self.product}: {reason(last) if last is not None else 'no route is left'}",
            "expected a model that can be differentiated",
            worded("J itself with {method:finite-difference} needs no gradients"),
        )
        error.__cause__ = last
        return error

    def _computed(
        self, candidate: Implementation, vectors: Shaped[Tensor, "batch n k"]
    ) -> Shaped[Tensor, "batch m k"] | None:
        """The product; None where it is wrong."""
        if candidate.reference:
            return candidate.compute(vectors)
        if candidate.name in self.verified:
            images = candidate.compute(vectors)
        else:
            # The probe travels with the vectors of the call: verified is the very product that is returned.
            both = candidate.compute(torch.cat([vectors, self.probe().unsqueeze(-1)], dim=-1))
            if not self.holds(both[..., -1]):
                self._reject(candidate, f"it disagrees with {self.truth}")
                return None
            self.verified.add(candidate.name)
            images = both[..., :-1]
        if self._not_finite or _finite(images) or not _finite(vectors):
            return images
        return self._compared(candidate, images, vectors)

    def _compared(
        self, candidate: Implementation, images: Shaped[Tensor, "batch m k"], vectors: Shaped[Tensor, "batch n k"]
    ) -> Shaped[Tensor, "batch m k"]:
        """The reference's product in place of one that is not finite; where it is finite, the candidate is rejected."""
        truth = self.candidates[-1].compute(vectors)
        # J itself is not finite: later products are not compared again, each time at the cost of the reference.
        if torch.equal(truth.isfinite(), images.isfinite()):
            self._not_finite = True
        else:
            self._reject(candidate, "it gives numbers that are not finite where a backward pass gives finite ones")
        return truth

    def _reject(self, candidate: Implementation, why: str) -> None:
        self.set_aside.add(candidate.name)
        # One reason for both forms of an implementation: the batched one usually fails for the same one.
        self._unreported.setdefault(candidate.name.removesuffix(BATCHED), why)

    def _report(self, used: Implementation) -> None:
        """One note of all that was set aside since the last one."""
        if self._unreported and not self.quiet:
            reasons = "; ".join(f"{name} ({why})" for name, why in self._unreported.items())
            note(f"{self.product} is taken by {used.name}; set aside: {reasons}")
        self._unreported.clear()


def _finite(tensor: Shaped[Tensor, "*shape"]) -> bool:
    """Whether all elements are finite; a finite norm says so at once, one that overflowed does not say."""
    return bool(torch.linalg.vector_norm(tensor).isfinite()) or bool(tensor.isfinite().all())
