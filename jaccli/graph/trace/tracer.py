"""The operators that an accumulation of J runs, recorded so that they can be run again at another point.

The code below the mode is jaccli's own: it branches on no value, and writes in place where it owns the memory. So
instructions may write, unlike nodes of a ``Graph``; alias sets say which variables share memory.

Invariants
    T1  A tensor object has one variable as long as it lives, and no later object gets it: an item of
        ``_variable_of_id`` counts while its weak reference leads to the very tensor that is asked for.
    T2  Variables of one storage have one alias set. It is that of the storage's number as long as one of the tensors
        lives that were seen there; a storage that gets the number of a dead one has a set of its own.
    T3  ``varies`` and ``written`` of an alias set are never taken back. A variable whose memory does not vary is the
        same in every run, up to the instruction that writes what varies into it.
    T4  ``Variable.tensor`` is kept of inputs, of values of the captured graph, and of results that did not vary when
        they were computed. Its content is that of the end of the run, so that constants in an alias set that is
        ``written`` are computed anew in every run.
    T5  Instructions stand in order of execution. What they read was adopted, or put out by an earlier one; what is
        written in place is put out again as the variable that was written.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.trace.effects import BLIND
from jaccli.graph.trace.ir import CaptureGap, items_in, share_memory, storage_of, swap, tensors_in
from jaccli.runtime.dispatch import Mode


@dataclass(eq=False, slots=True)
class AliasSet:
    """All variables that share one storage are of one alias set.

    Args:
        varies: some content depends on the inputs.
        written: some instruction writes into it.
    """

    varies: bool = False
    written: bool = False


@dataclass(eq=False, slots=True)
class Variable:
    """One tensor of a program; ``tensor`` is kept of constants and inputs only."""

    memory: AliasSet
    tensor: Tensor | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


@dataclass(eq=False, slots=True)
class Instruction:
    """One operator call on variables; ``outputs`` that are among the arguments were written in place.

    Args:
        op: the overload.
        args: variables in the place of tensors.
        kwargs: likewise.
        outputs: None for results that are no tensors.
        many: the operator returns a list or tuple.
        written: the arguments that it writes into.
        view: its results shared memory with its arguments.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Variable | None]
    many: bool
    written: list[Variable] = field(default_factory=list)
    view: bool = False


class Tracer(Mode):
    """Records while it is entered, on top of the values of a captured graph.

    Attributes:
        instructions: in order.

    Both dictionaries have keys that are used again once a tensor is dead (an ``id``, the number of a storage), and hold
    weak references only, so that tracing keeps no intermediate result alive. An item counts while its tensor lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.instructions: list[Instruction] = []
        self._variable_of_id: dict[int, tuple[weakref.ref[Tensor], Variable]] = {}
        self._alias_set_of_storage: dict[int, tuple[AliasSet, list[weakref.ref[Tensor]]]] = {}

    def adopt(self, tensor: Tensor, varies: bool) -> Variable:
        """A variable for a tensor of any shape that exists already: an input, a value of the graph, or a constant."""
        memory = self._alias_set(tensor)
        memory.varies |= varies
        return self._enter(tensor, memory, tensor)

    def _enter(self, tensor: Tensor, memory: AliasSet, constant: Tensor | None) -> Variable:
        """A new variable for a tensor of any shape."""
        variable = Variable(memory, constant, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        self._variable_of_id[id(tensor)] = (weakref.ref(tensor), variable)
        return variable

    def _alias_set(self, tensor: Tensor, new: bool = False) -> AliasSet:
        """Of the storage of a tensor of any shape; a new one where no tensor seen in that storage lives any longer."""
        storage = storage_of(tensor)
        memory, tensors = self._alias_set_of_storage.get(storage, (AliasSet(), []))
        living = [r for r in tensors if r() is not None]
        if new or not living:
            memory, living = AliasSet(), []
        self._alias_set_of_storage[storage] = memory, [*living, weakref.ref(tensor)]
        return memory

    def _lookup(self, tensor: Tensor) -> Variable | None:
        """The variable of a tensor of any shape that was seen."""
        reference, variable = self._variable_of_id.get(id(tensor), (None, None))
        return variable if reference is not None and reference() is tensor else None

    def variable_of(self, tensor: Tensor) -> Variable:
        """The variable of a tensor of any shape; one that was never seen is a constant."""
        return self._lookup(tensor) or self.adopt(tensor, False)

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One dispatched operator, run and recorded; its result.

        Raises:
            CaptureGap: a number is read out of a tensor that varies.
        """
        if op is torch.ops.aten._local_scalar_dense.default and self.variable_of(args[0]).memory.varies:
            raise CaptureGap("the engine read a number out of a tensor")
        variables, named = swap(args, self.variable_of, Tensor), swap(kwargs, self.variable_of, Tensor)
        varies = op.overloadpacket not in BLIND and any(v.memory.varies for v in items_in((variables, named), Variable))
        result = op(*args, **kwargs)
        many = isinstance(result, list | tuple)
        results = result if many else (result,)
        view = share_memory(tensors_in((args, kwargs)), (t for t in results if isinstance(t, Tensor)))
        written = _written(op, variables)
        # Before the results are looked up: of an operator in place, the result is the variable that it wrote.
        for variable in written:
            variable.memory.varies |= varies
            variable.memory.written = True
        instruction = Instruction(op, variables, named, [], many, written, view)
        for tensor in results:
            output = self._output(tensor, varies, instruction) if isinstance(tensor, Tensor) else None
            instruction.outputs.append(output)
        self.instructions.append(instruction)
        return result

    def _output(self, tensor: Tensor, varies: bool, instruction: Instruction) -> Variable:
        """The variable of a result of any shape."""
        variable = self._lookup(tensor)
        if variable is not None:
            return variable
        new = not is_view(instruction) or storage_of(tensor) not in self._alias_set_of_storage
        memory = self._alias_set(tensor, new)
        memory.varies |= new and varies
        return self._enter(tensor, memory, None if varies else tensor)


def _written(op: Any, args: tuple[Any, ...]) -> list[Variable]:
    """The positional arguments that an operator writes into, by its schema."""
    pairs = zip(op._schema.arguments, args, strict=False)
    return [v for a, v in pairs if a.alias_info is not None and a.alias_info.is_write and isinstance(v, Variable)]


def operands(instruction: Instruction) -> list[Variable]:
    """All variables among an instruction's arguments, in order."""
    return items_in((instruction.args, instruction.kwargs), Variable)


def made_by(instructions: Iterable[Instruction]) -> set[Variable]:
    """All variables that instructions put out."""
    return {out for instruction in instructions for out in instruction.outputs if out is not None}


def is_view(instruction: Instruction) -> bool:
    """Whether its results may share memory with its arguments, as seen or as its schema says."""
    return instruction.view or any(a.alias_info is not None for a in instruction.op._schema.arguments)


def roots(instructions: Iterable[Instruction]) -> dict[AliasSet, AliasSet]:
    """The alias set that the alias set of each view belongs to: each result of a split has one of its own."""
    root_of: dict[AliasSet, AliasSet] = {}
    for instruction in instructions:
        bases = operands(instruction)[:1] if is_view(instruction) else []
        for base, out in itertools.product(bases, instruction.outputs):
            if out is not None:
                root_of[out.memory] = root_of.get(base.memory, base.memory)
    return root_of


def name_of(instruction: Instruction) -> str:
    """Of its operator, without overload, and with its namespace where that is not torch's own."""
    return str(instruction.op._schema.name.removeprefix("aten::"))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor whose elements lie in reading order."""
    return tuple(math.prod(max(n, 1) for n in shape[d + 1 :]) for d in range(len(shape)))
