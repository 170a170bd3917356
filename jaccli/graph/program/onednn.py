"""Steps by oneDNN's kernels: matrix products, and the activation that follows.

Which library multiplies faster hangs on the machine (on AMD's, oneDNN by a tenth to a quarter), and its tanh is
some times quicker at the same accuracy. Both ways become programs, and a plan takes the faster by the clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from jaccli.graph.program.peephole import PRODUCTS, fixed
from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, contiguous, name_of, taken

aten = torch.ops.aten

# Smaller products are over before the kernel is looked up, in multiplications; unless a tanh of so many follows.
SMALLEST = 2**22
SMALLEST_TANH = 2**14
# Not relu, which makes zero of NaN there.
_ACTIVATIONS = frozenset(["tanh", "sigmoid"])


def pointwise(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction] | None:
    """The same program with oneDNN's products; None where there is nothing that they could do.

    Args:
        steps: in order.
        kept: results, whose memory is given: what makes it is left alone.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    op = torch.ops.mkldnn._linear_pointwise.default
    results = {variable.memory for variable in kept}
    users: dict[Variable, list[Instruction]] = {}
    for step in steps:
        for variable in taken(step):
            users.setdefault(variable, []).append(step)
    gone: set[int] = set()
    found: list[Instruction] = []
    for step in steps:
        if id(step) in gone:
            continue
        out = step.outputs[0] if step.outputs else None
        operands = _operands(step)
        if operands is None or out is None or out.memory in results:
            found.append(step)
            continue
        x, weight, bias = operands
        after = _activation(out, users.get(out, []), results)
        name = "none" if after is None else name_of(after)
        size = math.prod(out.shape)
        if size * weight.shape[0] < SMALLEST and (name != "tanh" or size < SMALLEST_TANH):
            found.append(step)
            continue
        turned, turning = _turned(weight)
        found += turning
        found.append(Instruction(op, (x, turned, bias, name, [], ""), {}, (after or step).outputs, False))
        if after is not None:
            gone.add(id(after))
    return found if any(step.op is op for step in found) else None


def _operands(step: Instruction) -> tuple[Variable, Variable, Variable | None] | None:
    """x, weight and bias of a product."""
    place = PRODUCTS.get(name_of(step))
    if place is None or step.kwargs or step.written:
        return None
    x, weight = step.args[place : place + 2]
    bias = step.args[0] if place else None
    row = bias is None or (fixed(bias) and bias.shape == weight.shape[1:])
    rows_whole = x.stride == contiguous(x.shape)  # it would be copied
    on_cpu = all(variable.tensor is None or variable.tensor.device.type == "cpu" for variable in (x, weight))
    if not row or not rows_whole or not on_cpu or {x.dtype, weight.dtype} != {torch.float32}:
        return None
    return x, weight, bias


def _activation(out: Variable, users: Sequence[Instruction], results: set[AliasSet]) -> Instruction | None:
    """The step that alone takes the result, if the product's kernel can do it too."""
    if len(users) != 1 or out.memory.written:
        return None
    (step,) = users
    after = step.outputs[0] if len(step.outputs) == 1 else None
    fits = name_of(step) in _ACTIVATIONS and not step.written and not step.kwargs and len(step.args) == 1
    return step if fits and after is not None and after.memory not in results else None


def _turned(weight: Variable) -> tuple[Variable, list[Instruction]]:
    """The weight as a linear layer has it, and the step that turns it where it is no constant."""
    shape, stride = weight.shape[::-1], weight.stride[::-1]
    tensor = weight.tensor.t() if fixed(weight) and weight.tensor is not None else None
    turned = replace(weight, tensor=tensor, shape=shape, stride=stride)
    return turned, [] if tensor is not None else [Instruction(aten.t.default, (weight,), {}, [turned], False)]
