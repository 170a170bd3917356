"""A program through ``torch.compile``."""

from __future__ import annotations

import linecache
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.program.codegen import SOURCE, Program
from jaccli.runtime.torch_errors import is_out_of_memory


class CompileGap(Exception):
    """The program could not be compiled; the message says why."""


@dataclass(frozen=True)
class CompiledProgram:
    """What came of it.

    Args:
        call: takes and gives what ``Program.call`` does.
        seconds: of compiling, the first call included.
    """

    call: Callable[..., tuple[Tensor, ...]]
    seconds: float


def compiled(program: Program, tensors: Sequence[Tensor], alike: Callable[[Tensor, Tensor], bool]) -> CompiledProgram:
    """Compile for inputs like these, and hold the result against the program's own.

    Args:
        program: what to compile.
        tensors: the inputs.
        alike: whether two J are equal up to rounding.

    Cost: seconds, of which one or two are the import of the compiler in a process's first call.

    Raises:
        CompileGap: there is no compiler, it fails, or it gives something else.
    """
    start = time.perf_counter()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Of a function without a source torch 2.11 compiles a wrapper, one for all, and that eight times at most.
        linecache.cache[SOURCE] = (len(program.source), None, program.source.splitlines(keepends=True), SOURCE)
        try:
            call: Any = torch.compile(program.call, fullgraph=True, dynamic=False)
            got = call(*tensors, _room(program, tensors[0]))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise CompileGap(_first_line(error)) from None
        seconds = time.perf_counter() - start
        want = program.run(tensors, _room(program, tensors[0]), program.furnished(tensors[0].device))
    if not alike(got[0], want[0]) or any(a.item() != b.item() for a, b in zip(got[1:], want[1:], strict=True)):
        raise CompileGap("the compiled program gives another J")
    return CompiledProgram(call, seconds)


def _room(program: Program, like: Tensor) -> Tensor | None:
    if not program.placing:
        return None
    return torch.empty(torch.Size(program.shape).numel(), dtype=program.dtype, device=like.device)


def _first_line(error: Exception) -> str:
    """The cause in a few words: the compiler's own messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A first line that ends in a colon only announces the cause.
    cause = next((line for line in lines if not line.endswith(":")), "")
    return f"{type(error).__name__}: {cause[:160]}" if cause else type(error).__name__
