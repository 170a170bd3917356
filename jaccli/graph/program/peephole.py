"""Local rewrites: column-major constants, and each view made once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch

from jaccli.graph.program.instructions import PRODUCTS, Instructions, fixed, new_constant, with_operands
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, name_of

aten = torch.ops.aten

# Columns of a matrix that a vector unit takes at once, about.
NARROW = 16
_VIEWS = frozenset(["view", "_unsafe_view", "permute", "select", "slice", "unsqueeze", "expand", "t", "transpose"])


def column_major_constants(program: Instructions) -> Instructions:
    """Store constant weights ``(n, m)`` of few columns m column by column.

    Matrix products with fewer columns than a vector unit is wide take up to four times as long otherwise.
    """
    turned: dict[Variable, Variable] = {}
    body = []
    for instruction in program.body:
        position = PRODUCTS.get(name_of(instruction), -1) + 1
        weight = instruction.args[position] if position else None
        if isinstance(weight, Variable) and fixed(weight) and _is_narrow(weight):
            if weight not in turned:
                assert weight.tensor is not None
                turned[weight] = new_constant(weight.tensor.t().contiguous().t())
            args = (*instruction.args[:position], turned[weight], *instruction.args[position + 1 :])
            instruction = replace(instruction, args=args)
        body.append(instruction)
    return program.with_body(body)


def _is_narrow(weight: Variable) -> bool:
    return weight.shape[1] < NARROW and weight.stride == contiguous(weight.shape)


def merge_equal_views(program: Instructions) -> Instructions:
    """Make each view once: common subexpressions, among views only."""
    same: dict[Variable, Variable] = {}
    views: dict[Hashable, Variable] = {}
    body: list[Instruction] = []
    for instruction in program.body:
        instruction = with_operands(instruction, lambda variable: same.get(variable, variable))
        out = instruction.outputs[0] if len(instruction.outputs) == 1 else None
        if name_of(instruction) in _VIEWS and out and not instruction.written and out not in program.results:
            # By ``id``: after the line above, equal operands are one variable. A write into the memory does not matter:
            # a view sees it, whenever it is made.
            source, *rest = instruction.args
            key = (id(source), name_of(instruction), repr(rest), repr(instruction.kwargs))
            if key in views:
                same[out] = views[key]
                continue
            views[key] = out
        body.append(instruction)
    return program.with_body(body)
