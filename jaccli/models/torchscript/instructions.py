"""Instructions of a compiled function: each reads some slots of a frame and writes others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CallFrame = list[Any]
"""The values of one call of a function. Slot 0 holds the ``ScriptRun``, the next ones the arguments."""
FrameInstruction = Callable[[CallFrame], None]


def apply(function: Callable[..., Any], ins: list[int], outs: list[int]) -> FrameInstruction:
    """Call ``function`` on some slots and put what it returns into others: one value into one, a tuple into several."""
    if len(outs) != 1:
        return spread(function, ins, outs)
    (out,) = outs
    if len(ins) == 1:
        (a,) = ins

        def one(frame: CallFrame) -> None:
            frame[out] = function(frame[a])

        return one
    if len(ins) == 2:
        a, b = ins

        def two(frame: CallFrame) -> None:
            frame[out] = function(frame[a], frame[b])

        return two

    def some(frame: CallFrame) -> None:
        frame[out] = function(*[frame[i] for i in ins])

    return some


def spread(function: Callable[..., Any], ins: list[int], outs: list[int]) -> FrameInstruction:
    """Call ``function`` on some slots and put the items of what it returns into others."""

    def many(frame: CallFrame) -> None:
        results = function(*[frame[i] for i in ins])
        for out, result in zip(outs, results if outs else (), strict=True):
            frame[out] = result

    return many


def drawing(instruction: FrameInstruction, switch: int | None) -> FrameInstruction:
    """An instruction that draws random numbers where the slot ``switch`` is true (always, if None)."""

    def draw(frame: CallFrame) -> None:
        if switch is None or frame[switch]:
            frame[0].remember_random()
        instruction(frame)

    return draw


def release(slots: list[int]) -> FrameInstruction:
    """Let go of values that nobody reads any more."""

    def clear(frame: CallFrame) -> None:
        for slot in slots:
            frame[slot] = None

    return clear
