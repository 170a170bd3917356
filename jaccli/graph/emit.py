"""Steps as a Python function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.rooms import Rooms, rooms
from jaccli.graph.tracer import Slot, Step, contiguous, made_by, name_of, taken


@dataclass
class Program:
    """A straight line of operators.

    Attributes:
        call: from the input tensors and ``out`` to J and the guards' values.
        housed: the same with the places of large intermediate results after ``out``; see ``rooms``.
        rooms: what these are.
        source: the Python code of it.
        guards: what the run was steered by: the values that must be read again.
        steps: how many operators.
        shape: of J; likewise ``dtype``.
        constant: J does not hang on the inputs: what is returned is the program's own.
        placing: whether J is written into the memory given as ``out``, a flat tensor; else that may be None.
    """

    call: Callable[..., tuple[Tensor, ...]]
    source: str
    housed: Callable[..., tuple[Tensor, ...]] | None = None
    rooms: Rooms | None = None
    guards: list[Any] = field(default_factory=list)
    steps: int = 0
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    placing: bool = False
    constant: bool = False


# Operators that can put their result where they are told.
_OUT = frozenset([
    "mm", "bmm", "addmm", "baddbmm", "mul", "add", "sub", "div", "addcmul", "tanh", "sigmoid", "exp", "neg", "cat",
    "stack", "clone", "zeros", "new_zeros", "new_empty", "empty",
])  # fmt: skip


def _creation(steps: Sequence[Step], result: Slot) -> int | None:
    """The step that makes J's memory, if it makes nothing more and can make it in a given place."""
    for position, step in enumerate(steps):
        made = [s for s in step.outputs if s is not None and s.memory is result.memory]
        if not made:
            continue
        name = name_of(step)
        whole = math.prod(made[0].shape) == math.prod(result.shape) and made[0].dtype == result.dtype
        dense = made[0].stride == contiguous(made[0].shape) and result.stride == contiguous(result.shape)
        return position if name in _OUT and whole and dense and not step.written else None
    return None


def _into(step: Step, call: str, first: str, place: str) -> str:
    """The same operator with its result at a place of its shape."""
    name = name_of(step)
    if name in ("zeros", "new_zeros"):
        return f"{place}.zero_()"
    if name in ("empty", "new_empty"):
        return place
    if name == "clone":
        return f"{place}.copy_({first})"
    return f"{call[:-1]}, out={place})"


class _Names:
    """Names for slots, and text for arguments; what text cannot say is kept in ``space``."""

    def __init__(self, inputs: Sequence[Slot], made: set[Slot]) -> None:
        self.names: dict[Slot, str] = {slot: f"x{i}" for i, slot in enumerate(inputs)}
        self.made = made
        self.space: dict[str, Any] = {}

    def name(self, slot: Slot) -> str:
        """``x`` for inputs, ``v`` for values, ``c`` for constants."""
        if slot not in self.names:
            if slot in self.made:
                self.names[slot] = f"v{len(self.names)}"
            else:
                self.names[slot] = f"c{len(self.names)}"
                assert slot.tensor is not None
                self.space[self.names[slot]] = slot.tensor
        return self.names[slot]

    def text(self, tree: Any) -> str:
        """An argument as Python code."""
        if isinstance(tree, Slot):
            return self.name(tree)
        if isinstance(tree, list):
            return f"[{', '.join(map(self.text, tree))}]"
        if isinstance(tree, tuple):
            return f"({''.join(self.text(item) + ', ' for item in tree)})"
        if tree is None or isinstance(tree, bool | int | str):
            return repr(tree)
        if isinstance(tree, float) and abs(tree) < 1e308:
            return repr(tree)
        key = f"k{len(self.space)}"
        self.space[key] = tree
        return key


def _last_uses(steps: Sequence[Step], kept: Sequence[Slot]) -> dict[Slot, int]:
    """The last step that touches each slot; none for those that are kept."""
    last: dict[Slot, int] = {}
    for position, step in enumerate(steps):
        for slot in (*taken(step), *made_by([step])):
            last[slot] = position
    last.update(dict.fromkeys(kept, len(steps)))
    return last


def emitted(steps: Sequence[Step], inputs: Sequence[Slot], wanted: Sequence[Slot]) -> Program:
    """The steps as a Python function.

    Args:
        steps: in order.
        inputs: what the function takes.
        wanted: what it returns, J first.
    """
    made = made_by(steps)
    result, placed = wanted[0], _creation(steps, wanted[0])
    names = _Names(inputs, made)
    places = {} if placed is None else {placed: f"out.view({list(_shape(steps[placed]))})"}
    source, call = _function_of(steps, inputs, wanted, names, places)
    on_cpu = all(slot.tensor is None or slot.tensor.device.type == "cpu" for slot in inputs)
    found = rooms(steps, wanted, _housed) if on_cpu else Rooms({}, 0)
    housed = None
    if found.places:
        places = {number: f"r{number}" for number in found.places} | places
        _, housed = _function_of(steps, inputs, wanted, names, places, [f"r{n}" for n in found.places])
    return Program(
        call,
        source,
        housed,
        found if housed else None,
        steps=len(steps),
        shape=result.shape,
        dtype=result.dtype,
        placing=placed is not None and result.stride == contiguous(result.shape),
        constant=result not in made,
    )


def _shape(step: Step) -> tuple[int, ...]:
    assert step.outputs[0] is not None
    return step.outputs[0].shape


def _housed(step: Step) -> bool:
    """Whether an operator can put its result into a room."""
    return name_of(step) in _OUT and not step.written


def _function_of(
    steps: Sequence[Step],
    inputs: Sequence[Slot],
    wanted: Sequence[Slot],
    names: _Names,
    places: dict[int, str],
    more: Sequence[str] = (),
) -> tuple[str, Callable[..., tuple[Tensor, ...]]]:
    """Source and function, the results of some steps at given places."""
    last = _last_uses(steps, [*wanted, *inputs])
    lines = [
        line for number, step in enumerate(steps) for line in _lines(step, number, names, last, places.get(number))
    ]
    results = "".join(f"{names.name(slot)}, " for slot in wanted)
    body = "\n    ".join([*lines, f"return ({results})"])
    source = f"def program({', '.join([*(names.name(s) for s in inputs), 'out', *more])}):\n    {body}"
    exec(compile(source, "<program>", "exec"), names.space)
    function: Callable[..., tuple[Tensor, ...]] = names.space["program"]
    return source, function


def _lines(step: Step, position: int, names: _Names, last: dict[Slot, int], place: str | None) -> list[str]:
    """One step as code, and its arguments let go where nothing needs them after it."""
    arguments = [names.text(a) for a in step.args] + [f"{k}={names.text(v)}" for k, v in step.kwargs.items()]
    call = f"{_function(step, names.space)}({', '.join(arguments)})"
    if place is not None:
        call = _into(step, call, arguments[0], place)
    fresh = [s for s in step.outputs if s is not None and s not in step.written]
    if not fresh:
        lines = [call]
    elif step.many:
        targets = [names.name(s) if s is not None and last.get(s, -1) > position else "_" for s in step.outputs]
        lines = [f"{', '.join(targets)}, *_ = {call}", "_ = None"]
    else:
        lines = [f"{names.name(fresh[0])} = {call}"]
    ended = {s for s in taken(step) if last[s] == position and s in names.made}
    if ended:
        lines.append(" = ".join(names.name(s) for s in ended) + " = None")
    return lines


def _function(step: Step, space: dict[str, Any]) -> str:
    """The quickest callable of an operator: torch's own function where it takes the same arguments."""
    name = name_of(step)
    key = f"{name}_{step.op._overloadname}"
    if key not in space:
        function = getattr(torch, name, None) if name in _QUICK else None
        function = torch.Tensor.view if name == "view" and step.op._overloadname == "default" else function
        space[key] = function or step.op
    return key


# torch's own functions of these take the same arguments and are called with less ado.
_QUICK = frozenset([
    "mm", "bmm", "addmm", "baddbmm", "mul", "add", "sub", "div", "neg", "tanh", "sigmoid", "relu", "exp", "sin",
    "cos", "sqrt", "rsqrt", "cat", "stack", "permute", "t", "transpose", "select", "sum", "mean", "unsqueeze",
    "convolution", "addcmul", "addcdiv", "gather", "index_select", "clone", "ge", "gt", "le", "lt", "eq", "zeros",
    "ones",
])  # fmt: skip
