"""Fusion: two operators in one, where the second only adds the first's result, or only puts it beside others.

``y += a b`` is one pass over y, and a result that becomes part of a larger one is
written to its place there at once. For small operators that saves calls, for large ones passes over memory.

Invariant: an operator moves to a later place only if nothing writes into its operands in between (``Uses.unwritten``),
and only if nothing but that later instruction sees its result (``Uses.only_reader``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from jaccli.graph.program.instructions import Instructions, Uses
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, name_of, operands

aten = torch.ops.aten

# Elementwise operators can write into memory with gaps, such as some columns of a matrix.
_ELEMENTWISE = frozenset([
    "mul", "add", "sub", "div", "addcmul", "addcdiv", "tanh", "sigmoid", "exp", "neg", "sin", "cos", "sqrt", "rsqrt",
])  # fmt: skip
# The position of an instruction that is no longer needed, and what takes the other's place.
_Fused = tuple[int, Instruction]


def fuse_sums(program: Instructions) -> Instructions:
    """Compute products that are only added as part of the sum."""
    uses, body = Uses(program), list[Instruction | None](program.body)
    for position, instruction in enumerate(program.body):
        if name_of(instruction) not in ("add", "add_") or instruction.kwargs or len(instruction.args) != 2:
            continue
        fused = _add_product(instruction, position, body, uses)
        if fused is not None:
            gone, body[position] = fused
            body[gone] = None
    return program.with_body(instruction for instruction in body if instruction is not None)


def _factors(instruction: Instruction | None) -> tuple[Variable, Variable] | None:
    """The factors of a product of two tensors of one dtype."""
    if instruction is None or name_of(instruction) != "mul" or instruction.kwargs or instruction.written:
        return None
    (a, b), out = instruction.args, instruction.outputs[0]
    if not isinstance(a, Variable) or not isinstance(b, Variable) or not out or not a.dtype == b.dtype == out.dtype:
        return None
    return a, b


def _add_product(
    instruction: Instruction, position: int, body: Sequence[Instruction | None], uses: Uses
) -> _Fused | None:
    """``y + a b`` as one instruction, and the position of ``a b``."""
    y, term = instruction.args
    pairs = [(y, term)] if name_of(instruction) == "add_" else [(y, term), (term, y)]
    for other, product in pairs:
        if not isinstance(product, Variable) or not isinstance(other, Variable) or product not in uses.makers:
            continue
        maker = uses.makers[product]
        factors = _factors(body[maker])
        out = instruction.outputs[0]
        fits = out is not None and other.shape == product.shape == out.shape and other.dtype == product.dtype
        if factors is None or not fits:
            continue
        if not uses.only_reader(product, position) or not uses.unwritten(factors, maker, position):
            continue
        if instruction.written and uses.root(other) in map(uses.root, factors):
            continue
        op = aten.addcmul_.default if instruction.written else aten.addcmul.default
        return maker, replace(instruction, op=op, args=(other, *factors))
    return None


def write_parts_in_place(program: Instructions) -> Instructions:
    """Write results that are concatenated straight to their places in the whole, and leave ``cat`` out."""
    uses = Uses(program)
    destinations: dict[int, Variable] = {}
    prepared: dict[int, list[Instruction]] = {}
    concatenations: set[int] = set()
    for position, instruction in enumerate(program.body):
        whole = instruction.outputs[0] if name_of(instruction) == "cat" and not instruction.kwargs else None
        if whole is None or uses.root(whole) in uses.results or not _divisible(instruction, position, program, uses):
            continue
        makers = [uses.makers[part] for part in instruction.args[0]]
        allocation, places = _places_in(whole, instruction, program.body[min(makers)])
        prepared.setdefault(min(makers), []).extend(allocation)
        destinations.update(zip(makers, places, strict=True))
        concatenations.add(position)
    body: list[Instruction] = []
    for position, instruction in enumerate(program.body):
        body.extend(prepared.get(position, ()))
        if (place := destinations.get(position)) is not None:
            kwargs = {**instruction.kwargs, "out": place}
            body.append(Instruction(instruction.op.overloadpacket.out, instruction.args, kwargs, [], False, [place]))
        elif position not in concatenations:
            body.append(instruction)
    return program.with_body(body)


def _divisible(concatenation: Instruction, position: int, program: Instructions, uses: Uses) -> bool:
    """Whether all parts are made by elementwise operators, for this concatenation alone."""
    whole, parts = concatenation.outputs[0], concatenation.args[0]
    if whole is None or whole.stride != contiguous(whole.shape) or len(set(parts)) < len(parts):
        return False
    for part in parts:
        if part not in uses.makers or part.dtype != whole.dtype or not uses.only_reader(part, position):
            return False
        maker = program.body[uses.makers[part]]
        same_dtype = any(operand.dtype == whole.dtype for operand in operands(maker))
        if name_of(maker) not in _ELEMENTWISE or maker.written or not same_dtype:
            return False
    return True


def _places_in(
    whole: Variable, concatenation: Instruction, first: Instruction
) -> tuple[list[Instruction], list[Variable]]:
    """Instructions that allocate the whole, to run before its ``first`` part, and the place of each part in it."""
    parts, dim = concatenation.args[0], concatenation.args[1] if len(concatenation.args) > 1 else 0
    dim %= len(whole.shape)
    like = next(variable for variable in operands(first) if variable.dtype == whole.dtype)
    whole.memory.written = True
    allocation = [Instruction(aten.new_empty.default, (like, list(whole.shape)), {}, [whole], False)]
    places, position = [], 0
    for part in parts:
        places.append(Variable(whole.memory, None, part.shape, whole.stride, part.dtype))
        end = position + part.shape[dim]
        allocation.append(Instruction(aten.slice.Tensor, (whole, dim, position, end), {}, [places[-1]], False))
        position = end
    return allocation, places
