"""Whether a program gives the J that the engine gave: no other program runs than one that was seen to do so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.graph.program.codegen import Program
from jaccli.runtime.torch_errors import is_out_of_memory

# For short floating-point formats: an error of a program is larger.
_LOOSEST = 0.05


def gives(program: Program, tensors: Sequence[Tensor], matrix: Tensor) -> bool:
    """Whether a program gives J and its guards' values, whatever lay in its memory before.

    A view that was recorded may not exist in the strides that a pass gives to its operand; then the run fails.

    Args:
        program: with its guards.
        tensors: its inputs.
        matrix: J ``(batch, n_out, n_in)`` at these inputs.
    """
    size, device = math.prod(program.shape), matrix.device
    out = torch.empty(size, dtype=program.dtype, device=device) if program.fills_output else None
    buffers = program.buffers(device)
    for memory in (*buffers, *([] if out is None else [out])):
        if memory.is_floating_point():
            memory.fill_(math.nan)
    try:
        with torch.no_grad():
            result, *guards = program.run(tensors, out, buffers)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return alike(result, matrix) and [guard.item() for guard in guards] == program.guards


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and any shape ``(…)`` are equal up to rounding, and finite in the same places.

    Their difference is at most 64 machine epsilons of the norm of b, over all elements together.
    """
    if a.shape != b.shape:
        return False
    finite = b.isfinite()
    if not bool(finite.all()):
        if not torch.equal(a.isfinite(), finite):
            return False
        a, b = a[finite], b[finite]
    size = float(torch.linalg.vector_norm(b.double()))
    difference = float(torch.linalg.vector_norm((a - b).double()))
    return difference <= min(64 * torch.finfo(a.dtype).eps, _LOOSEST) * max(size, 1e-30)
