"""Whether jaccli does the same with a part and without it: the steps of a call, and programs that it records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jaccli.graph import Program, programs_of
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.sparsity.pattern import pattern
from jaccli.run.program_runner import ProgramRunner


class _Operators(TorchDispatchMode):
    """Lists operators with the shapes and strides of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        layouts = tuple((tuple(t.shape), t.stride()) for t in tensors if t.layout is torch.strided)
        self.seen.append((str(func), layouts))
        return out


def steps(call: Callable[[], Tensor]) -> tuple[list[Any], Tensor]:
    """What a call runs, the search for a bracketing included, and what it gives."""
    searching: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            searching[name] += 1
            return function(*args, **kwargs)

        return run

    charged = patch.object(CostModel, "_bytes", counted("steps of dry runs", CostModel._bytes))
    patterns = patch("jaccli.graph.elimination.compressed.pattern", counted("patterns", pattern))
    with charged, patterns, _Operators() as mode:
        result = call()
    return [*mode.seen, *sorted(searching.items())], result


def fingerprint(program: Program) -> Any:
    """Equal for programs that do the same in the same memory: their code, and what its names stand for."""
    names = {
        name: (tuple(x.shape), x.stride(), str(x.dtype)) if isinstance(x, Tensor) else repr(x)
        for name, x in program.call.__globals__.items()
        if name not in ("program", "__builtins__")
    }
    lines = [line.strip() for line in program.source.splitlines()]
    # Variables that are dropped come in no order.
    code = [" = ".join(sorted(line.split(" = "))) if line.endswith(" = None") else line for line in lines]
    memory = program.memory_plan and (program.memory_plan.nbytes, len(program.memory_plan.donated))
    return code, names, program.fills_output, memory


@contextmanager
def recorded_programs() -> Iterator[list[Any]]:
    """In here plans take the first program that is right, by no clock; the fingerprints of all that they record."""
    found: list[Any] = []

    def seen(*args: Any, **kwargs: Any) -> tuple[list[Program], Tensor]:
        programs, matrix = programs_of(*args, **kwargs)
        found.extend(map(fingerprint, programs))
        return programs, matrix

    def untimed(runner: ProgramRunner, *_: Any) -> ProgramRunner:
        return replace(runner, seconds=1.0)

    builder, runner = "jaccli.run.program_builder.", "jaccli.run.program_runner.ProgramRunner."
    stand_ins: dict[str, Any] = {
        builder + "programs_of": seen,
        builder + "groupings": lambda _batch: [1],
        builder + "_near_the_fastest": lambda runners, _inputs: list(runners),
        builder + "ProgramBuilder._is_right_elsewhere": lambda *_: True,
        runner + "with_best_threads": untimed,
        runner + "measure": lambda *_: 1.0,
        "jaccli.run.autotune._seconds_of_method": lambda *_: math.inf,
    }
    with ExitStack() as stack:
        for target, stand_in in stand_ins.items():
            stack.enter_context(patch(target, stand_in))
        yield found
