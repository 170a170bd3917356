"""Steps as a Python function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.program.memory_plan import MemoryPlan, plan_memory
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, made_by, name_of, taken

# The file that a program claims to come from.
SOURCE = "<program>"


@dataclass
class Program:
    """A straight line of operators.

    Attributes:
        call: from the input tensors and ``out`` to J and the guards' values.
        housed: the same with what ``furnished`` gives after ``out``.
        rooms: the places of intermediate results, where they have some.
        seen: the rooms → them and the views of them that ``housed`` works on.
        source: the Python code of it, or of ``housed``.
        guards: what the run was steered by: the values that must be read again.
        steps: how many operators.
        shape: of J; likewise ``dtype``.
        constant: J does not hang on the inputs: what is returned is the program's own.
        placing: whether J is written into the memory given as ``out``, a flat tensor; else that may be None.
    """

    call: Callable[..., tuple[Tensor, ...]]
    source: str
    housed: Callable[..., tuple[Tensor, ...]] | None = None
    plan_memory: MemoryPlan | None = None
    seen: Callable[..., tuple[Tensor, ...]] | None = None
    guards: list[Any] = field(default_factory=list)
    steps: int = 0
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    placing: bool = False
    constant: bool = False

    def furnished(self, device: torch.device) -> tuple[Tensor, ...]:
        """New memory for intermediate results, in all the views that ``housed`` takes."""
        if self.plan_memory is None or self.seen is None:
            return ()
        # Tensors of inference mode could not be written into outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.seen(*self.plan_memory.tensors(device))

    def run(self, tensors: Sequence[Tensor], out: Tensor | None, furnished: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """J and the guards' values; in rooms where there are some.

        Args:
            tensors: the inputs.
            out: flat memory for J.
            furnished: see there; for one call at a time.
        """
        call = self.housed or self.call
        return call(*tensors, out, *furnished)


# Operators whose result is their first argument in other strides, whatever the values.
_STRIDED = frozenset([
    "view", "_unsafe_view", "permute", "t", "transpose", "select", "slice", "narrow", "unsqueeze", "squeeze", "expand",
    "as_strided", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "unfold",
    "diagonal", "detach", "alias",
])  # fmt: skip
# Operators that can put their result where they are told.
_OUT = frozenset([
    "mm", "bmm", "addmm", "baddbmm", "mul", "add", "sub", "div", "addcmul", "addcdiv", "tanh", "sigmoid", "exp", "neg",
    "sin", "cos", "sqrt", "rsqrt", "gt", "ge", "lt", "le", "eq", "gather", "index_select", "cat", "stack", "clone",
    "_to_copy", "relu", "clamp_min", "zeros", "new_zeros", "new_empty", "empty",
])  # fmt: skip


def _creation(steps: Sequence[Instruction], result: Variable) -> Instruction | None:
    """The step that makes J's memory, if it makes nothing more and can make it in a given place."""
    for step in steps:
        made = [s for s in step.outputs if s is not None and s.memory is result.memory]
        if not made:
            continue
        name = name_of(step)
        whole = math.prod(made[0].shape) == math.prod(result.shape) and made[0].dtype == result.dtype
        dense = made[0].stride == contiguous(made[0].shape) and result.stride == contiguous(result.shape)
        return step if name in _OUT and whole and dense and not step.written else None
    return None


def _into(step: Instruction, call: str, first: str, place: str) -> str:
    """The same operator with its result at a place of its shape."""
    name = name_of(step)
    if name in ("zeros", "new_zeros"):
        return f"{place}.zero_()"
    if name in ("empty", "new_empty"):
        return place
    if name in ("clone", "_to_copy"):
        return f"{place}.copy_({first})"
    if name == "relu":
        return f"clamp_min({first}, 0, out={place})"  # torch.relu takes no place
    return f"{call[:-1]}, out={place})"


class _Names:
    """Names for slots, and text for arguments; what text cannot say is kept in ``space``."""

    def __init__(self, inputs: Sequence[Variable], made: set[Variable]) -> None:
        self.names: dict[Variable, str] = {variable: f"x{i}" for i, variable in enumerate(inputs)}
        self.made = made
        self.space: dict[str, Any] = {"clamp_min": torch.clamp_min}

    def name(self, variable: Variable) -> str:
        """``x`` for inputs, ``v`` for values, ``c`` for constants."""
        if variable not in self.names:
            if variable in self.made:
                self.names[variable] = f"v{len(self.names)}"
            else:
                self.names[variable] = f"c{len(self.names)}"
                assert variable.tensor is not None
                self.space[self.names[variable]] = variable.tensor
        return self.names[variable]

    def text(self, tree: Any) -> str:
        """An argument as Python code."""
        if isinstance(tree, Variable):
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


def _last_uses(steps: Sequence[Instruction], kept: Sequence[Variable]) -> dict[Variable, int]:
    """The last step that touches each slot; none for those that are kept."""
    last: dict[Variable, int] = {}
    for position, step in enumerate(steps):
        for variable in (*taken(step), *made_by([step])):
            last[variable] = position
    last.update(dict.fromkeys(kept, len(steps)))
    return last


def emitted(
    steps: Sequence[Instruction],
    inputs: Sequence[Variable],
    wanted: Sequence[Variable],
    housed: bool = True,
    placing: bool = True,
) -> Program:
    """The steps as a Python function.

    Args:
        steps: in order.
        inputs: what the function takes.
        wanted: what it returns, J first.
        housed: whether intermediate results may have rooms.
        placing: whether J may be written into memory that is given.
    """
    made = made_by(steps)
    result, placed = wanted[0], _creation(steps, wanted[0]) if placing else None
    names = _Names(inputs, made)
    places = {} if placed is None else {placed: f"out.view({list(_shape(placed))})"}
    parameters: list[Variable | str] = [*inputs, "out"]
    source, call = _function_of(steps, parameters, wanted, names, places)
    program = Program(
        call,
        source,
        steps=len(steps),
        shape=result.shape,
        dtype=result.dtype,
        placing=placed is not None,
        constant=result not in made,
    )
    found = plan_memory(steps, wanted, _housed, lending=placed is not None) if housed else MemoryPlan({}, 0)
    for number, room in found.lent.items():
        start = room.start // room.dtype.itemsize
        places[steps[number]] = f"out.as_strided({list(room.shape)}, {list(room.stride)}, {start})"
    if found.places and all(variable.tensor is None or variable.tensor.device.type == "cpu" for variable in inputs):
        firm = {
            steps[number]: variable for number in found.places if (variable := steps[number].outputs[0]) is not None
        }
        program.plan_memory = found
        program.seen, (program.source, program.housed) = _housed_function(
            steps, parameters, wanted, names, places, firm
        )
    return program


Function = Callable[..., tuple[Tensor, ...]]


def _housed_function(
    steps: Sequence[Instruction],
    parameters: Sequence[Variable | str],
    wanted: Sequence[Variable],
    names: _Names,
    places: dict[Instruction, str],
    firm: dict[Instruction, Variable],
) -> tuple[Function, tuple[str, Function]]:
    """Two functions: the rooms → the views of them; and the program on these, without the steps that made them."""
    known, still, moving = set(firm.values()), [], []
    for step in steps:
        if name_of(step) in _STRIDED and not step.written and known.issuperset(taken(step)):
            known |= made_by([step])
            still.append(step)
        else:
            moving.append(step)
    used = {variable for step in moving for variable in taken(step)} | {*firm.values(), *wanted}
    needed = [
        variable
        for variable in dict.fromkeys([*firm.values(), *(out for s in still for out in s.outputs)])
        if variable in used
    ]
    _, seen = _function_of(still, list(firm.values()), needed, names, {})
    places = {step: names.name(variable) for step, variable in firm.items()} | places
    return seen, _function_of(moving, [*parameters, *needed], wanted, names, places)


def _shape(step: Instruction) -> tuple[int, ...]:
    assert step.outputs[0] is not None
    return step.outputs[0].shape


def _housed(step: Instruction) -> bool:
    """Whether an operator can put its result into a room."""
    return name_of(step) in _OUT and not step.written


def _function_of(
    steps: Sequence[Instruction],
    parameters: Sequence[Variable | str],
    wanted: Sequence[Variable],
    names: _Names,
    places: dict[Instruction, str],
) -> tuple[str, Function]:
    """Source and function, the results of some steps at given places."""
    last = _last_uses(steps, wanted)
    lines = [line for number, step in enumerate(steps) for line in _lines(step, number, names, last, places.get(step))]
    results = "".join(f"{names.name(variable)}, " for variable in wanted)
    body = "\n    ".join([*lines, f"return ({results})"])
    with_bracketing = ", ".join(p if isinstance(p, str) else names.name(p) for p in parameters)
    source = f"def program({with_bracketing}):\n    {body}"
    exec(compile(source, SOURCE, "exec"), names.space)
    function: Function = names.space["program"]
    return source, function


def _lines(step: Instruction, position: int, names: _Names, last: dict[Variable, int], place: str | None) -> list[str]:
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


def _function(step: Instruction, space: dict[str, Any]) -> str:
    """The quickest callable of an operator: torch's own function where it takes the same arguments."""
    name = name_of(step)
    key = f"{name.replace('::', '_')}_{step.op._overloadname}"
    if key not in space:
        found: Any = None
        if name in _QUICK:
            found = getattr(torch, name)
        elif name in _QUICK_METHODS and (name != "view" or step.op._overloadname == "default"):
            found = getattr(torch.Tensor, name)
        space[key] = found or step.op
    return key


# torch's own functions and methods of these take the same arguments and are called with less ado.
_QUICK = frozenset([
    "mm", "bmm", "addmm", "baddbmm", "mul", "add", "sub", "div", "neg", "tanh", "sigmoid", "relu", "exp", "sin",
    "cos", "sqrt", "rsqrt", "cat", "stack", "permute", "t", "transpose", "select", "sum", "mean", "unsqueeze",
    "convolution", "addcmul", "addcdiv", "gather", "index_select", "clone", "ge", "gt", "le", "lt", "eq", "zeros",
    "ones", "as_strided", "unbind", "split_with_sizes", "constant_pad_nd", "where", "native_layer_norm", "clamp_min",
])  # fmt: skip
_QUICK_METHODS = frozenset([
    "view", "expand", "unfold", "mul_", "add_", "sub_", "div_", "copy_", "addcmul_", "addmm_", "zero_", "fill_",
    "new_zeros",
])  # fmt: skip
