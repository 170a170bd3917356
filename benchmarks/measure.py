"""Contenders: tuned and checked in a warm-up, then timed in rounds that take turns."""

from __future__ import annotations

import gc
import math
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from oracle import TOLERANCE, relative_error
from peers import Variant
from torch import Tensor

Kind = Literal["jaccli", "jaccli compiled", "eager", "compiled", "jax"]

HOPELESS_RATIO = 20.0
HOPELESS_S = 10.0
WARM_UP_S = 3.0  # what a first call may need on top: imports and set-up of torch.func
PEER_S = 60.0  # all variants of a peer
COMPILE_S = 240.0
SLICE_S = 0.02  # a short call is repeated within a round until it fills this


@dataclass
class Contender:
    """One way to J in the race.

    Args:
        name: of the peer.
        kind: its family.
        status: ``races``, ``slow`` (hopeless: ``warm_s`` is its one figure, a lower bound where it was cut
            short), ``wrong`` or ``failed``.
        why: what went wrong, with it or with some of its variants.
        label: the setting that won the warm-up.
        warm_s: seconds of its best call in the warm-up.
        prepare_s: seconds of planning, compilation and detection, once.
        error: largest relative Frobenius error of a sample against float64.
        times_s: seconds of a call, one for each round.
        run: samples → J.
        samples: what it is called with.
    """

    name: str
    kind: Kind
    status: Literal["races", "slow", "wrong", "failed"] = "failed"
    why: str = ""
    label: str = ""
    warm_s: float = math.inf
    prepare_s: float = 0.0
    error: float | None = None
    times_s: list[float] = field(default_factory=list)
    run: Callable[[Any], Any] | None = None
    samples: Any = None

    @property
    def median_s(self) -> float:
        """Median of the rounds; the one figure of a slow one."""
        return float(np.median(self.times_s)) if self.times_s else self.warm_s

    def call(self) -> Any:
        """J at the samples."""
        assert self.run is not None
        return self.run(self.samples)


class OutOfTimeError(Exception):
    """A trial ran past its limit."""


@contextmanager
def limit(seconds: float, raised: type[BaseException] = OutOfTimeError, of_processor: bool = False) -> Iterator[None]:
    """Raise an error inside after so much time, or time of the processor, as soon as Python has the word again."""
    number, timer = (signal.SIGPROF, signal.ITIMER_PROF) if of_processor else (signal.SIGALRM, signal.ITIMER_REAL)

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise raised(f"more than {seconds:.3g} s{' of the processor' if of_processor else ''}")

    before = signal.signal(number, ring)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


def enter(contender: Contender, variants: Iterable[Variant], truth: Tensor, best_s: float = math.inf) -> Contender:
    """Try the variants and keep the fastest that is right.

    Args:
        contender: name, kind and samples.
        variants: how it can be run.
        truth: from ``oracle``.
        best_s: the best call of its family so far: far above it a variant is cut short.
    """
    start = time.perf_counter()
    troubles: list[str] = []
    wrong = cut_short = False
    for variant, set_up_s in _set_up(variants, troubles):
        # Nothing is lost with a variant that needs twice the time of this peer's best.
        allowed = min(HOPELESS_S, HOPELESS_RATIO * best_s, 2 * contender.warm_s) + WARM_UP_S
        try:
            first, warm, error = _trial(variant, contender.samples, truth, allowed)
            if error > TOLERANCE:
                wrong = True
                raise ArithmeticError(f"wrong by {error:.1e}")
        except Exception as trouble:
            cut_short |= isinstance(trouble, OutOfTimeError)
            troubles.append(" ".join(filter(None, (variant.label, brief(trouble)))))
        else:
            if warm < contender.warm_s:
                contender.status, contender.label, contender.run = "races", variant.label, variant.run
                contender.warm_s, contender.error = warm, error
                compile_s = max(first - warm, 0.0) if variant.slow_start else 0.0
                contender.prepare_s = set_up_s + compile_s if variant.prepare_s is None else variant.prepare_s
        if time.perf_counter() - start > PEER_S:
            break
    contender.why = _together(troubles)
    if contender.status == "failed" and (wrong or cut_short):
        contender.status = "wrong" if wrong else "slow"
        contender.warm_s = math.inf if wrong else min(HOPELESS_S, HOPELESS_RATIO * best_s) + WARM_UP_S
    return contender


def _set_up(variants: Iterable[Variant], troubles: list[str]) -> Iterator[tuple[Variant, float]]:
    """Each variant with the seconds that it took to set up."""
    source = iter(variants)
    while True:
        start = time.perf_counter()
        try:
            with limit(COMPILE_S):
                variant = next(source)
        except StopIteration:
            return
        except Exception as trouble:
            troubles.append(brief(trouble))
            return
        yield variant, time.perf_counter() - start


def _trial(variant: Variant, x: Any, truth: Tensor, allowed: float) -> tuple[float, float, float]:
    """Seconds of the first call, of the best one, and the error."""
    with limit(COMPILE_S if variant.slow_start else allowed):
        start = time.perf_counter()
        matrix = variant.run(x)
        first = time.perf_counter() - start
    error = relative_error(as_tensor(matrix), truth)
    del matrix
    warm = math.inf if variant.slow_start else first
    for _ in range(3 if variant.slow_start or first < 1.0 else int(first < 2 * WARM_UP_S)):
        with limit(allowed):
            start = time.perf_counter()
            variant.run(x)
            warm = min(warm, time.perf_counter() - start)
    return first, warm, error


def as_tensor(matrix: Any) -> Tensor:
    """What a contender returned, for the check."""
    return matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix))


def brief(error: BaseException) -> str:
    """One short line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return (
        text
        if isinstance(error, (OutOfTimeError, ArithmeticError, RuntimeError))
        else f"{type(error).__name__}: {text}"
    )[:120]


def _together(troubles: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(troubles))[:400]


def drop_hopeless(contenders: Sequence[Contender]) -> None:
    """Those that would only make the rounds long keep their one figure; the best of a family always races."""
    for kind in ("eager", "compiled", "jax"):
        racing = sorted((c for c in contenders if c.kind == kind and c.status == "races"), key=lambda c: c.warm_s)
        for contender in racing[1:]:
            bound = min(HOPELESS_S, HOPELESS_RATIO * racing[0].warm_s)
            if bound < contender.warm_s < HOPELESS_S:  # a second chance: the machine may have been busy
                contender.warm_s = min(contender.warm_s, *(_timed(contender) for _ in range(2)))
            if contender.warm_s > bound:
                contender.status = "slow"


def race(contenders: Sequence[Contender], rounds: int) -> None:
    """Time all that race: in each round every one once, in an order drawn anew, without garbage collection.

    In one order, even one that rotates, each would always run after the same neighbour and what that leaves behind.
    """
    running = [c for c in contenders if c.status == "races"]
    draw = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for contender in draw.sample(running, len(running)):
                contender.times_s.append(_timed(contender))
    finally:
        gc.enable()


def _timed(contender: Contender) -> float:
    """Seconds of a call.

    A short one is repeated, after one that does not count: its neighbour leaves threads spinning and the
    caches full of something else.
    """
    repeats = int(min(max(SLICE_S / contender.warm_s, 1), 50))
    if repeats > 1:
        contender.call()
    start = time.perf_counter()
    for _ in range(repeats):
        contender.call()
    return (time.perf_counter() - start) / repeats
