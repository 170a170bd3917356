"""The operators that an accumulation of J runs, recorded so that they can be run again at another point.

The code below the mode is jaccli's own: it branches on no value, and writes in place where it owns the memory. So
instructions may write, unlike nodes of a ``Graph``; alias sets say which variables share memory.
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
        steps: the instructions, in order.

    Both dictionaries have keys that are used again once a tensor is dead (an ``id``, the number of a storage), and hold
    weak references only, so that tracing keeps no intermediate result alive. An item counts while its tensor lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Instruction] = []
        self._variable_of_id: dict[int, tuple[weakref.ref[Tensor], Variable]] = {}
        self._alias_set_of_storage: dict[int, tuple[AliasSet, list[weakref.ref[Tensor]]]] = {}

    def adopt(self, tensor: Tensor, varies: bool) -> Variable:
        """A variable for a tensor that exists already: an input, a value of the graph, or a constant."""
        memory = self._alias_set(tensor)
        memory.varies |= varies
        return self._enter(tensor, memory, tensor)

    def _enter(self, tensor: Tensor, memory: AliasSet, constant: Tensor | None) -> Variable:
        variable = Variable(memory, constant, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        self._variable_of_id[id(tensor)] = (weakref.ref(tensor), variable)
        return variable

    def _alias_set(self, tensor: Tensor, new: bool = False) -> AliasSet:
        """Of the tensor's storage; a new one where no tensor that was seen in that storage lives any longer."""
        storage = storage_of(tensor)
        memory, tensors = self._alias_set_of_storage.get(storage, (AliasSet(), []))
        living = [r for r in tensors if r() is not None]
        if new or not living:
            memory, living = AliasSet(), []
        self._alias_set_of_storage[storage] = memory, [*living, weakref.ref(tensor)]
        return memory

    def _lookup(self, tensor: Tensor) -> Variable | None:
        reference, variable = self._variable_of_id.get(id(tensor), (None, None))
        return variable if reference is not None and reference() is tensor else None

    def slot_of(self, tensor: Tensor) -> Variable:
        """The variable of a tensor; one that was never seen is a constant."""
        return self._lookup(tensor) or self.adopt(tensor, False)

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One dispatched operator, run and recorded; its result.

        Raises:
            CaptureGap: a number is read out of a tensor that varies.
        """
        if op is torch.ops.aten._local_scalar_dense.default and self.slot_of(args[0]).memory.varies:
            raise CaptureGap("the engine read a number out of a tensor")
        variables, named = swap(args, self.slot_of, Tensor), swap(kwargs, self.slot_of, Tensor)
        inputs = slots_in((variables, named))
        varies = any(s.memory.varies for s in inputs) and op.overloadpacket not in BLIND
        result = op(*args, **kwargs)
        many = isinstance(result, list | tuple)
        step = Instruction(op, variables, named, [], many)
        results = result if many else (result,)
        step.view = share_memory(tensors_in((args, kwargs)), (t for t in results if isinstance(t, Tensor)))
        for argument, variable in zip(op._schema.arguments, variables, strict=False):
            alias = argument.alias_info
            if alias is not None and alias.is_write and isinstance(variable, Variable):
                variable.memory.varies |= varies
                variable.memory.written = True
                step.written.append(variable)
        for tensor in results:
            step.outputs.append(self._output(tensor, varies, step) if isinstance(tensor, Tensor) else None)
        self.steps.append(step)
        return result

    def _output(self, tensor: Tensor, varies: bool, step: Instruction) -> Variable:
        variable = self._lookup(tensor)
        if variable is not None:
            return variable
        new = not is_view(step) or storage_of(tensor) not in self._alias_set_of_storage
        memory = self._alias_set(tensor, new)
        memory.varies |= new and varies
        return self._enter(tensor, memory, None if varies else tensor)


def slots_in(tree: Any) -> list[Variable]:
    """All variables among arguments, in order."""
    return items_in(tree, Variable)


def operands(step: Instruction) -> list[Variable]:
    """All variables among an instruction's arguments, in order."""
    return slots_in((step.args, step.kwargs))


def made_by(steps: Iterable[Instruction]) -> set[Variable]:
    """All variables that instructions put out."""
    return {out for step in steps for out in step.outputs if out is not None}


def is_view(step: Instruction) -> bool:
    """Whether its results may share memory with its arguments, as seen or as its schema says."""
    return step.view or any(a.alias_info is not None for a in step.op._schema.arguments)


def roots(steps: Iterable[Instruction]) -> dict[AliasSet, AliasSet]:
    """The alias set that the alias set of each view belongs to: each result of a split has one of its own."""
    root_of: dict[AliasSet, AliasSet] = {}
    for step in steps:
        bases = operands(step)[:1] if is_view(step) else []
        for base, out in itertools.product(bases, step.outputs):
            if out is not None:
                root_of[out.memory] = root_of.get(base.memory, base.memory)
    return root_of


def name_of(step: Instruction) -> str:
    """Of its operator, without overload, and with its namespace where that is not torch's own."""
    return str(step.op._schema.name.removeprefix("aten::"))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor whose elements lie in reading order."""
    return tuple(math.prod(max(n, 1) for n in shape[d + 1 :]) for d in range(len(shape)))
