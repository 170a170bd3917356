"""Instructions that change nothing are left out: results that nothing needs, and copies of what nothing writes into."""

from __future__ import annotations

from jaccli.graph.program.instructions import Instructions, with_operands
from jaccli.graph.trace.tracer import Instruction, Variable, name_of, operands

# Operators that return their input as it is where the result has the input's shape, strides and dtype.
_COPIES = frozenset(
    ["permute", "view", "expand", "reshape", "_unsafe_view", "alias", "detach", "clone", "_to_copy", "t", "transpose"]
)


def remove_dead_code(program: Instructions) -> Instructions:
    """Keep the instructions that make, or write into, memory that depends on the inputs and that the results need.

    What depends on no input is left out as well: its value is a constant of the program.
    """
    needed = program.result_memory
    live: list[Instruction] = []
    for instruction in reversed(program.body):
        changed = [v.memory for v in (*instruction.outputs, *instruction.written) if v is not None]
        if any(memory in needed and memory.varies for memory in changed):
            live.append(instruction)
            needed.update(v.memory for v in operands(instruction))
    return program.with_body(live[::-1])


def remove_copies(program: Instructions) -> Instructions:
    """Take the input of a copy, or of a view that looks the same, in place of its result.

    A copy stays where either side is written into, and where it is J, which must not be an input's memory.
    """
    same: dict[Variable, Variable] = {}

    def original(variable: Variable) -> Variable:
        while variable in same:
            variable = same[variable]
        return variable

    body: list[Instruction] = []
    for instruction in program.body:
        source = instruction.args[0] if instruction.args else None
        out = instruction.outputs[0] if len(instruction.outputs) == 1 else None
        if name_of(instruction) in _COPIES and isinstance(source, Variable) and out and not instruction.written:
            alike = (source.shape, source.stride, source.dtype) == (out.shape, out.stride, out.dtype)
            own_memory = source.memory is not out.memory
            changed = source.memory.written or out.memory.written or out is program.results[0]
            if alike and not (own_memory and changed):
                same[out] = source
                continue
        body.append(instruction)
    results = [original(variable) for variable in program.results]
    return Instructions([with_operands(instruction, original) for instruction in body], program.inputs, results)
