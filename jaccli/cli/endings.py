"""Commands that are stopped early: by ``--timeout``, and a training by Ctrl-C, which keeps the best parameters."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from jaccli.cli.messages import STARTED
from jaccli.cli.run_request import BlocksRequest
from jaccli.errors import ResourceError, TimeIsUp
from jaccli.safety.memory import limited_memory

# Seconds that a step of a training may still take after the alarm.
STEP_GRACE_S = 3.0


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """``--timeout``: leave the block when the time is over, counted from the start of the process.

    Python sees the alarm between two torch operators: one that is running ends first. Passes are cut
    into chunks of some ten MiB, so that is a matter of milliseconds, save for a model's own huge operator.

    Raises:
        ResourceError: it is over.
    """
    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: object) -> None:
        raise TimeIsUp

    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds - (time.perf_counter() - STARTED), 1e-3))
    try:
        yield
    except TimeIsUp:
        raise ResourceError(
            f"not done within {seconds:g} s (--timeout)", "", "allow more time, or take fewer --samples"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def limits(how: BlocksRequest) -> Iterator[None]:
    """``--timeout``, and ``--max-memory`` for what files unfold to."""
    with deadline(how.timeout), limited_memory(how.max_memory):
        yield


@contextlib.contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C and the alarm of ``deadline`` wait for the end of a step. The function yielded is called there.

    An exception within a pass could leave the network in a mixed state, and work goes on with it. A second Ctrl-C, or a
    step that takes ``STEP_GRACE_S`` longer, ends the step at once.
    """
    numbers = [signal.SIGINT, *([signal.SIGALRM] if hasattr(signal, "setitimer") else [])]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    pending: list[int] = []

    def postpone(number: int, _: object) -> None:
        pending.append(number)
        # The usual handler from now on: it ends the step at once.
        signal.signal(number, before[signal.Signals(number)])
        if number != signal.SIGINT:
            signal.setitimer(signal.ITIMER_REAL, STEP_GRACE_S)

    def stop_if_asked() -> None:
        for number in pending[:1]:
            raise KeyboardInterrupt if number == signal.SIGINT else TimeIsUp

    replaced = [number for number, handler in before.items() if callable(handler)]  # neither ignored nor the system's
    for number in replaced:
        signal.signal(number, postpone)
    try:
        yield stop_if_asked
    finally:
        for number in replaced:
            signal.signal(number, before[number])
