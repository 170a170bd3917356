"""A program: from samples to J in one straight line of operators, with nothing of the point in it.

The engine's run at one point is recorded, on top of the captured graph; what does not hang on the inputs
is computed once, what nothing needs is left out, and the rest becomes a Python function of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.batching import batched
from jaccli.graph.capture import Graph
from jaccli.graph.engine import Engine, jacobian
from jaccli.graph.recorder import Value, swap
from jaccli.graph.tracer import Slot, Step, Tracer
from jaccli.operators.faults import is_out_of_memory


@dataclass
class Program:
    """A straight line of operators.

    Attributes:
        call: from the input tensors and ``out`` to J and the guards' values.
        source: the Python code of it.
        guards: what the run was steered by: the values that must be read again.
        steps: how many operators.
        shape: of J; likewise ``dtype``.
        constant: J does not hang on the inputs: what is returned is the program's own.
        placing: whether J is written into the memory given as ``out``, a flat tensor; else that may be None.
    """

    call: Callable[..., tuple[Tensor, ...]]
    source: str
    guards: list[Any] = field(default_factory=list)
    steps: int = 0
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    placing: bool = False
    constant: bool = False


def trace(graph: Graph, plan: Engine) -> tuple[Program, Tensor]:
    """Run the engine once and record it. ``plan`` must not have run before: what it keeps would be baked in.

    Returns:
        The program, and J at the point of the capture.
    """
    tracer = Tracer()
    steps = _forward(graph, tracer)
    with torch.no_grad(), tracer:
        matrix = jacobian(plan)
    tracer.steps = [*steps, *tracer.steps]
    result = tracer.slot_of(matrix)
    guards = [(tracer.slot_of(v.tensor), read) for v, read in graph.guards]
    wanted = [result, *(slot for slot, _ in guards)]
    inputs = [tracer.slot_of(v.tensor) for v in graph.inputs]
    live, wanted = _plainer(_live(tracer.steps, wanted), wanted)
    program = _quicker(live, inputs, wanted, matrix) or _compiled(live, inputs, wanted)
    program.guards = [read for _, read in guards]
    return program, matrix


def _quicker(steps: list[Step], inputs: list[Slot], wanted: list[Slot], matrix: Tensor) -> Program | None:
    """The program in fewer steps; None where it is not the same: views of other strides do not always exist."""
    fewer = _live(batched(steps, wanted), wanted)
    if len(fewer) == len(steps):
        return None
    program = _compiled(fewer, inputs, wanted)
    out = torch.empty(math.prod(program.shape), dtype=program.dtype, device=matrix.device) if program.placing else None
    try:
        with torch.no_grad():
            got, *_ = program.call(*(slot.tensor for slot in inputs), out)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None
    return program if alike(got, matrix) else None


def _forward(graph: Graph, tracer: Tracer) -> list[Step]:
    """The captured nodes as steps."""
    slots: dict[Value, Slot] = {}

    def slot(value: Value) -> Slot:
        if value not in slots:
            slots[value] = tracer.adopt(value.tensor, value.varies)
        return slots[value]

    for value in graph.inputs:
        slot(value)
    steps = []
    for node in graph.nodes:
        returns = node.op._schema.returns
        many = len(returns) > 1 or str(returns[0].type).startswith("List")
        size = max((v.out for v in node.outputs), default=0) + 1
        by_place = {v.out: v for v in node.outputs}
        args, kwargs = swap(node.args, slot), swap(node.kwargs, slot)
        outputs = [slot(by_place[place]) if place in by_place else None for place in range(size)]
        steps.append(Step(node.op, args, kwargs, outputs, many))
    return steps


def _slots(tree: Any) -> list[Slot]:
    if isinstance(tree, Slot):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, list | tuple):
        return [slot for item in tree for slot in _slots(item)]
    return []


def _live(steps: Sequence[Step], wanted: Sequence[Slot]) -> list[Step]:
    """The steps that must run: they make, or write into, memory that varies and that the result needs."""
    needed = {s.memory for s in wanted}
    kept = []
    for step in reversed(steps):
        made = [s.memory for s in (*step.outputs, *step.written) if s is not None]
        if any(m in needed and m.varies for m in made):
            kept.append(step)
            needed.update(s.memory for s in (*_slots(step.args), *_slots(step.kwargs)))
    return kept[::-1]


# These hand their input on when the result lies in memory as the input does.
_HANDED_ON = frozenset(
    ["permute", "view", "expand", "reshape", "_unsafe_view", "alias", "detach", "clone", "_to_copy", "t", "transpose"]
)


def _plainer(steps: list[Step], wanted: list[Slot]) -> tuple[list[Step], list[Slot]]:
    """Without the steps that change nothing, such as a copy of what nobody writes into."""
    same: dict[Slot, Slot] = {}

    def now(slot: Slot) -> Slot:
        while slot in same:
            slot = same[slot]
        return slot

    kept = []
    for step in steps:
        name = step.op._schema.name.split("::")[1]
        source = step.args[0] if step.args and isinstance(step.args[0], Slot) else None
        out = step.outputs[0] if len(step.outputs) == 1 else None
        if name in _HANDED_ON and source is not None and out is not None and not step.written:
            alike = (source.shape, source.stride, source.dtype) == (out.shape, out.stride, out.dtype)
            apart = source.memory is not out.memory
            if alike and not (apart and (source.memory.written or out.memory.written or out is wanted[0])):
                same[out] = source
                continue
        kept.append(step)
    for step in kept:
        step.args, step.kwargs = swap(step.args, now, Slot), swap(step.kwargs, now, Slot)
    return kept, [now(s) for s in wanted]


# Operators that can put their result where they are told.
_OUT = frozenset(["mm", "bmm", "mul", "add", "sub", "div", "cat", "clone", "zeros", "new_zeros", "new_empty", "empty"])


def _creation(steps: Sequence[Step], result: Slot) -> int | None:
    """The step that makes J's memory, if it makes nothing more and can make it in a given place."""
    for position, step in enumerate(steps):
        made = [s for s in step.outputs if s is not None and s.memory is result.memory]
        if not made:
            continue
        name = step.op._schema.name.split("::")[1]
        whole = math.prod(made[0].shape) == math.prod(result.shape) and made[0].dtype == result.dtype
        dense = made[0].stride == _contiguous(made[0].shape) and result.stride == _contiguous(result.shape)
        return position if name in _OUT and whole and dense and not step.written else None
    return None


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(strides[::-1])


def _into(step: Step, call: str, first: str) -> str:
    """The same operator with its result at ``out``, a flat tensor of J's elements."""
    name = step.op._schema.name.split("::")[1]
    assert step.outputs[0] is not None
    place = f"out.view({list(step.outputs[0].shape)})"
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
        for slot in (*_slots(step.args), *_slots(step.kwargs), *(s for s in step.outputs if s is not None)):
            last[slot] = position
    last.update(dict.fromkeys(kept, len(steps)))
    return last


def _compiled(steps: Sequence[Step], inputs: Sequence[Slot], wanted: Sequence[Slot]) -> Program:
    """The steps as a Python function."""
    made = {s for step in steps for s in step.outputs if s is not None}
    names = _Names(inputs, made)
    last = _last_uses(steps, [*wanted, *inputs])
    placed = _creation(steps, wanted[0])
    lines: list[str] = []
    for position, step in enumerate(steps):
        lines += _lines(step, position, names, last, position == placed)
    results = "".join(f"{names.name(slot)}, " for slot in wanted)
    body = "\n    ".join([*lines, f"return ({results})"])
    source = f"def program({', '.join([*(names.name(s) for s in inputs), 'out'])}):\n    {body}"
    exec(compile(source, "<program>", "exec"), names.space)
    result = wanted[0]
    return Program(
        names.space["program"],
        source,
        steps=len(steps),
        shape=result.shape,
        dtype=result.dtype,
        placing=placed is not None and result.stride == _contiguous(result.shape),
        constant=result not in made,
    )


def _lines(step: Step, position: int, names: _Names, last: dict[Slot, int], into_out: bool) -> list[str]:
    """One step as code, and its arguments let go where nothing needs them after it."""
    arguments = [names.text(a) for a in step.args] + [f"{k}={names.text(v)}" for k, v in step.kwargs.items()]
    call = f"{_function(step, names.space)}({', '.join(arguments)})"
    if into_out:
        call = _into(step, call, arguments[0])
    fresh = [s for s in step.outputs if s is not None and s not in step.written]
    if not fresh:
        lines = [call]
    elif step.many:
        targets = [names.name(s) if s is not None and last.get(s, -1) > position else "_" for s in step.outputs]
        lines = [f"{', '.join(targets)}, *_ = {call}", "_ = None"]
    else:
        lines = [f"{names.name(fresh[0])} = {call}"]
    ended = {s for s in (*_slots(step.args), *_slots(step.kwargs)) if last[s] == position and s in names.made}
    if ended:
        lines.append(" = ".join(names.name(s) for s in ended) + " = None")
    return lines


def _function(step: Step, space: dict[str, Any]) -> str:
    """The quickest callable of an operator: torch's own function where it takes the same arguments."""
    name = step.op._schema.name.split("::")[1]
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


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding of their dtype."""
    if a.shape != b.shape:
        return False
    size = float(torch.linalg.vector_norm(b.double()))
    off = float(torch.linalg.vector_norm((a - b).double()))
    return off <= 64 * torch.finfo(a.dtype).eps * max(size, 1e-30) or not torch.isfinite(torch.tensor(size)).item()
