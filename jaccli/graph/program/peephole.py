"""Local rewrites: column-major constants, common views, and sums in an order that lets products come early."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace

import torch

from jaccli.graph.program import call_overhead
from jaccli.graph.program.instructions import (
    PRODUCTS,
    Instructions,
    Uses,
    fixed,
    new_constant,
    new_variable,
    with_operands,
)
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, made_by, name_of, operands

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
            source, *rest = instruction.args
            key = (id(source), name_of(instruction), repr(rest), repr(instruction.kwargs))
            if key in views:
                same[out] = views[key]
                continue
            views[key] = out
        body.append(instruction)
    return program.with_body(body)


def reassociate_sums(program: Instructions) -> Instructions:
    """Compute ``u + (b + x W)`` as ``(u + b) + x W``, where u and the constant b are known before x.

    In a recurrence x is the state: what does not need it leaves the chain of steps, and can be merged.
    """
    uses, depths, made = Uses(program), _depths(program), made_by(program.body)
    sums: dict[int, tuple[Instruction, Variable]] = {}
    for position, instruction in enumerate(program.body):
        terms = _product_in_sum(instruction, program, uses, depths, made)
        if terms is not None:
            sums[position] = terms
    if len(sums) < call_overhead.FEWEST:
        return program
    products = {product for product, _ in sums.values()}
    body: list[Instruction] = []
    for position, instruction in enumerate(program.body):
        if position in sums:
            product, other = sums[position]
            bias, x, weight = product.args
            early = new_variable(other.shape, other.dtype)
            body.append(Instruction(aten.add.Tensor, (other, bias), {}, [early], False))
            body.append(Instruction(aten.addmm.default, (early, x, weight), product.kwargs, instruction.outputs, False))
        elif instruction not in products:
            body.append(instruction)
    return program.with_body(body)


def _product_in_sum(
    instruction: Instruction, program: Instructions, uses: Uses, depths: dict[Variable, int], made: set[Variable]
) -> tuple[Instruction, Variable] | None:
    """For a sum: its term that is an ``addmm``, whose result nothing else takes, and its other term, known earlier."""
    if name_of(instruction) != "add" or instruction.written or instruction.kwargs or len(instruction.args) != 2:
        return None
    out = instruction.outputs[0]
    for product, other in (instruction.args, instruction.args[::-1]):
        if not isinstance(product, Variable) or not isinstance(other, Variable) or not out:
            continue
        if product not in uses.makers:
            continue
        maker = program.body[uses.makers[product]]
        fits = other.shape == product.shape == out.shape and other.dtype == product.dtype == out.dtype
        alone = len(uses.readers[product]) == 1 and not product.memory.written
        small = math.prod(out.shape) <= call_overhead.LARGEST
        if name_of(maker) != "addmm" or maker.kwargs or not (fits and alone and small):
            continue
        if maker.args[0] not in made and depths.get(other, 0) < depths[product]:
            return maker, other
    return None


def _depths(program: Instructions) -> dict[Variable, int]:
    """The length of the longest chain of instructions, each needing the one before, that leads to each variable."""
    depths: dict[Variable, int] = {}
    for instruction in program.body:
        depth = 1 + max((depths.get(variable, 0) for variable in operands(instruction)), default=0)
        depths.update({out: depth for out in instruction.outputs if out is not None})
    return depths
