"""Whether a program gives the J that the engine gave: no other program runs than one that was seen to do so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.graph.program.codegen import Program
from jaccli.linear_maps.agreement import programs_agree
from jaccli.runtime.torch_errors import reraise_out_of_memory


def gives(program: Program, tensors: Sequence[Tensor], matrix: Tensor) -> bool:
    """Whether a program gives J and its guards' values, whatever lay in its memory before.

    A view that was recorded may not exist in the strides that a pass gives to its operand; then the run fails.

    Args:
        program: with its guards.
        tensors: its inputs.
        matrix: J ``(batch, n_out, n_in)`` at these inputs.
    """
    out, buffers = program.output(matrix.device), program.buffers(matrix.device)
    # What reads memory before it is written gives NaN then, and not by chance what an earlier run left there.
    for memory in (*buffers, *([] if out is None else [out])):
        if memory.is_floating_point():
            memory.fill_(math.nan)
    try:
        with torch.no_grad():
            result, *guards = program.run(tensors, out, buffers)
    # A strided view that does not exist is a RuntimeError; an ``out=`` that an overload does not take, a TypeError.
    except (RuntimeError, TypeError) as error:
        reraise_out_of_memory(error)
        return False
    return programs_agree(result, matrix) and [guard.item() for guard in guards] == program.guards
