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

OperatorCall = Callable[[], object]
FigureKey = tuple[str, str, float]
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

    key: FigureKey
    work: float
    call: OperatorCall
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


def least_seconds(operators: list[TimedOperator], wait: Callable[[], None] | None) -> dict[FigureKey, float]:
    """Seconds of a call of each operator, from its fastest try; without operators that would take too long.

    Args:
        operators: in the order in which a round tries them.
        wait: waits until an asynchronous device has finished; None for the CPU.

    Raises:
        Busy: other work on this machine disturbed the measurement.
    """
    start = clock()
    tries = {operator.key: Tries() for operator in operators}
    pending = list(operators)
    for number in range(ROUNDS + MORE_ROUNDS):
        if number == 0:
            pending = _first_round(operators, tries, wait)
        else:
            for operator in pending:
                if number >= LEAST_ROUNDS and clock() - start > BUDGET_S:
                    break
                _try(operator, tries, wait)
        pending = [operator for operator in pending if tries[operator.key].spent < ALLOWANCE_S]
        # After the regular rounds only operators without an uninterrupted try are tried again.
        if number + 1 >= ROUNDS:
            pending = [operator for operator in pending if not tries[operator.key].quiet]
    done = {key: tried for key, tried in tries.items() if tried.count}
    if sum(not tried.quiet for tried in done.values()) > BUSY * len(done):
        raise Busy
    return {key: tried.best for key, tried in done.items()}


def _first_round(
    operators: list[TimedOperator], tries: dict[FigureKey, Tries], wait: Callable[[], None] | None
) -> list[TimedOperator]:
    """Try each operator, except for those that a smaller one shows to take too long; returns those tried."""
    tried: list[TimedOperator] = []
    for operator in operators:
        if operator.ladder and _too_long(operator, tried[-1], tries, wait):
            continue
        _try(operator, tries, wait)
        tried.append(operator)
    return tried


def _too_long(
    operator: TimedOperator, smaller: TimedOperator, tries: dict[FigureKey, Tries], wait: Callable[[], None] | None
) -> bool:
    """Whether an operator would take more than ``ALLOWANCE_S``, at the rate of a smaller one."""

    def predicted() -> float:
        return tries[smaller.key].best * operator.work / smaller.work

    if predicted() > ALLOWANCE_S:
        _try(smaller, tries, wait)  # a first call may be slow
    return predicted() > ALLOWANCE_S


def _try(operator: TimedOperator, tries: dict[FigureKey, Tries], wait: Callable[[], None] | None) -> None:
    tries_of_operator = tries[operator.key]
    # An asynchronous device gets all calls at once, as in real use.
    calls = operator.repeats if wait is not None else 1
    before = _preemptions()
    for _ in range(operator.repeats // calls):
        start = clock()
        for _ in range(calls):
            operator.call()
        if wait is not None:
            wait()
        seconds = clock() - start
        tries_of_operator.best = min(tries_of_operator.best, seconds / calls)
        tries_of_operator.spent += seconds
        # The try counts as interrupted, whatever follows: the rest would only cost time.
        if _preemptions() != before:
            break
    tries_of_operator.count += 1
    if _preemptions() != before:
        tries_of_operator.interrupted += 1
        _refuse_busy(tries)


def _refuse_busy(tries: dict[FigureKey, Tries]) -> None:
    """Give up early: on a busy machine a try may wait for the scheduler a hundred times longer than it runs."""
    interrupted = sum(tried.interrupted for tried in tries.values())
    if interrupted >= INTERRUPTIONS and interrupted > BUSY * sum(tried.count for tried in tries.values()):
        raise Busy


def _preemptions() -> int:
    """How often the scheduler took a core away from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0
