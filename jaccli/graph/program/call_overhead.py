"""When the calls of operators cost more than their work: limits shared by the passes that make fewer calls."""

from __future__ import annotations

import math

from jaccli.graph.program.instructions import Instructions
from jaccli.graph.trace.tracer import is_view

# An operator on more elements than this is worth a call of its own.
LARGEST = 2**15
# Where results have more elements on average, calls cost little, and another order would keep more of them at a time.
AVERAGE = 2**14
# Fewer instructions of a kind are not worth merging.
FEWEST = 3
# Longer programs are left alone: looking for independent instructions would take seconds.
LONGEST = 4000


def calls_dominate(program: Instructions) -> bool:
    """Whether results are small on average, and the program is neither too short nor too long to merge its calls."""
    sizes = [
        math.prod(out.shape)
        for instruction in program.body
        if not is_view(instruction)
        for out in instruction.outputs
        if out is not None
    ]
    return FEWEST < len(program.body) <= LONGEST and sum(sizes) <= AVERAGE * len(sizes)
