"""A program through ``torch.compile``, for those who ask for it."""

from __future__ import annotations

import linecache
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.program.codegen import SOURCE, Program
from jaccli.linear_maps.agreement import programs_agree
from jaccli.runtime.torch_errors import reraise_out_of_memory


class CompileGap(Exception):
    """The program could not be compiled; the message says why."""


def compiled(program: Program, tensors: Sequence[Tensor]) -> tuple[Program, float]:
    """Compile for inputs like these, and compare the result with the program's own.

    Args:
        program: what to compile.
        tensors: the inputs, of the same shapes at which the program was recorded.

    Returns:
        The program with a compiled ``call`` and without a memory plan; and the seconds that it took, the first call
        included, of which one or two are the import of the compiler in a process's first call.

    Raises:
        CompileGap: there is no compiler, it fails, or the compiled program gives another J.
    """
    start = time.perf_counter()
    device = tensors[0].device
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler: about its own settings, and not about the model
        # Of a function without a source torch 2.11 compiles a wrapper, one for all, and that eight times at most.
        linecache.cache[SOURCE] = (len(program.source), None, program.source.splitlines(keepends=True), SOURCE)
        try:
            call: Any = torch.compile(program.call, fullgraph=True, dynamic=False)
            result, *guards = call(*tensors, program.output(device))
        except Exception as error:
            reraise_out_of_memory(error)
            raise CompileGap(_first_line(error)) from None
        seconds = time.perf_counter() - start
        expected, *values = program.run(tensors, program.output(device), program.buffers(device))
    if not programs_agree(result, expected) or any(a.item() != b.item() for a, b in zip(guards, values, strict=True)):
        raise CompileGap("the compiled program gives another J")
    return replace(program, call=call, planned_call=None, memory_plan=None, views=None), seconds


def _first_line(error: Exception) -> str:
    """The cause in a few words: the compiler's own messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A first line that ends in a colon only announces the cause.
    cause = next((line for line in lines if not line.endswith(":")), "")
    return f"{type(error).__name__}: {cause[:160]}" if cause else type(error).__name__
