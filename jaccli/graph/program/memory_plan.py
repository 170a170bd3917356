"""Places for intermediate results in one piece of memory that a plan keeps.

Large new memory is mapped by the system for each result, and every page of it costs a fault: that is a
quarter of the time of a network whose products are a few MiB. And views of what stays where it is are made
once: in a recurrence they are two calls of three. J's own memory serves large ones until J is written.
What does not live at the same time shares a place, largest first (Y. Pisarchyk and J. Lee, *Efficient
Memory Management for Deep Neural Net Inference*, 2020: greedy by size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, name_of, roots, taken

_ALIGNED = 64
# Bytes from which on a result is put into J's memory, where its views have to be made in each call.
LENT_FROM = 2**17


@dataclass(frozen=True)
class Buffer:
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
class MemoryPlan:
    """Places by the step that makes the result, and the bytes of all of them together.

    ``lent``: places in the memory that J is going to be written into, which belongs to the call.
    """

    places: dict[int, Buffer]
    nbytes: int
    lent: dict[int, Buffer] = field(default_factory=dict)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """New memory, seen as the results, in the order of the steps."""
        memory = torch.empty(self.nbytes, dtype=torch.uint8, device=device).untyped_storage()
        return [_tensor(memory, room, device) for room in self.places.values()]


def _tensor(memory: torch.UntypedStorage, room: Buffer, device: torch.device) -> Tensor:
    """A room as a tensor whose storage starts where it does: recorded steps count from there."""
    own = memory[room.start : room.start + math.prod(room.shape) * room.dtype.itemsize]
    empty: Any = torch.empty(0, dtype=room.dtype, device=device)
    tensor: Tensor = empty.set_(own, 0, room.shape, room.stride)
    return tensor


def plan_memory(
    steps: Sequence[Instruction], kept: Sequence[Variable], fits: Callable[[Instruction], bool], lending: bool = False
) -> MemoryPlan:
    """Places for the results of some steps.

    Args:
        steps: in order.
        kept: what is returned, J first, and has no room.
        fits: whether a step can put its result into a room.
        lending: whether J comes to lie in memory of its own size that is there from the start.
    """
    base = roots(steps)
    births, deaths = _lives(steps, base)
    results = [base.get(variable.memory, variable.memory) for variable in kept]
    # Their steps count from the start of a storage.
    counting = {base.get(s.memory, s.memory) for step in steps if "as_strided" in name_of(step) for s in taken(step)}
    found: dict[int, Variable] = {}
    wanted, early = [], []
    for memory, birth in births.items():
        step = steps[birth]
        out = step.outputs[0]
        if memory in results or step.many or len(step.outputs) != 1 or out is None or not fits(step):
            continue
        if math.prod(out.shape) and _dense(out):
            found[birth] = out
            life = _nbytes(out), birth, deaths[memory]
            wanted.append(life)
            if lending and life[0] >= LENT_FROM and memory not in counting and out.dtype == kept[0].dtype:
                early += [life] if deaths[memory] < births[results[0]] else []
    lent = _packed(early, _nbytes(kept[0]))
    own = _packed([life for life in wanted if life[1] not in lent])
    most = max((start + _nbytes(found[n]) for n, start in own.items()), default=0)
    return MemoryPlan(_rooms(own, found), most, _rooms(lent, found))


def _rooms(starts: dict[int, int], found: dict[int, Variable]) -> dict[int, Buffer]:
    return {n: Buffer(start, found[n].shape, found[n].stride, found[n].dtype) for n, start in sorted(starts.items())}


def _nbytes(variable: Variable) -> int:
    return math.prod(variable.shape) * variable.dtype.itemsize


def _packed(lives: Iterable[tuple[int, int, int]], limit: float = math.inf) -> dict[int, int]:
    """Starts by birth, for as many (bytes, birth, death) as fit below the limit, largest first."""
    taken: list[tuple[int, int, int, int]] = []  # start, stop, birth, death
    starts: dict[int, int] = {}
    for size, birth, death in sorted(lives, reverse=True):
        start = 0
        for low, high, first, last in sorted(taken):
            if first <= death and birth <= last:
                if start + size <= low:
                    break
                start = max(start, -(-high // _ALIGNED) * _ALIGNED)
        if start + size <= limit:
            taken.append((start, start + size, birth, death))
            starts[birth] = start
    return starts


def _lives(
    steps: Sequence[Instruction], base: dict[AliasSet, AliasSet]
) -> tuple[dict[AliasSet, int], dict[AliasSet, int]]:
    """The steps at which each memory is made and last looked at; that of views is what they are views of."""
    births: dict[AliasSet, int] = {}
    deaths: dict[AliasSet, int] = {}
    for number, step in enumerate(steps):
        before = {base.get(variable.memory, variable.memory) for variable in taken(step)}
        deaths.update(dict.fromkeys(before, number))
        for out in (out for out in step.outputs if out is not None):
            memory = base.get(out.memory, out.memory)
            if memory not in before:
                births.setdefault(memory, number)
            deaths[memory] = number
    return births, deaths


def _dense(variable: Variable) -> bool:
    """Every element once, without gaps, in whatever order."""
    step = 1
    for stride, n in sorted((s, n) for s, n in zip(variable.stride, variable.shape, strict=True) if n != 1):
        if stride != step:
            return False
        step *= n
    return True
