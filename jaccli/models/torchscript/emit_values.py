"""Nodes that hold, make or take apart values: constants, attributes, objects and containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from jaccli.errors import UnsupportedError
from jaccli.models.torchscript.instructions import CallFrame, FrameInstruction, apply, spread
from jaccli.models.torchscript.script_objects import ScriptInstance, map_tensors
from jaccli.models.torchscript.script_types import matches, tuple_type
from jaccli.text.escape import quote

if TYPE_CHECKING:
    from jaccli.models.torchscript.compiler import GraphCompiler
    from jaccli.models.torchscript.program import ScriptProgram


def _constant(compiler: GraphCompiler, node: Any) -> FrameInstruction | None:
    output = node.output()
    if output.type().kind() == "FunctionType":
        return None  # read off its type by the call
    try:
        value = output.toIValue() if node.kind() == "prim::Constant" else node.t("value")
    except RuntimeError:
        raise UnsupportedError(
            f"the model holds a constant of type {quote(output.type(), 120)}",
            "",
            "use a model without it",
        ) from None
    program = compiler.program
    if (number := _number(value)) is not None:
        compiler.number(output, number)  # as written, before a cast
    value = _converted(value, program)
    if not compiler.written(output):
        compiler.constant(output, value)
        return None
    return apply(lambda: map_tensors(value, torch.Tensor.clone), [], [compiler.slot(output)])


def _converted(value: Any, program: ScriptProgram) -> Any:
    """A constant as the program needs it: dense, and in a converted copy of its dtype and on its device."""
    value = map_tensors(value, lambda t: t.to_dense() if t.layout is not torch.strided else t)
    if program.convert is not None:
        value = map_tensors(value, program.convert)
    if program.device is not None and isinstance(value, torch.device):
        return program.device
    return value


def _number(value: Any) -> Any:
    """What a tensor without dimensions holds."""
    dense = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized
    return value.item() if dense and value.dim() == 0 else None


def _get_attribute(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    owner, out, name = compiler.slot(node.inputsAt(0)), compiler.slot(node.output()), node.s("name")

    def get(frame: CallFrame) -> None:
        instance = frame[owner]
        try:
            frame[out] = instance.attrs[name]
        except KeyError:
            frame[out] = frame[0].fetch(instance, name)

    return get


def _set_attribute(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    owner, value = compiler.slots(node.inputs())
    name = node.s("name")

    def set_(frame: CallFrame) -> None:
        frame[owner].attrs[name] = frame[value]

    return set_


def _module_index(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    owner, key = compiler.slots(node.inputs())
    out = compiler.slot(node.output())

    def pick(frame: CallFrame) -> None:
        instance, index = frame[owner], frame[key]
        names = list(instance.node.children)
        frame[out] = frame[0].fetch(instance, index if isinstance(index, str) else names[index])

    return pick


def _create_object(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    cls = node.output().type().qualified_name()
    return _value(compiler, node, lambda: ScriptInstance(cls, {}))


def _isinstance(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    kinds = list(node.tys("types"))
    return _value(compiler, node, lambda value: any(matches(value, kind) for kind in kinds))


def _container(make: Callable[..., Any]) -> Callable[[GraphCompiler, Any], FrameInstruction]:
    return lambda compiler, node: _value(compiler, node, make)


def _tuple(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    kind = node.output().type()
    named = tuple_type(str(kind.annotation_str), kind.str())
    return _value(compiler, node, named or (lambda *items: items))


def _tuple_slice(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    part = slice(node.i("beg"), node.i("end"))
    return _value(compiler, node, lambda items: tuple(items)[part])


def _unpack(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    return spread(lambda items: items, [compiler.slot(node.inputsAt(0))], compiler.slots(node.outputs()))


def _chunk(compiler: GraphCompiler, node: Any) -> FrameInstruction:
    chunks, dim = node.i("chunks"), node.i("dim")
    ins, outs = [compiler.slot(node.inputsAt(0))], compiler.slots(node.outputs())
    return spread(lambda tensor: tensor.chunk(chunks, dim), ins, outs)


def _value(compiler: GraphCompiler, node: Any, function: Callable[..., Any]) -> FrameInstruction:
    """The instruction of a node with one output: ``function`` of its inputs."""
    return apply(function, compiler.slots(node.inputs()), [compiler.slot(node.output())])


EMITTERS: dict[str, Callable[[GraphCompiler, Any], FrameInstruction | None]] = {
    "prim::Constant": _constant,
    "prim::ConstantMKLDNNTensor": _constant,
    "prim::GetAttr": _get_attribute,
    "prim::SetAttr": _set_attribute,
    "prim::CreateObject": _create_object,
    "prim::isinstance": _isinstance,
    "prim::ListConstruct": _container(lambda *items: list(items)),
    "prim::TupleConstruct": _tuple,
    "prim::DictConstruct": _container(lambda *items: dict(zip(items[::2], items[1::2], strict=True))),
    "prim::TupleUnpack": _unpack,
    "prim::ListUnpack": _unpack,
    "prim::TupleSlice": _tuple_slice,
    "prim::ConstantChunk": _chunk,
    "prim::ModuleContainerIndex": _module_index,
}
