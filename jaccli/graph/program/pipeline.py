"""From a captured graph to verified programs: the passes, in the order in which they run.

    trace ─► Instructions ─► STAGES (below) ─► memory plan ─► codegen ─► verify ─► Program

Every pass is a function ``Instructions -> Instructions``. All keep the values of the results, up to rounding, and leave
alone what makes the memory of the results; ``instructions`` states the form that they rely on. What each does, and why,
and what it relies on:

    dead code      leaves out what the results do not need, and what does not depend on the inputs
    copies         takes a tensor itself for a copy, or for a view that looks the same; nothing writes into either
    column-major   stores narrow constant weights by columns: their products run up to four times as fast
    views          makes equal views once: each costs a call
    products       multiplies one operand by several weights at once: fewer calls; nothing writes into it in between
    stacking       runs equal operators on independent operands at once: fewer calls; none needs another's result

Views, products and stacking run where calls cost more than the work (``call_overhead``).

Then ``codegen`` asks ``memory_plan`` for the places of intermediate results and writes a Python function, and
``verify`` runs it at the point of the capture, in memory filled with NaN. Where it does not give J, the output of the
last stage is dropped, and the program is generated without it: a pass can cost speed, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jaccli.graph.elimination.accumulate import EliminationPlan
from jaccli.graph.program.call_overhead import calls_dominate
from jaccli.graph.program.codegen import Program, generate
from jaccli.graph.program.dead_code import remove_copies, remove_dead_code
from jaccli.graph.program.horizontal_fusion import merge_products, stack_equal_operators
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.onednn import use_onednn
from jaccli.graph.program.peephole import column_major_constants, merge_equal_views
from jaccli.graph.program.trace import trace
from jaccli.graph.program.verify import gives
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import gap_where_it_fails

Pass = Callable[[Instructions], Instructions]


@dataclass(frozen=True)
class Stage:
    """Passes that are kept or dropped together.

    Args:
        passes: by name, in order.
        pays: whether a program is worth them.
    """

    passes: tuple[tuple[str, Pass], ...]
    pays: Callable[[Instructions], bool] = lambda program: True


STAGES = (
    Stage((("dead code", remove_dead_code), ("copies", remove_copies))),
    Stage((("column-major", column_major_constants),)),
    Stage(
        (
            ("views", merge_equal_views),
            ("products", merge_products),
            ("stacking", stack_equal_operators),
            ("dead code", remove_dead_code),
        ),
        pays=calls_dominate,
    ),
)


def after_each_stage(program: Instructions) -> Iterator[Instructions]:
    """The program as each stage leaves it, where the stage does anything."""
    for stage in STAGES:
        if stage.pays(program):
            for _, run in stage.passes:
                program = run(program)
            yield program


@gap_where_it_fails()
def programs_of(graph: Graph, plan: EliminationPlan) -> tuple[list[Program], Tensor]:
    """Programs for J of a captured graph, each verified at the point of the capture.

    Args:
        graph: what was captured.
        plan: for it; it must not have run before.

    Returns:
        The program, and one with oneDNN's kernels where there is one; and J ``(batch, n_out, n_in)`` at the point.

    Raises:
        CaptureGap: the run cannot be recorded.
    """
    traced, matrix, guards = trace(graph, plan)
    stages = list(after_each_stage(traced))
    for instructions in reversed(stages):
        if (program := _verified(instructions, matrix, guards)) is not None:
            other = use_onednn(instructions)
            rival = _verified(other, matrix, guards) if other is not instructions else None
            return [program] if rival is None else [program, rival], matrix
    # The last resort: the first stage only leaves instructions out, and without a memory plan nothing is overwritten.
    program = generate(stages[0], static_memory=False)
    program.guards = guards
    return [program], matrix


def _verified(instructions: Instructions, matrix: Tensor, guards: list[Any]) -> Program | None:
    """The program, if at the point of the capture it gives J ``(batch, n_out, n_in)`` and the guards' values."""
    inputs = [variable.tensor for variable in instructions.inputs if variable.tensor is not None]
    program = generate(instructions)
    program.guards = guards
    return program if gives(program, inputs, matrix) else None
