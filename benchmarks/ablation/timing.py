"""Two calls in turns, in one process."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

SIDE_S = 0.2  # each side of a pair is timed for so long at least,
SLICE_S = 0.01  # in slices of this,
PAIR_S = 8.0  # and a pair for so long at most, after three rounds
TRIES_S = 2.0  # what is tried several times is not begun again after this

Off = Callable[[], AbstractContextManager[None]]


class OutOfTime(BaseException):
    """A switch took too long. No ``Exception``: where a program fails with one, jaccli goes on without."""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call gave."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def least(call: Callable[[], Any], tries: int) -> tuple[float, Any]:
    """The fewest seconds of some tries, fewer where they are long, and what that one gave."""
    best, spent = timed(call), 0.0
    for _ in range(1, tries):
        spent += best[0]
        if spent > TRIES_S:
            break
        best = min(best, timed(call), key=lambda pair: pair[0])
    return best


def in_turns(call: Callable[[], Any], other: Callable[[], Any], off: Off, rounds: int) -> dict[str, float]:
    """Seconds of a call, and of another with a part left out: medians of rounds, and that of the rounds' ratios."""
    sides: list[tuple[Callable[[], Any], Off]] = [(call, nullcontext), (other, off)]
    repeats, draw = [_repeats(*side) for side in sides], random.Random(0)
    times: list[list[float]] = [[], []]
    start = time.perf_counter()
    while len(times[0]) < 3 or (time.perf_counter() - start < PAIR_S and not _enough(times, repeats, rounds)):
        for number in draw.sample((0, 1), 2):
            run, around = sides[number]
            with around():
                seconds, _ = timed(lambda: [run() for _ in range(repeats[number])])  # noqa: B023
            times[number].append(seconds / repeats[number])
    ratios = [without / with_it for with_it, without in zip(*times, strict=True)]
    with_s, without_s = map(statistics.median, times)
    return {"with_s": with_s, "without_s": without_s, "ratio": statistics.median(ratios), "rounds": len(ratios)}


def _repeats(run: Callable[[], Any], around: Off) -> int:
    """How often a call is repeated in a round."""
    with around():
        quickest = min(timed(run)[0] for _ in range(2))
    return max(1, int(SLICE_S / max(quickest, 1e-6)))


def _enough(times: Sequence[list[float]], repeats: Sequence[int], rounds: int) -> bool:
    return len(times[0]) >= rounds and all(sum(t) * n >= SIDE_S for t, n in zip(times, repeats, strict=True))
