"""The form that program passes work on: a straight line of operator calls, with its inputs and results.

Every pass takes one ``Instructions`` and returns another. None changes the one that it takes, but for ``written`` of an
alias set, which a pass may set: that only keeps later passes from moving instructions. Invariants:

- Each ``Variable`` is made by one instruction, or it is an input, or a constant (``Variable.tensor``). An instruction
  that writes in place lists the variables it changes in ``written``.
- An ``AliasSet`` (``Variable.memory``) is all tensors that are seen as one memory. The results of a split have alias
  sets of their own; ``Uses.root`` leads from them to the memory that they lie in.
- ``AliasSet.varies`` is set on all that depends on the inputs; ``AliasSet.written``, on all that is written in place.
- An instruction may move only past instructions that neither write what it reads nor read what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from jaccli.graph.trace.ir import swap
from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, contiguous, operands, roots

# Matrix products by name, with the position of the operand that a weight multiplies; the weight is the next one.
PRODUCTS = {"mm": 0, "addmm": 1}


@dataclass(frozen=True)
class Instructions:
    """A program without its code.

    Args:
        body: operator calls in the order in which they run.
        inputs: the tensors of a call.
        results: what it returns: J ``(batch, n_out, n_in)``, or matrices whose product is J, and then the guards:
            the values that the model's branches were chosen by.
    """

    body: Sequence[Instruction]
    inputs: Sequence[Variable]
    results: Sequence[Variable]

    def with_body(self, body: Iterable[Instruction]) -> Instructions:
        """The same inputs and results, made by other instructions."""
        return replace(self, body=list(body))

    @property
    def result_memory(self) -> set[AliasSet]:
        """The alias sets of the results: passes leave alone what makes them."""
        return {variable.memory for variable in self.results}


class Uses:
    """Which instruction makes, reads and writes what, by its position in the body.

    Attributes:
        readers: the positions that take a variable, one for each time.
        births: the position at which the memory behind a root is made; none for inputs and constants.
        results: the roots of what the program returns.
    """

    def __init__(self, program: Instructions) -> None:
        self.readers: dict[Variable, list[int]] = {}
        self.births: dict[AliasSet, int] = {}
        self._touched: dict[AliasSet, list[int]] = {}
        self._roots = roots(program.body)
        for position, instruction in enumerate(program.body):
            variables = operands(instruction)
            memories = set(map(self.root, variables))
            for variable in variables:
                self.readers.setdefault(variable, []).append(position)
            for memory in memories:
                self._touched.setdefault(memory, []).append(position)
            for out in (out for out in instruction.outputs if out is not None):
                if self.root(out) not in memories:
                    self.births.setdefault(self.root(out), position)
        self.results = set(map(self.root, program.results))

    def root(self, variable: Variable) -> AliasSet:
        """The memory that a variable lies in: for a view, that of the tensor it is a view of."""
        return self._roots.get(variable.memory, variable.memory)

    def last(self, memory: AliasSet) -> int:
        """The position at which a memory is made, read or written for the last time."""
        return self._touched.get(memory, [self.births[memory]])[-1]


def fixed(variable: object) -> bool:
    """Whether an operand is a constant: neither made by an instruction nor an input."""
    return isinstance(variable, Variable) and variable.tensor is not None and not variable.memory.varies


def new_variable(shape: Sequence[int], dtype: torch.dtype) -> Variable:
    """For a new contiguous result."""
    return Variable(AliasSet(True), None, tuple(shape), contiguous(shape), dtype)


def new_constant(tensor: torch.Tensor) -> Variable:
    """For a constant of any shape that a pass computes."""
    return Variable(AliasSet(False), tensor, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def with_operands(instruction: Instruction, change: Callable[[Variable], Variable]) -> Instruction:
    """The same operator with each operand changed."""
    args, kwargs = (swap(tree, change, Variable) for tree in (instruction.args, instruction.kwargs))
    return replace(instruction, args=args, kwargs=kwargs)
