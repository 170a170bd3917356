"""A static memory plan: fixed places for intermediate results in one arena that a plan of the user's keeps.

The system maps large new memory for each result, and every page of it costs a fault: a quarter of the time of a network
whose products are a few MiB. Views of a place that never moves are made once, not in each call: in a recurrence they
are two calls of three. And J's own memory, which the caller receives, serves large results until J is written: a
donated output.

Results that do not live at the same time share a place, the largest placed first (Y. Pisarchyk and J. Lee, *Efficient
Memory Management for Deep Neural Net Inference*, 2020: greedy by size).

Invariants: buffers of results whose lives overlap do not; a result lives until the last use of any view of it; what
the program returns lies in no buffer; a result in J's memory is dead before J is begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jaccli.graph.program.instructions import Instructions, Uses
from jaccli.graph.trace.tracer import Instruction, Variable, name_of, operands

# Bytes: a cache line, and the width of the widest vector registers.
_ALIGNED = 64
# Smaller results, in bytes, are kept out of J's memory: there their views must be made in each call.
DONATED_FROM = 2**17


@dataclass(frozen=True)
class Buffer:
    """The place of one result.

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
    """Buffers by the position of the instruction that writes them.

    Args:
        buffers: in the arena, which is kept between calls.
        nbytes: size of the arena.
        donated: in the memory of J, which is new in each call.
    """

    buffers: dict[int, Buffer]
    nbytes: int
    donated: dict[int, Buffer]

    def allocate(self, device: torch.device) -> list[Tensor]:
        """A new arena, as the uninitialised tensors that lie in it, in the order and of the shapes of ``buffers``."""
        arena = torch.empty(self.nbytes, dtype=torch.uint8, device=device).untyped_storage()
        return [_tensor(arena, buffer, device) for buffer in self.buffers.values()]


def _tensor(arena: torch.UntypedStorage, buffer: Buffer, device: torch.device) -> Tensor:
    """A buffer as a tensor of its shape, whose storage starts with it: ``as_strided`` counts from that start."""
    memory = arena[buffer.start : buffer.start + math.prod(buffer.shape) * buffer.dtype.itemsize]
    empty: Any = torch.empty(0, dtype=buffer.dtype, device=device)
    tensor: Tensor = empty.set_(memory, 0, buffer.shape, buffer.stride)
    return tensor


class _Life(NamedTuple):
    """The size of a result in bytes, and the positions at which its memory is made and used for the last time."""

    nbytes: int
    birth: int
    death: int


def plan_memory(program: Instructions, has_out: Callable[[Instruction], bool], donate: bool) -> MemoryPlan:
    """Place the results of a program.

    Args:
        program: its results are left where they are.
        has_out: whether an instruction can write its result to a given place.
        donate: whether J is written into memory of its own size that exists from the start.
    """
    uses, body, j = Uses(program), program.body, program.results[0]
    # ``as_strided`` counts from the start of a storage, where its operand must begin: no place inside J's memory.
    by_storage = {uses.root(v) for step in body if "as_strided" in name_of(step) for v in operands(step)}
    variables: dict[int, Variable] = {}
    lives, donated = [], []
    for memory, birth in uses.births.items():
        outputs = body[birth].outputs
        out = outputs[0] if len(outputs) == 1 and not body[birth].many else None
        # Not what is returned: the caller keeps it, and the next call would write over it.
        if memory in uses.results or out is None or not has_out(body[birth]) or not _is_dense(out):
            continue
        variables[birth] = out
        lives.append(life := _Life(_nbytes(out), birth, uses.last(memory)))
        large = life.nbytes >= DONATED_FROM and memory not in by_storage and out.dtype == j.dtype
        # Dead before J is begun, and not only before it is finished: J's maker reads its operands while it writes.
        if donate and large and life.death < uses.births[uses.root(j)]:
            donated.append(life)

    def buffers(starts: dict[int, int]) -> dict[int, Buffer]:
        at = ((n, start, variables[n]) for n, start in sorted(starts.items()))
        return {n: Buffer(start, v.shape, v.stride, v.dtype) for n, start, v in at}

    in_output = _pack(donated, limit=_nbytes(j))
    in_arena = _pack(life for life in lives if life.birth not in in_output)
    nbytes = max((start + _nbytes(variables[n]) for n, start in in_arena.items()), default=0)
    return MemoryPlan(buffers(in_arena), nbytes, buffers(in_output))


def _nbytes(variable: Variable) -> int:
    return math.prod(variable.shape) * variable.dtype.itemsize


def _pack(lives: Iterable[_Life], limit: float = math.inf) -> dict[int, int]:
    """Starts in bytes, by birth, of as many results as fit below the limit, the largest first."""
    placed: list[tuple[int, int, _Life]] = []  # start, stop
    starts: dict[int, int] = {}
    for life in sorted(lives, reverse=True):
        start = 0
        # First fit: the lowest gap between those that live at the same time.
        for low, high, other in sorted(placed):
            if other.birth <= life.death and life.birth <= other.death:
                if start + life.nbytes <= low:
                    break
                start = max(start, -(-high // _ALIGNED) * _ALIGNED)
        if start + life.nbytes <= limit:
            placed.append((start, start + life.nbytes, life))
            starts[life.birth] = start
    return starts


def _is_dense(variable: Variable) -> bool:
    """Whether it has elements, each once, without gaps, in whatever order."""
    step = 1
    for stride, n in sorted((s, n) for s, n in zip(variable.stride, variable.shape, strict=True) if n != 1):
        if stride != step:
            return False
        step *= n
    return math.prod(variable.shape) > 0
