"""Nodes that call, branch or loop; and the table of all nodes that are no operators."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from jaccli.errors import UnsupportedError
from jaccli.models.torchscript import emit_values
from jaccli.models.torchscript.instructions import CallFrame, FrameInstruction
from jaccli.text.escape import quote

if TYPE_CHECKING:
    from jaccli.models.torchscript.compiler import GraphCompiler

# Overloads are numbered forward__0, and a trace names the further calls of a module forward1, forward2.
_FORWARD = re.compile(r"forward(\d*|__\d+)")
_GRAD_MODES = {f"__torch__.torch.autograd.grad_mode.{name}" for name in ("no_grad", "enable_grad")}
_SEQUENTIAL = re.compile(r"__torch__\.torch\.nn\.modules\.container\.(___torch_mangle_\d+\.)?Sequential")


def _call_method(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    name, values = node.s("name"), list(node.inputs())
    ins, out = compiler.slots(values), compiler.slot(node.output())
    owner, method = ins[0], compiler.program.method
    # As hooks do, taps see ``forward`` called from outside; a module's other methods run unreported.
    if not _FORWARD.fullmatch(name) or owner == compiler.receiver:

        def call(frame: CallFrame) -> None:
            frame[out] = method(frame[owner].cls, name)(frame[0], [frame[i] for i in ins])

        return call
    if len(values) == 1 and values[0].type().qualified_name().endswith(".Identity"):
        return _lost_identity(compiler, node)
    written = [compiler.written(value) for value in [*values[1:], node.output()]]

    def call_layer(frame: CallFrame) -> None:
        run, instance = frame[0], frame[owner]
        function, args = method(instance.cls, name), [frame[i] for i in ins]
        if run.wants(instance):
            frame[out] = run.call_layer(instance, function, args[1:], written)
        else:
            frame[out] = function(run, args)

    return call_layer


def _lost_identity(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    """An ``Identity`` in a trace, called without the value that passes through it.

    In a ``Sequential`` that value is the one made just before; elsewhere nobody knows it.
    """
    owner = compiler.slot(node.inputsAt(0))
    through = _value_before(compiler, node)
    slot = None if through is None else compiler.slot(through)
    written = [through is not None and compiler.written(through)] * 2

    def call(frame: CallFrame) -> None:
        run, instance = frame[0], frame[owner]
        if not run.wants(instance):
            return
        if slot is not None:
            frame[slot] = run.call_layer(instance, lambda _, args: args[1], [frame[slot]], written)
        elif not run.reports.sees_every_module:
            raise UnsupportedError(
                f"layer {quote(instance.node.path, 120)} is an Identity that the trace left out",
                "a layer that the trace recorded",
                "name the layer before it, or use torch.jit.script",
            )

    return call


def _value_before(compiler: GraphCompiler, node: Any) -> Any:
    if not _SEQUENTIAL.fullmatch(compiler.name.rpartition(".")[0]):
        return None
    graph = node.owningBlock()
    before = list(graph.inputs())[1:2]
    for other in graph.nodes():
        if other.kind() == "prim::CallMethod":
            if other.output().unique() == node.output().unique():
                break
            if other.output().type().kind() == "TensorType":
                before = [other.output()]
    return before[0] if before else None


def _call_function(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    values = list(node.inputs())
    name, program = values[0].type().annotation_str, compiler.program
    ins, out = compiler.slots(values[1:]), compiler.slot(node.output())

    def call(frame: CallFrame) -> None:
        frame[out] = program.function(name)(frame[0], [frame[i] for i in ins])

    return call


def _fork(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    # Runs at once, on this thread: what stands for the future is its value, which ``aten::wait`` hands on.
    compiled = compiler.subgraph(node)
    ins, out = compiler.slots(node.inputs()), compiler.slot(node.output())

    def fork(frame: CallFrame) -> None:
        frame[out] = compiled(frame[0], [frame[i] for i in ins])

    return fork


def _if(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    condition, outs = compiler.slot(node.inputsAt(0)), compiler.slots(node.outputs())
    (on_true, true_results), (on_false, false_results) = (
        (compiler.block(block), compiler.slots(block.outputs())) for block in node.blocks()
    )

    def branch(frame: CallFrame) -> None:
        steps, results = (on_true, true_results) if frame[condition] else (on_false, false_results)
        for step in steps:
            step(frame)
        for out, result in zip(outs, results, strict=True):
            frame[out] = frame[result]

    return branch


def _loop(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    (block,) = node.blocks()
    max_trips, condition, *initial = compiler.slots(node.inputs())
    index, *carried = compiler.slots(block.inputs())
    body = compiler.block(block)
    next_condition, *next_values = compiler.slots(block.outputs())
    outs = compiler.slots(node.outputs())

    def loop(frame: CallFrame) -> None:
        state, proceed, count, limit = [frame[i] for i in initial], frame[condition], 0, frame[max_trips]
        while proceed and count < limit:
            frame[index] = count
            # ``state`` was read before any slot is written: a loop may hand its values on crosswise.
            for slot, value in zip(carried, state, strict=True):
                frame[slot] = value
            for step in body:
                step(frame)
            state, proceed = [frame[i] for i in next_values], frame[next_condition]
            count += 1
        for out, value in zip(outs, state, strict=True):
            frame[out] = value

    return loop


def _context(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    entering = node.kind() == "prim::Enter"
    name = "__enter__" if entering else "__exit__"
    owner, out, method = compiler.slot(node.inputsAt(0)), compiler.slot(node.output()), compiler.program.method
    extra = [] if entering else [None, None, None]  # no exception, its value, its traceback
    silences = node.inputsAt(0).type().qualified_name() in _GRAD_MODES

    def cross(frame: CallFrame) -> None:
        instance = frame[owner]
        frame[out] = method(instance.cls, name)(frame[0], [instance, *extra])
        if silences and entering:
            frame[0].enter_forward_mode(torch.is_grad_enabled())
        elif silences:
            frame[0].leave_forward_mode()

    return cross


EMITTERS: dict[str, Callable[[GraphCompiler, Any], FrameInstruction | None]] = {
    **emit_values.EMITTERS,
    "prim::CallMethod": _call_method,
    "prim::CallFunction": _call_function,
    "prim::fork": _fork,
    "prim::If": _if,
    "prim::Loop": _loop,
    "prim::Enter": _context,
    "prim::Exit": _context,
}
