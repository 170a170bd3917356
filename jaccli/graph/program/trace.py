"""A run of the engine, recorded as instructions: from samples to J in a straight line, with nothing of the point in it.

The elimination of a captured graph runs once, at the point of the capture, and every operator that it calls is
recorded behind those of the graph itself. What a branch of the model was chosen by becomes a guard: a further result,
which every later call compares with what was read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.elimination.accumulate import EliminationPlan, jacobian
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import Node, Value, gap_where_it_fails, swap
from jaccli.graph.trace.tracer import Instruction, Tracer, Variable


@gap_where_it_fails()
def trace(graph: Graph, plan: EliminationPlan) -> tuple[Instructions, Tensor, list[Any]]:
    """Run the engine once and record it. Cost: J by the engine, and some 20 µs an operator.

    Args:
        graph: what was captured.
        plan: for it. It must not have run before: what it keeps would be baked in as constants.

    Returns:
        The instructions, J ``(batch, n_out, n_in)`` at the point of the capture, and what the guards read there.

    Raises:
        CaptureGap: the run cannot be recorded.
    """
    # One tracer for both: the engine's run reads tensors of the capture, which must be the variables made for these.
    tracer = Tracer()
    captured = as_instructions(graph.nodes, graph.inputs, tracer)
    with torch.no_grad(), tracer:
        matrix = jacobian(plan)
    results = [tracer.variable_of(tensor) for tensor in (matrix, *(value.tensor for value, _ in graph.guards))]
    inputs = [tracer.variable_of(value.tensor) for value in graph.inputs]
    return Instructions([*captured, *tracer.instructions], inputs, results), matrix, [read for _, read in graph.guards]


def as_instructions(nodes: Sequence[Node], inputs: Sequence[Value], tracer: Tracer) -> list[Instruction]:
    """Recorded nodes as instructions, on the variables of a tracer, which can go on from there."""
    adopted: dict[Value, Variable] = {}

    def variable(value: Value) -> Variable:
        if value not in adopted:
            adopted[value] = tracer.adopt(value.tensor, value.varies)
        return adopted[value]

    # Inputs first: they are variables of the program even where no node reads them.
    for value in inputs:
        variable(value)
    instructions = []
    for node in nodes:
        returns = node.op._schema.returns
        many = len(returns) > 1 or str(returns[0].type).startswith("List")
        # A node lists the outputs that something reads; an operator's call gives all of them, by position.
        by_number = {value.out: value for value in node.outputs}
        args, kwargs = swap(node.args, variable), swap(node.kwargs, variable)
        count = max(by_number, default=0) + 1
        outputs = [variable(by_number[out]) if out in by_number else None for out in range(count)]
        instructions.append(Instruction(node.op, args, kwargs, outputs, many, view=node.view))
    return instructions
