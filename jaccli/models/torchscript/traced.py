"""Calls inside a trace, in the structure that the module itself has.

A trace keeps of a module's arguments and results the tensors that are used, flat, in the order of their
use: ``forward`` of an ``nn.LSTM`` returns ``h_n`` alone where the model needs no more. So element 0 of
its output would be another tensor than in the module. For the modules in ``_FINDERS`` the graph shows which is which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaccli.errors import UnsupportedError
from jaccli.models.interpretation.nested import Nesting, arrange, map_leaves, pairs
from jaccli.models.torchscript.compiler import CompiledGraph, GraphCompiler

if TYPE_CHECKING:
    from jaccli.models.torchscript.program import ScriptProgram

Parts = list[Any]

_KNOWN = re.compile(r"__torch__\.torch\.nn\.modules\.(?:rnn|activation)\.(?:___torch_mangle_\d+\.)?(\w+)")
_SEQUENCES = {"LSTM": {"aten::lstm"}, "GRU": {"aten::gru"}, "RNN": {"aten::rnn_tanh", "aten::rnn_relu"}}
_FUSED_ATTENTION = "aten::_native_multi_head_attention"
# What a recurrent layer does to its own results before it returns them: squeeze where a sequence came without a batch
# dimension, index_select where it had sorted packed sequences by length. The value is still that result.
_PASSES_ON = {"aten::squeeze", "aten::index_select"}


@dataclass(frozen=True)
class Traced:
    """A traced ``forward`` between the flat lists of the trace and the module's own arguments and value.

    ``function`` gives the list of the value's parts; ``returned`` are those that the trace returns.
    """

    function: CompiledGraph
    inputs: Nesting | None
    outputs: Nesting
    returned: list[int]

    def open(self, args: list[Any]) -> tuple[Any, ...]:
        """The arguments as the module has them."""
        return tuple(args) if self.inputs is None else arrange(self.inputs, args)

    def close(self, args: tuple[Any, ...]) -> list[Any]:
        """The arguments as the trace has them.

        Raises:
            UnsupportedError: arguments that are one tensor in the trace are no longer the same.
        """
        if self.inputs is None:
            return list(args)
        flat: dict[int, Any] = {}
        for position, value in pairs(self.inputs, args):
            if flat.setdefault(position, value) is not value:
                raise UnsupportedError(
                    "a traced layer takes one tensor for several of its arguments",
                    "an argument of its own, to put another activation there",
                    "name the layer before it, or use torch.jit.script",
                )
        return [flat[position] for position in sorted(flat)]

    def result(self, parts: list[Any], value: Any) -> Any:
        """What the trace returns, of the module's value."""
        parts = list(parts)
        for position, part in pairs(self.outputs, value):
            parts[position] = part
        picked = [parts[position] for position in self.returned]
        return picked[0] if len(picked) == 1 else tuple(picked)


def restore(program: ScriptProgram, name: str, graph: Any) -> Traced | None:
    """The structure of a traced method; None where it is not known, or the method's own already."""
    module_type = _KNOWN.fullmatch(name.rpartition(".")[0])
    find = _FINDERS.get(module_type[1]) if module_type else None
    nodes = list(graph.nodes())
    if find is None or module_type is None or any(next(iter(node.blocks()), None) is not None for node in nodes):
        return None  # scripted code branches, traces do not
    returned = _returned(graph)
    elements = None if returned is None else find(module_type[1], nodes, returned)
    if elements is None or returned is None:
        return None
    parts, layout, arguments = elements
    flat = {value.unique(): value for value in [*parts, *returned] if value is not None}
    order = list(flat)
    positions = [None if part is None else order.index(part.unique()) for part in parts]
    return Traced(
        _compile(program, name, graph, list(flat.values())),
        _arguments(graph, arguments),
        map_leaves(layout, positions.__getitem__),
        [order.index(value.unique()) for value in returned],
    )


def _compile(program: ScriptProgram, name: str, graph: Any, values: list[Any]) -> CompiledGraph:
    compiler = GraphCompiler(program, name, graph)
    steps = compiler.block(graph, release_values=True, keep=values)
    ins, out = compiler.slots(values), len(compiler.template)
    compiler.template.append(None)

    def gather(frame: list[Any]) -> None:
        frame[out] = [frame[i] for i in ins]

    return CompiledGraph(name, compiler.template, [*steps, gather], out)


def _returned(graph: Any) -> list[Any] | None:
    outputs = list(graph.outputs())
    if len(outputs) == 1 and outputs[0].node().kind() == "prim::TupleConstruct":
        outputs = list(outputs[0].node().inputs())
    return outputs if all(value.type().kind() == "TensorType" for value in outputs) else None


def _arguments(graph: Any, arguments: Nesting | None) -> Nesting | None:
    """The layout of the arguments in the graph's inputs, one of which may stand for several arguments."""
    positions = {value.unique(): i for i, value in enumerate(list(graph.inputs())[1:])}
    used: list[int | None] = []

    def number(value: Any) -> int | None:
        used.append(positions.get(_through(value, {"aten::unsqueeze"}).unique()))
        return used[-1]

    if arguments is None:
        return None
    numbered = map_leaves(arguments, number)
    if set(used[1:]) == {None}:  # initial states of zeros, made inside
        numbered, used = numbered[:1], used[:1]
    if None in used:
        return None
    return (*numbered, *(i for i in positions.values() if i not in used))


def _through(value: Any, kinds: set[str]) -> Any:
    while value.node().kind() in kinds:
        value = value.node().inputsAt(0)
    return value


def _sequence(kind: str, nodes: list[Any], returned: list[Any]) -> Any:
    """``LSTM`` gives ``(out, (h, c))``; ``GRU`` and ``RNN`` give ``(out, h)``."""
    calls = [node for node in nodes if node.kind() in _SEQUENCES[kind]]
    if len(calls) != 1:
        return None
    outputs, inputs = list(calls[0].outputs()), list(calls[0].inputs())
    packed = "batch_sizes" in str(calls[0].schema())
    offsets = {value.unique(): i for i, value in enumerate(outputs)}
    parts: Parts = [None] * len(outputs)
    direct = not packed
    for value in returned:
        source = _through(value, _PASSES_ON).unique()
        if source in offsets:
            parts[offsets[source]] = value
            direct = direct and source == value.unique()
    if direct:  # what is not returned is there as well
        parts = outputs
    first: Nesting = (0,) if packed else 0
    layout = (first, (1, 2)) if kind == "LSTM" else (first, 1)
    states = tuple(inputs[1].node().inputs()) if kind == "LSTM" and not packed else inputs[1]
    return parts, layout, None if packed else (inputs[0], states)


def _lstm_cell(_kind: str, nodes: list[Any], returned: list[Any]) -> Any:
    """``(h, c)``: a trace spells the cell out, and ``h`` is ``o * tanh(c)``."""
    parts: Parts = [None, None]
    for value in returned:
        source = _through(value, {"aten::squeeze"})
        node = source.node()
        if node.kind() == "aten::_thnn_fused_lstm_cell" and source.offset() < 2:
            parts[source.offset()] = value
        elif node.kind() in {"aten::add", "aten::add_"}:
            parts[1] = value
        elif node.kind() == "aten::mul":
            parts[0] = value
    if parts[0] is not None and parts[1] is None and parts[0].node().kind() == "aten::mul":
        cells = [v.node().inputsAt(0) for v in parts[0].node().inputs() if v.node().kind() == "aten::tanh"]
        parts[1] = cells[0] if len(cells) == 1 else None
    x, h = _cell_inputs(nodes)
    forget = [node.inputsAt(1) for node in nodes if node.kind() == "aten::mul"][:1]  # f * c comes first
    arguments = (x, (h, forget[0])) if x is not None and h is not None and forget else None
    return None if parts == [None, None] else (parts, (0, 1), arguments)


def _cell(_kind: str, nodes: list[Any], returned: list[Any]) -> Any:
    """``GRUCell`` and ``RNNCell`` give one tensor; the trace may swap their arguments."""
    x, h = _cell_inputs(nodes)
    return None if x is None or h is None or len(returned) != 1 else (returned, 0, (x, h))


def _cell_inputs(nodes: list[Any]) -> tuple[Any, Any]:
    linear = [node for node in nodes if node.kind() == "aten::linear"]
    weights = {
        node.inputsAt(1).node().s("name"): node.inputsAt(0)
        for node in linear
        if node.inputsAt(1).node().kind() == "prim::GetAttr"
    }
    return weights.get("weight_ih"), weights.get("weight_hh")


def _attention(_kind: str, nodes: list[Any], returned: list[Any]) -> Any:
    """``(out, weights)``: the output went through ``out_proj``, the weights did not."""
    parts: Parts = [None, None]
    for value in returned:
        if value.node().kind() == _FUSED_ATTENTION:
            parts[value.offset()] = value
        else:
            parts[0 if _is_projected(value) else 1] = value
    return parts, (0, 1), _attention_arguments(nodes, parts[0] is not None)


def _attention_arguments(nodes: list[Any], complete: bool) -> Nesting | None:
    """Query, key and value, from the projections: tensors that are one in the model have one in common."""
    sources = []
    for node in nodes:
        if node.kind() == _FUSED_ATTENTION:
            sources = list(node.inputs())[:3]
        elif node.kind() == "aten::linear" and not _is_projected(node.inputsAt(1)):
            sources.append(_through(node.inputsAt(0), {"aten::transpose", "aten::unsqueeze"}))
    if len(sources) == 1:
        return (sources[0], sources[0], sources[0])
    if len(sources) == 2 and complete:
        return (sources[0], sources[1], sources[1])
    return tuple(sources) if len(sources) == 3 else None


def _is_projected(value: Any) -> bool:
    seen, pending = set(), [value]
    while pending:
        node = pending.pop().node()
        if node.kind() == "prim::GetAttr" and node.s("name") == "out_proj":
            return True
        for other in node.inputs():
            if other.unique() not in seen:
                seen.add(other.unique())
                pending.append(other)
    return False


_FINDERS: dict[str, Callable[[str, list[Any], list[Any]], Any]] = {
    **dict.fromkeys(_SEQUENCES, _sequence),
    "LSTMCell": _lstm_cell,
    "GRUCell": _cell,
    "RNNCell": _cell,
    "MultiheadAttention": _attention,
}
