"""Time a list of operators, each several times, and keep the shortest time of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# In a round each operator is tried once, so that a burst of other work hits one try of many operators, not all of one.
ROUNDS = 6
# The first call of an operator compiles and allocates, so one round alone says nothing.
LEAST_ROUNDS = 2
# Additional rounds, for operators that were interrupted in each try.
MORE_ROUNDS = 6
# The most seconds of all rounds together, and of one operator; both are checked between tries.
BUDGET_S = 0.6
ALLOWANCE_S = 0.03
# The machine is busy if more than this share of the tries was interrupted (checked from this many interruptions on), or
# if more than this share of the operators was interrupted in each try.
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
        ladder: to be left out if the time of the operator before it in the list shows that it would take too long.
    """

    key: Key
    work: float
    call: Call
    repeats: int = 1
    ladder: bool = False


@dataclass
class Tries:
    """The tries of one operator.

    Attributes:
        best: seconds of a call in the fastest try.
        spent: seconds of all tries.
        count: number of tries.
        interrupted: how many of them were interrupted by other work.
    """

    best: float = float("inf")
    spent: float = 0.0
    count: int = 0
    interrupted: int = 0

    @property
    def quiet(self) -> bool:
        """Whether a try was not interrupted."""
        return self.count > self.interrupted


class Busy(RuntimeError):
    """Other work interrupted too many tries for a measurement."""


def least_seconds(probes: list[TimedOperator], wait: Callable[[], None] | None) -> dict[Key, float]:
    """Seconds of a call of each operator, from its fastest try; without operators that would take too long.

    Args:
        probes: in the order in which a round tries them.
        wait: waits until an asynchronous device has finished; None for the CPU.

    Raises:
        Busy: other work on this machine disturbed the measurement.
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
        # After the regular rounds only operators without an uninterrupted try are tried again.
        if number + 1 >= ROUNDS:
            pending = [probe for probe in pending if not tries[probe.key].quiet]
    done = {key: own for key, own in tries.items() if own.count}
    if sum(not own.quiet for own in done.values()) > BUSY * len(done):
        raise Busy
    return {key: own.best for key, own in done.items()}


def _first_round(
    probes: list[TimedOperator], tries: dict[Key, Tries], wait: Callable[[], None] | None
) -> list[TimedOperator]:
    """Try each operator, except for those that a smaller one shows to take too long; returns those tried."""
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
    """Whether an operator would take more than ``ALLOWANCE_S``, at the rate of a smaller one."""

    def predicted() -> float:
        return tries[smaller.key].best * probe.work / smaller.work

    if predicted() > ALLOWANCE_S:
        _try(smaller, tries, wait)  # a first call may be slow
    return predicted() > ALLOWANCE_S


def _try(probe: TimedOperator, tries: dict[Key, Tries], wait: Callable[[], None] | None) -> None:
    own = tries[probe.key]
    # An asynchronous device gets all calls at once, as in real use.
    calls = probe.repeats if wait is not None else 1
    before = _preemptions()
    for _ in range(probe.repeats // calls):
        start = clock()
        for _ in range(calls):
            probe.call()
        if wait is not None:
            wait()
        seconds = clock() - start
        own.best = min(own.best, seconds / calls)
        own.spent += seconds
        # The try counts as interrupted, whatever follows: the rest would only cost time.
        if _preemptions() != before:
            break
    own.count += 1
    if _preemptions() != before:
        own.interrupted += 1
        _refuse_busy(tries)


def _refuse_busy(tries: dict[Key, Tries]) -> None:
    """Give up early: on a busy machine a try may wait for the scheduler a hundred times longer than it runs."""
    interrupted = sum(own.interrupted for own in tries.values())
    if interrupted >= INTERRUPTIONS and interrupted > BUSY * sum(own.count for own in tries.values()):
        raise Busy


def _preemptions() -> int:
    """How often the scheduler took a core away from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0
