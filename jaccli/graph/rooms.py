"""Places for intermediate results in one piece of memory that a plan keeps.

Large new memory is mapped by the system for each result, and every page of it costs a fault: that is a
quarter of the time of a network whose products are a few MiB. And views of what stays where it is are made
once: in a recurrence they are two calls of three. What does not live at the same time shares
a place, largest first (Y. Pisarchyk and J. Lee, *Efficient Memory Management for Deep Neural Net
Inference*, 2020: greedy by size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.tracer import Memory, Slot, Step, is_view, taken

_ALIGNED = 64


@dataclass(frozen=True)
class Room:
    """The place of one step's result.

    Args:
        start: in bytes.
        shape: of the result; likewise ``stride`` and ``dtype``.
    """

    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Rooms:
    """Places by the step that makes the result, and the bytes of all of them together."""

    places: dict[int, Room]
    nbytes: int

    def tensors(self, device: torch.device) -> list[Tensor]:
        """New memory, seen as the results, in the order of the steps."""
        memory = torch.empty(self.nbytes, dtype=torch.uint8, device=device).untyped_storage()
        return [_tensor(memory, room, device) for room in self.places.values()]


def _tensor(memory: torch.UntypedStorage, room: Room, device: torch.device) -> Tensor:
    """A room as a tensor whose storage starts where it does: recorded steps count from there."""
    own = memory[room.start : room.start + math.prod(room.shape) * room.dtype.itemsize]
    empty: Any = torch.empty(0, dtype=room.dtype, device=device)
    tensor: Tensor = empty.set_(own, 0, room.shape, room.stride)
    return tensor


def rooms(steps: Sequence[Step], kept: Sequence[Slot], fits: Callable[[Step], bool]) -> Rooms:
    """Places for the results of the steps that ``fits`` allows; not for those that are ``kept``."""
    births, deaths, roots = _lives(steps)
    results = {roots.get(slot.memory, slot.memory) for slot in kept}
    wanted: list[tuple[int, int, int]] = []  # bytes, birth, death
    for memory, birth in births.items():
        step = steps[birth]
        out = step.outputs[0]
        if memory in results or step.many or len(step.outputs) != 1 or out is None or not fits(step):
            continue
        size = math.prod(out.shape) * out.dtype.itemsize
        if size and _dense(out):
            wanted.append((size, birth, deaths[memory]))
    taken: list[tuple[int, int, int, int]] = []  # start, stop, birth, death
    places: dict[int, Room] = {}
    for size, birth, death in sorted(wanted, reverse=True):
        start = 0
        for low, high, first, last in sorted(taken):
            if first <= death and birth <= last:
                if start + size <= low:
                    break
                start = max(start, -(-high // _ALIGNED) * _ALIGNED)
        taken.append((start, start + size, birth, death))
        out = steps[birth].outputs[0]
        assert out is not None
        places[birth] = Room(start, out.shape, out.stride, out.dtype)
    return Rooms(dict(sorted(places.items())), max((stop for _, stop, _, _ in taken), default=0))


def _lives(steps: Sequence[Step]) -> tuple[dict[Memory, int], dict[Memory, int], dict[Memory, Memory]]:
    """The steps at which each memory is made and last looked at, and whose memory that of views is."""
    births: dict[Memory, int] = {}
    deaths: dict[Memory, int] = {}
    roots: dict[Memory, Memory] = {}
    for number, step in enumerate(steps):
        before = {roots.get(slot.memory, slot.memory) for slot in taken(step)}
        deaths.update(dict.fromkeys(before, number))
        for out in (out for out in step.outputs if out is not None):
            if is_view(step):
                base = taken(step)[0].memory
                roots[out.memory] = roots.get(base, base)
            memory = roots.get(out.memory, out.memory)
            if memory not in before:
                births.setdefault(memory, number)
            deaths[memory] = number
    return births, deaths, roots


def _dense(slot: Slot) -> bool:
    """Every element once, without gaps, in whatever order."""
    step = 1
    for stride, n in sorted((s, n) for s, n in zip(slot.stride, slot.shape, strict=True) if n != 1):
        if stride != step:
            return False
        step *= n
    return True
