"""Code generation: instructions as a Python function, with a static memory plan where that is possible.

What comes out is one function without branches, a line for each operator. A value that nothing needs any longer is let
go at once, so that its memory is free for the next. With a memory plan there are two functions:

    arena ─► views of it that do not change ─► kept between calls
    inputs, memory for J, those views ─► J and the guards

Invariant: J is written into the ``out`` of the caller only if one instruction makes it there, whole and dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.memory_plan import MemoryPlan, plan_memory
from jaccli.graph.trace.tracer import Instruction, Variable, contiguous, made_by, name_of, operands

# The file that a program claims to come from.
SOURCE = "<program>"
Function = Callable[..., tuple[Tensor, ...]]


@dataclass
class Program:
    """A generated program, from the tensors of a call to J ``(batch, n_out, n_in)`` and the guards' values.

    Attributes:
        call: from the input tensors and ``out`` to J and the guards' values, with new memory for what lies between.
        source: the code of ``planned_call``, or of ``call`` where there is no memory plan.
        length: how many instructions.
        shape: of J; likewise ``dtype``.
        fills_output: whether J is written into ``out``, a flat tensor of its size and dtype; else that may be None.
        constant: J does not depend on the inputs: what is returned is the program's own tensor.
        planned_call: as ``call``, with the views that ``buffers`` gives as further arguments.
        memory_plan: where intermediate results lie in ``planned_call``.
        views: from the buffers of the memory plan to them and the views of them that ``planned_call`` works on.
        guards: what the values that the model's branches were chosen by were when it was recorded.
    """

    call: Function
    source: str
    length: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    fills_output: bool
    constant: bool
    planned_call: Function | None = None
    memory_plan: MemoryPlan | None = None
    views: Function | None = None
    guards: list[Any] = field(default_factory=list)

    def buffers(self, device: torch.device) -> tuple[Tensor, ...]:
        """New memory for intermediate results, of their shapes and in all the views that ``planned_call`` takes."""
        if self.memory_plan is None or self.views is None:
            return ()
        # Tensors of inference mode could not be written into outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.views(*self.memory_plan.allocate(device))

    def output(self, device: torch.device) -> Tensor | None:
        """New flat memory for J, ``(batch * n_out * n_in,)``; None where the program makes J's memory itself."""
        return torch.empty(math.prod(self.shape), dtype=self.dtype, device=device) if self.fills_output else None

    def run(self, tensors: Sequence[Tensor], out: Tensor | None, buffers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """J ``(batch, n_out, n_in)`` and the guards' values, numbers as tensors of shape ``()``.

        Args:
            tensors: the inputs, of the shapes at which the program was recorded.
            out: flat memory for J, ``(batch * n_out * n_in,)``, or None; see ``output``.
            buffers: what ``buffers`` gave; no other call may use them at the same time.
        """
        call = self.planned_call or self.call
        return call(*tensors, out, *buffers)


# Operators whose result is their first argument in other strides, whatever the values.
_STRIDED = frozenset([
    "view", "_unsafe_view", "permute", "t", "transpose", "select", "slice", "narrow", "unsqueeze", "squeeze", "expand",
    "as_strided", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "unfold",
    "diagonal", "detach", "alias",
])  # fmt: skip
# Operators that can write their result to a given place.
_OUT = frozenset([
    "mm", "bmm", "addmm", "baddbmm", "mul", "add", "sub", "div", "addcmul", "addcdiv", "tanh", "sigmoid", "exp", "neg",
    "sin", "cos", "sqrt", "rsqrt", "gt", "ge", "lt", "le", "eq", "gather", "index_select", "cat", "stack", "clone",
    "_to_copy", "relu", "clamp_min", "zeros", "new_zeros", "new_empty", "empty",
])  # fmt: skip
# torch's own functions and methods of these take the same arguments as the operator, and are called in less time.
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


def generate(program: Instructions, static_memory: bool = True, fill_output: bool = True) -> Program:
    """Generate the code of a program.

    Args:
        program: its first result is J.
        static_memory: whether intermediate results may lie in memory that is kept between calls.
        fill_output: whether J may be written into memory that the caller gives.
    """
    # One ``_Code`` for all functions: a variable has one name in them, so that views of one are arguments of the other.
    code, j = _Code(program), program.results[0]
    parameters = [*map(code.name, program.inputs), "out"]
    maker = _maker_of_output(program) if fill_output else None
    destinations = {} if maker is None else {maker: f"out.view({list(_result(maker).shape)})"}
    source, call = code.function(program.body, parameters, program.results, destinations)
    generated = Program(call, source, len(program.body), j.shape, j.dtype, maker is not None, j not in code.computed)
    # Allocators of other devices keep memory between calls themselves.
    on_cpu = all(variable.tensor is None or variable.tensor.device.type == "cpu" for variable in program.inputs)
    if static_memory and on_cpu:
        memory = plan_memory(program, _has_out, donate=maker is not None)
        # J's memory is another in each call, so that its views are made in each call.
        for position, buffer in memory.donated.items():
            start = buffer.start // buffer.dtype.itemsize
            place = f"out.as_strided({list(buffer.shape)}, {list(buffer.stride)}, {start})"
            destinations[program.body[position]] = place
        if memory.buffers:
            _use_plan(generated, program, code, memory, destinations)
    return generated


def _use_plan(
    generated: Program, program: Instructions, code: _Code, memory: MemoryPlan, destinations: dict[Instruction, str]
) -> None:
    """Give a program the functions that work in an arena: its views, and what computes on them."""
    buffers = {program.body[position]: _result(program.body[position]) for position in memory.buffers}
    # Views of buffers, and views of these, are the same tensors in each call: they are made once (``static``).
    unmoved, static, dynamic = set(buffers.values()), [], []
    for instruction in program.body:
        if name_of(instruction) in _STRIDED and not instruction.written and unmoved.issuperset(operands(instruction)):
            unmoved |= made_by([instruction])
            static.append(instruction)
        else:
            dynamic.append(instruction)
    used = {v for instruction in dynamic for v in operands(instruction)} | {*buffers.values(), *program.results}
    outputs = (out for instruction in static for out in instruction.outputs)
    views = [v for v in dict.fromkeys([*buffers.values(), *outputs]) if v in used]
    _, generated.views = code.function(static, list(map(code.name, buffers.values())), views, {})
    destinations = {instruction: code.name(variable) for instruction, variable in buffers.items()} | destinations
    parameters = [*map(code.name, program.inputs), "out", *map(code.name, views)]
    generated.memory_plan = memory
    generated.source, generated.planned_call = code.function(dynamic, parameters, program.results, destinations)


def _maker_of_output(program: Instructions) -> Instruction | None:
    """The instruction that makes J's memory, if it makes nothing more and can make it in a given place."""
    j = program.results[0]
    for instruction in program.body:
        out = next((out for out in instruction.outputs if out is not None and out.memory is j.memory), None)
        if out is not None:
            whole = math.prod(out.shape) == math.prod(j.shape) and out.dtype == j.dtype
            dense = out.stride == contiguous(out.shape) and j.stride == contiguous(j.shape)
            # The first that makes this memory decides: later ones are views of it, or write into it.
            return instruction if _has_out(instruction) and whole and dense else None
    return None


def _has_out(instruction: Instruction) -> bool:
    return name_of(instruction) in _OUT and not instruction.written


def _result(instruction: Instruction) -> Variable:
    assert instruction.outputs[0] is not None
    return instruction.outputs[0]


class _Code:
    """Names and text for the variables, arguments and operators of a program.

    ``x0`` is an input, ``v0`` a result, ``c0`` a constant tensor, ``k0`` another constant; ``namespace`` holds the
    constants and the operators that the text refers to.
    """

    def __init__(self, program: Instructions) -> None:
        self.computed = made_by(program.body)
        self.names: dict[Variable, str] = {variable: f"x{i}" for i, variable in enumerate(program.inputs)}
        self.namespace: dict[str, Any] = {"clamp_min": torch.clamp_min}

    def name(self, variable: Variable) -> str:
        """The name of a variable."""
        if variable not in self.names:
            if variable in self.computed:
                self.names[variable] = f"v{len(self.names)}"
            else:
                self.names[variable] = f"c{len(self.names)}"
                assert variable.tensor is not None
                self.namespace[self.names[variable]] = variable.tensor
        return self.names[variable]

    def text(self, argument: Any) -> str:
        """An argument as Python code."""
        if isinstance(argument, Variable):
            return self.name(argument)
        if isinstance(argument, list):
            return f"[{', '.join(map(self.text, argument))}]"
        if isinstance(argument, tuple):
            return f"({''.join(self.text(item) + ', ' for item in argument)})"
        if argument is None or isinstance(argument, bool | int | str):
            return repr(argument)
        if isinstance(argument, float) and abs(argument) < 1e308:
            return repr(argument)
        # What has no literal: a dtype, a device, inf and nan, a generator.
        key = f"k{len(self.namespace)}"
        self.namespace[key] = argument
        return key

    def operator(self, instruction: Instruction) -> str:
        """The quickest callable of an operator."""
        name, overload = name_of(instruction), instruction.op._overloadname
        key = f"{name.replace('::', '_')}_{overload}"
        if key not in self.namespace:
            quick: Any = None
            if name in _QUICK:
                quick = getattr(torch, name)
            # ``view.dtype`` reinterprets bits: it is left as it is.
            elif name in _QUICK_METHODS and (name != "view" or overload == "default"):
                quick = getattr(Tensor, name)
            self.namespace[key] = quick or instruction.op
        return key

    def function(
        self,
        body: Sequence[Instruction],
        parameters: Sequence[str],
        results: Sequence[Variable],
        destinations: dict[Instruction, str],
    ) -> tuple[str, Function]:
        """Source and function of some instructions, the results of some written to given places."""
        last: dict[Variable, int] = {}
        for position, instruction in enumerate(body):
            last.update(dict.fromkeys((*operands(instruction), *made_by([instruction])), position))
        last.update(dict.fromkeys(results, len(body)))  # read behind the end: never let go
        lines = [line for n, i in enumerate(body) for line in self._lines(i, n, last, destinations.get(i))]
        returned = "".join(f"{self.name(variable)}, " for variable in results)
        text = "\n    ".join([*lines, f"return ({returned})"])
        source = f"def program({', '.join(parameters)}):\n    {text}"
        exec(compile(source, SOURCE, "exec"), self.namespace)
        function: Function = self.namespace["program"]
        return source, function

    def _lines(
        self, instruction: Instruction, position: int, last: dict[Variable, int], destination: str | None
    ) -> list[str]:
        """One instruction as code, and its operands let go where nothing needs them after it."""
        arguments = [self.text(a) for a in instruction.args]
        arguments += [f"{key}={self.text(value)}" for key, value in instruction.kwargs.items()]
        call = f"{self.operator(instruction)}({', '.join(arguments)})"
        if destination is not None:
            call = _into(destination, name_of(instruction), call, arguments[0])
        new = [out for out in instruction.outputs if out is not None and out not in instruction.written]
        if not new:
            lines = [call]
        elif instruction.many:
            used = [out is not None and last.get(out, -1) > position for out in instruction.outputs]
            pairs = zip(instruction.outputs, used, strict=True)
            targets = [self.name(out) if out is not None and is_used else "_" for out, is_used in pairs]
            # ``*_`` takes results behind the last one that is used; let go too, or they would live to the end.
            lines = [f"{', '.join(targets)}, *_ = {call}", "_ = None"]
        else:
            lines = [f"{self.name(new[0])} = {call}"]
        # Only names of results: inputs are the caller's, constants the program's.
        ended = {v for v in operands(instruction) if last[v] == position and v in self.computed}
        return [*lines, " = ".join(map(self.name, ended)) + " = None"] if ended else lines


def _into(destination: str, name: str, call: str, first: str) -> str:
    """The same call with its result at a place of its shape."""
    if name in ("zeros", "new_zeros"):
        return f"{destination}.zero_()"
    if name in ("empty", "new_empty"):
        return destination
    if name in ("clone", "_to_copy"):
        return f"{destination}.copy_({first})"
    if name == "relu":
        return f"clamp_min({first}, 0, out={destination})"  # torch.relu has no out=
    return f"{call[:-1]}, out={destination})"
