"""Time a list of operators, each a few times, and keep the least."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Tries are spread over rounds: a burst of other work hits one try of many operators, not all of one.
ROUNDS = 6
# The first call of an operator compiles and allocates, so one round alone says nothing.
LEAST_ROUNDS = 2
# So many more rounds for what was interrupted each time.
MORE_ROUNDS = 6
# Seconds: of all rounds together, and of one operator, both looked at between tries.
BUDGET_S = 0.6
ALLOWANCE_S = 0.03
# The machine is busy when more than this share was interrupted: of the tries, once there were this many
# interruptions, or of the operators that no try got through.
BUSY = 0.2
INTERRUPTIONS = 15

Call = Callable[[], object]
Key = tuple[str, str, float]
clock = time.perf_counter


@dataclass(frozen=True)
class TimedOperator:
    """One operator to time.

    Attributes:
        key: the figure it gives: field of ``Calibration``, row, size.
        work: operations, bytes or elements of one call.
        call: the operator.
        repeats: calls of one try.
        ladder: left out when the probe before it in the list says that it would take too long.
    """

    key: Key
    work: float
    call: Call
    repeats: int = 1
    ladder: bool = False


@dataclass
class Tries:
    """What the tries of one probe came to: seconds a call at best, seconds spent, tries interrupted."""

    best: float = float("inf")
    spent: float = 0.0
    made: int = 0
    interrupted: int = 0

    @property
    def quiet(self) -> bool:
        """Whether one try went through without other work in between."""
        return self.made > self.interrupted


class Busy(RuntimeError):
    """Other work interrupted so many tries that nothing can be said."""


def least_seconds(probes: list[TimedOperator], wait: Callable[[], None] | None) -> dict[Key, float]:
    """Seconds a call of each probe, the least of its tries; without those that promise to take too long.

    Args:
        probes: in the order of the rounds.
        wait: until an asynchronous device has done what it was given; None for the CPU.

    Raises:
        Busy: other work on this machine got in the way.
    """
    start = clock()
    tries = {probe.key: Tries() for probe in probes}
    pending = list(probes)
    for number in range(ROUNDS + MORE_ROUNDS):
        if number == 0:
            pending = _first_round(probes, tries, wait)
        else:
            for probe in pending:
                if number >= LEAST_ROUNDS and clock() - start > BUDGET_S:
                    break
                _try(probe, tries, wait)
        pending = [probe for probe in pending if tries[probe.key].spent < ALLOWANCE_S]
        if number + 1 >= ROUNDS:
            pending = [probe for probe in pending if not tries[probe.key].quiet]
    done = {key: made for key, made in tries.items() if made.made}
    if sum(not made.quiet for made in done.values()) > BUSY * len(done):
        raise Busy
    return {key: made.best for key, made in done.items()}


def _first_round(
    probes: list[TimedOperator], tries: dict[Key, Tries], wait: Callable[[], None] | None
) -> list[TimedOperator]:
    """Try each but those whose smaller relative says that they take too long; the ones tried."""
    tried: list[TimedOperator] = []
    for probe in probes:
        if probe.ladder and _too_long(probe, tried[-1], tries, wait):
            continue
        _try(probe, tries, wait)
        tried.append(probe)
    return tried


def _too_long(
    probe: TimedOperator, smaller: TimedOperator, tries: dict[Key, Tries], wait: Callable[[], None] | None
) -> bool:
    """Whether a probe would take more than its allowance, at the rate of a smaller one."""

    def promised() -> float:
        return tries[smaller.key].best * probe.work / smaller.work

    if promised() > ALLOWANCE_S:
        _try(smaller, tries, wait)  # the first may have been slow by what only a first call does
    return promised() > ALLOWANCE_S


def _try(probe: TimedOperator, tries: dict[Key, Tries], wait: Callable[[], None] | None) -> None:
    made = tries[probe.key]
    # An asynchronous device is given all calls at once, as it is in real work.
    calls = probe.repeats if wait is not None else 1
    before = _preemptions()
    for _ in range(probe.repeats // calls):
        start = clock()
        for _ in range(calls):
            probe.call()
        if wait is not None:
            wait()
        seconds = clock() - start
        made.best = min(made.best, seconds / calls)
        made.spent += seconds
        if _preemptions() != before:
            break
    made.made += 1
    if _preemptions() != before:
        made.interrupted += 1
        _refuse_busy(tries)


def _refuse_busy(tries: dict[Key, Tries]) -> None:
    """Give up early: on a busy machine each try may wait for the scheduler, a hundred times its own time."""
    interrupted = sum(made.interrupted for made in tries.values())
    if interrupted >= INTERRUPTIONS and interrupted > BUSY * sum(made.made for made in tries.values()):
        raise Busy


def _preemptions() -> int:
    """How often the scheduler took a core away from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0
