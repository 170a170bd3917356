"""Matrix products by oneDNN's kernels, together with the activation that follows.

Which library multiplies faster depends on the machine (on AMD's, oneDNN by a tenth to a quarter), and oneDNN's tanh
is several times quicker at the same accuracy. Both become programs, and a plan takes the faster one by the clock.
These kernels have no ``out=`` variant, so their results cannot lie in the static memory plan.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from jaccli.graph.program.instructions import PRODUCTS, Instructions, Uses, fixed
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, name_of

aten = torch.ops.aten

# oneDNN pays only for products of at least SMALLEST multiplications (below, its look-up takes longer than the product),
# or if a tanh of at least SMALLEST_TANH elements is fused into it.
SMALLEST = 2**22
SMALLEST_TANH = 2**14
# Not relu: oneDNN's turns NaN into zero.
_ACTIVATIONS = frozenset(["tanh", "sigmoid"])


def use_onednn(program: Instructions) -> Instructions:
    """The same program with oneDNN's products; the program itself where there is nothing that they could do."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return program
    uses, fused, body = Uses(program), set[Instruction](), list[Instruction]()
    for instruction in program.body:
        if instruction in fused:
            continue
        product = _product(instruction, program)
        out = instruction.outputs[0] if product is not None else None
        if product is None or out is None:
            body.append(instruction)
            continue
        x, weight, bias = product
        activation = _activation(out, program, uses)
        name = "none" if activation is None else name_of(activation)
        size = math.prod(out.shape)
        if size * weight.shape[0] < SMALLEST and (name != "tanh" or size < SMALLEST_TANH):
            body.append(instruction)
            continue
        # A linear layer's weight is (n, k). Of a constant that is a view made here; of others, one more instruction.
        turned = _transposed(weight)
        if turned.tensor is None:
            body.append(Instruction(aten.t.default, (weight,), {}, [turned], False))
        op, outputs = torch.ops.mkldnn._linear_pointwise.default, (activation or instruction).outputs
        body.append(Instruction(op, (x, turned, bias, name, [], ""), {}, outputs, False))
        if activation is not None:
            fused.add(activation)
    return program.with_body(body) if body != list(program.body) else program


def _product(instruction: Instruction, program: Instructions) -> tuple[Variable, Variable, Variable | None] | None:
    """x ``(m, k)``, weight ``(k, n)`` and bias ``(n,)`` of a product that oneDNN can do, and that is no result."""
    position = PRODUCTS.get(name_of(instruction))
    if position is None or instruction.kwargs or instruction.written:
        return None
    x, weight = instruction.args[position : position + 2]
    bias = instruction.args[0] if position else None
    is_row = bias is None or (fixed(bias) and bias.shape == weight.shape[1:])
    contiguous_rows = x.stride == contiguous(x.shape)  # it would be copied
    on_cpu = all(variable.tensor is None or variable.tensor.device.type == "cpu" for variable in (x, weight))
    if not is_row or not contiguous_rows or not on_cpu or {x.dtype, weight.dtype} != {torch.float32}:
        return None
    out = instruction.outputs[0]
    return (x, weight, bias) if out is not None and out.memory not in program.result_memory else None


def _activation(product: Variable, program: Instructions, uses: Uses) -> Instruction | None:
    """The instruction that alone takes a product, if the product's kernel can do it too."""
    readers = uses.readers.get(product, [])
    if len(readers) != 1 or product.memory.written:
        return None
    instruction = program.body[readers[0]]
    out = instruction.outputs[0] if len(instruction.outputs) == 1 else None
    plain = not instruction.written and not instruction.kwargs and len(instruction.args) == 1
    fits = plain and name_of(instruction) in _ACTIVATIONS
    return instruction if fits and out is not None and out.memory not in program.result_memory else None


def _transposed(weight: Variable) -> Variable:
    """The weight ``(n, k)`` as a linear layer has it; with its tensor where it is a constant."""
    tensor = weight.tensor.t() if fixed(weight) and weight.tensor is not None else None
    return replace(weight, tensor=tensor, shape=weight.shape[::-1], stride=weight.stride[::-1])
