"""The operators that a run of the engine makes, recorded so that they can be made again at another point."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.trace.effects import BLIND
from jaccli.graph.trace.ir import CaptureGap, shares, storage_of, tensors_in
from jaccli.runtime.dispatch import Mode


@dataclass(eq=False, slots=True)
class AliasSet:
    """What tensors that are views of each other share.

    ``written``: some operator writes into it.
    """

    varies: bool = False
    written: bool = False


@dataclass(eq=False, slots=True)
class Variable:
    """One tensor of a program; only constants and inputs are held on to."""

    memory: AliasSet
    tensor: Tensor | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


@dataclass(eq=False, slots=True)
class Instruction:
    """One operator call on slots; ``outputs`` that stand among the arguments were written in place.

    ``view``: its results were seen to be memory of its arguments.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Variable | None]
    many: bool
    written: list[Variable] = field(default_factory=list)
    view: bool = False


class Tracer(Mode):
    """Records while it is entered, on top of the values of a captured graph."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Instruction] = []
        self.known: dict[int, tuple[Any, Variable]] = {}
        self.memories: dict[int, tuple[AliasSet, list[Any]]] = {}  # and weak references to the tensors seen in it

    def adopt(self, tensor: Tensor, varies: bool) -> Variable:
        """A tensor that exists before."""
        memory = self._memory(tensor)
        memory.varies |= varies
        variable = Variable(memory, tensor, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        self.known[id(tensor)] = (weakref.ref(tensor), variable)
        return variable

    def _memory(self, tensor: Tensor, new: bool = False) -> AliasSet:
        """What it lies in; a storage that nobody holds any longer may have left its address to another."""
        storage = storage_of(tensor)
        memory, seen = self.memories.get(storage, (AliasSet(), []))
        if new or all(r() is None for r in seen):
            memory, seen = AliasSet(), []
        self.memories[storage] = memory, [*(r for r in seen if r() is not None), weakref.ref(tensor)]
        return memory

    def slot_of(self, tensor: Tensor) -> Variable:
        """What a tensor is in the program; unknown ones are constants."""
        found = self.known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        return self.adopt(tensor, False)

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op is torch.ops.aten._local_scalar_dense.default and self.slot_of(args[0]).memory.varies:
            raise CaptureGap("the engine read a number out of a tensor")
        inputs: list[Variable] = []
        variables, named = self._slots(args, inputs), self._slots(kwargs, inputs)
        varies = any(s.memory.varies for s in inputs) and op.overloadpacket not in BLIND
        result = op(*args, **kwargs)
        many = isinstance(result, list | tuple)
        step = Instruction(op, variables, named, [], many)
        results = result if many else (result,)
        step.view = shares(tensors_in((args, kwargs)), (t for t in results if isinstance(t, Tensor)))
        for argument, given in zip(op._schema.arguments, args, strict=False):
            alias = argument.alias_info
            if alias is not None and alias.is_write and isinstance(given, Tensor):
                variable = self.slot_of(given)
                variable.memory.varies |= varies
                variable.memory.written = True
                step.written.append(variable)
        for tensor in results:
            step.outputs.append(self._output(tensor, varies, step) if isinstance(tensor, Tensor) else None)
        self.steps.append(step)
        return result

    def _output(self, tensor: Tensor, varies: bool, step: Instruction) -> Variable:
        found = self.known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        new = not is_view(step) or storage_of(tensor) not in self.memories
        memory = self._memory(tensor, new)
        memory.varies |= new and varies
        variable = Variable(memory, None if varies else tensor, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        self.known[id(tensor)] = (weakref.ref(tensor), variable)
        return variable

    def _slots(self, tree: Any, seen: list[Variable]) -> Any:
        if isinstance(tree, Tensor):
            seen.append(self.slot_of(tree))
            return seen[-1]
        if isinstance(tree, list | tuple):
            return type(tree)([self._slots(item, seen) for item in tree])
        if isinstance(tree, dict):
            return {key: self._slots(item, seen) for key, item in tree.items()}
        return tree


def slots_in(tree: Any) -> Iterator[Variable]:
    """All slots among arguments."""
    if isinstance(tree, Variable):
        yield tree
    elif isinstance(tree, dict):
        yield from slots_in(tuple(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from slots_in(item)


def operands(step: Instruction) -> list[Variable]:
    """All slots among a step's arguments."""
    return list(slots_in((step.args, step.kwargs)))


def made_by(steps: Iterable[Instruction]) -> set[Variable]:
    """All slots that steps put out."""
    return {out for step in steps for out in step.outputs if out is not None}


def is_view(step: Instruction) -> bool:
    """Whether its results may be memory of its arguments; what schemas do not say, names and storages do."""
    return step.view or any(a.alias_info is not None for a in step.op._schema.arguments)


def roots(steps: Iterable[Instruction]) -> dict[AliasSet, AliasSet]:
    """Of the memory of views, what they are views of: the results of a split have memory of their own."""
    found: dict[AliasSet, AliasSet] = {}
    for step in steps:
        given = operands(step) if is_view(step) else []
        for out in step.outputs if given else ():
            if out is not None:
                found[out.memory] = found.get(given[0].memory, given[0].memory)
    return found


def name_of(step: Instruction) -> str:
    """Of its operator, without overload; with its namespace where that is not torch's own."""
    return str(step.op._schema.name.removeprefix("aten::"))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of elements in reading order."""
    return tuple(math.prod(max(n, 1) for n in shape[d + 1 :]) for d in range(len(shape)))
