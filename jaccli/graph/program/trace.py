"""A program: from samples to J in one straight line of operators, with nothing of the point in it.

The engine's run at one point is recorded, on top of the captured graph; what does not hang on the inputs
is computed once, what nothing needs is left out, and the rest becomes a Python function of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.elimination.accumulate import EliminationPlan, jacobian
from jaccli.graph.program.codegen import Program, emitted
from jaccli.graph.program.fusion import fused
from jaccli.graph.program.horizontal_fusion import batched
from jaccli.graph.program.onednn import pointwise
from jaccli.graph.program.peephole import column_major_constants
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import Node, Value, gap_where_it_fails, swap
from jaccli.graph.trace.tracer import Instruction, Tracer, Variable, name_of, taken
from jaccli.linear_maps.agreement import programs_agree
from jaccli.runtime.torch_errors import is_out_of_memory


@gap_where_it_fails()
def trace(graph: Graph, plan: EliminationPlan, fusing: bool = True) -> tuple[list[Program], Tensor]:
    """Run the engine once and record it. ``plan`` must not have run before: what it keeps would be baked in.

    Args:
        graph: what was captured.
        plan: for it.
        fusing: put operators together; ``torch.compile`` does that itself, and takes no results with gaps.

    Returns:
        Programs that do the same with different kernels, and J at the point of the capture.

    Raises:
        CaptureGap: the run cannot be recorded.
    """
    tracer = Tracer()
    steps = as_steps(graph.nodes, graph.inputs, tracer)
    with torch.no_grad(), tracer:
        matrix = jacobian(plan)
    tracer.steps = [*steps, *tracer.steps]
    result = tracer.slot_of(matrix)
    guards = [(tracer.slot_of(v.tensor), read) for v, read in graph.guards]
    wanted = [result, *(variable for variable, _ in guards)]
    inputs = [tracer.slot_of(v.tensor) for v in graph.inputs]
    live, wanted = _plainer(live_steps(tracer.steps, wanted), wanted)
    return _checked(live, inputs, wanted, [matrix, *(read for _, read in guards)], fusing), matrix


def _checked(
    steps: list[Instruction], inputs: list[Variable], wanted: list[Variable], found: list[Any], fusing: bool
) -> list[Program]:
    """Programs in fewer and quicker steps, or in the steps as they were where those do not give ``found``.

    Views of other strides may not exist; and what runs is never another program than what was seen to give J.
    """
    tensors = [variable.tensor for variable in inputs if variable.tensor is not None]
    fewer = live_steps(batched(column_major_constants(steps), wanted), wanted)
    for tried in (*([live_steps(fused(fewer, wanted), wanted)] if fusing else []), fewer, steps):
        program = emitted(tried, inputs, wanted)
        if not _gives(program, tensors, found):
            continue
        others = pointwise(tried, wanted)
        other = emitted(others, inputs, wanted) if others is not None else None
        return [program, other] if other is not None and _gives(other, tensors, found) else [program]
    program = emitted(steps, inputs, wanted, housed=False)
    program.guards = found[1:]
    return [program]


def _gives(program: Program, tensors: list[Tensor], found: list[Any]) -> bool:
    """Whether it gives this J and these guards' values, whatever lay in its memory before."""
    matrix, *program.guards = found
    out = torch.empty(math.prod(program.shape), dtype=program.dtype, device=matrix.device) if program.placing else None
    places = program.furnished(matrix.device)
    for memory in (*places, *([] if out is None else [out])):
        if memory.is_floating_point():
            memory.fill_(math.nan)
    try:
        with torch.no_grad():
            got, *guards = program.run(tensors, out, places)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return programs_agree(got, matrix) and [guard.item() for guard in guards] == program.guards


def as_steps(nodes: Sequence[Node], inputs: Sequence[Value], tracer: Tracer) -> list[Instruction]:
    """Recorded nodes as steps."""
    variables: dict[Value, Variable] = {}

    def variable(value: Value) -> Variable:
        if value not in variables:
            variables[value] = tracer.adopt(value.tensor, value.varies)
        return variables[value]

    for value in inputs:
        variable(value)
    steps = []
    for node in nodes:
        returns = node.op._schema.returns
        many = len(returns) > 1 or str(returns[0].type).startswith("List")
        size = max((v.out for v in node.outputs), default=0) + 1
        by_place = {v.out: v for v in node.outputs}
        args, kwargs = swap(node.args, variable), swap(node.kwargs, variable)
        outputs = [variable(by_place[place]) if place in by_place else None for place in range(size)]
        steps.append(Instruction(node.op, args, kwargs, outputs, many, view=node.view))
    return steps


def live_steps(steps: Sequence[Instruction], wanted: Sequence[Variable]) -> list[Instruction]:
    """The steps that must run: they make, or write into, memory that varies and that the result needs."""
    needed = {s.memory for s in wanted}
    kept = []
    for step in reversed(steps):
        made = [s.memory for s in (*step.outputs, *step.written) if s is not None]
        if any(m in needed and m.varies for m in made):
            kept.append(step)
            needed.update(s.memory for s in taken(step))
    return kept[::-1]


# These hand their input on when the result lies in memory as the input does.
_HANDED_ON = frozenset(
    ["permute", "view", "expand", "reshape", "_unsafe_view", "alias", "detach", "clone", "_to_copy", "t", "transpose"]
)


def _plainer(steps: list[Instruction], wanted: list[Variable]) -> tuple[list[Instruction], list[Variable]]:
    """Without the steps that change nothing, such as a copy of what nobody writes into."""
    same: dict[Variable, Variable] = {}

    def now(variable: Variable) -> Variable:
        while variable in same:
            variable = same[variable]
        return variable

    kept = []
    for step in steps:
        name = name_of(step)
        source = step.args[0] if step.args and isinstance(step.args[0], Variable) else None
        out = step.outputs[0] if len(step.outputs) == 1 else None
        if name in _HANDED_ON and source is not None and out is not None and not step.written:
            alike = (source.shape, source.stride, source.dtype) == (out.shape, out.stride, out.dtype)
            apart = source.memory is not out.memory
            if alike and not (apart and (source.memory.written or out.memory.written or out is wanted[0])):
                same[out] = source
                continue
        kept.append(step)
    for step in kept:
        step.args, step.kwargs = swap(step.args, now, Variable), swap(step.kwargs, now, Variable)
    return kept, [now(s) for s in wanted]
