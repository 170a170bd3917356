"""J as a program that gradients flow through: to the samples, and to the parameters of the network.

For a penalty on J in training: J's own derivative is needed, which the engine's run, recorded and attached to autograd
again, has. Such programs write nothing in place, and have no memory plan: the backward pass reads all results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.function import LayerFunction
from jaccli.graph.elimination.accumulate import accumulated, factors, plan_elimination
from jaccli.graph.elimination.products import Products
from jaccli.graph.program.codegen import Program, generate
from jaccli.graph.program.dead_code import remove_dead_code
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.trace import as_instructions
from jaccli.graph.trace.capture import capture, needed, recording
from jaccli.graph.trace.effects import BLIND
from jaccli.graph.trace.ir import CaptureGap, Node, Value, gap_where_it_fails, swap
from jaccli.graph.trace.tracer import Tracer

aten = torch.ops.aten


@dataclass(frozen=True)
class Accumulation:
    """J, or products with it, as a program of operators none of which writes in place.

    Args:
        program: from the tensors of the call, those of the network, and vectors, to the results and the guards' values.
        results: how many results there are.
    """

    program: Program
    results: int

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """J ``(batch, n_out, n_in)``; or L ``(batch, n_out, m)`` and R ``(batch, m, n_in)`` of J = LR; or products.

        None where the model takes another branch than it did. Cost: that of the structured method; its
        backward pass costs about twice as much, and keeps every intermediate result until then.
        """
        values = self.program.call(*tensors, None)
        guards = [guard.item() for guard in values[self.results :]]
        return values[: self.results] if guards == self.program.guards else None


@gap_where_it_fails()
def accumulation(
    f: LayerFunction, tensors: Sequence[Tensor], vectors: Tensor | None = None, there_and_back: bool = False
) -> Accumulation:
    """Record the engine's run once. To be called within the network's session, frozen.

    Args:
        f: the function, at the point that it was captured for.
        tensors: of the network, those that the results are to be differentiated by.
        vectors: U ``(batch, n_out, k)``: what is recorded is JᵀU ``(batch, n_in, k)``, or with ``there_and_back``
            JJᵀU ``(batch, n_out, k)``, of any U.

    Raises:
        CaptureGap: the network does something that cannot be recorded.
    """
    graph = capture(f, tensors)
    recorder, inputs = graph.recorder, list(graph.inputs)
    captured = len(recorder.nodes)
    recorder.derive()
    with recording(recorder):  # planning makes tensors of its own, as filters with an upsampling folded in
        if vectors is None:
            plan = plan_elimination(graph)
            matrices = factors(plan) or (accumulated(plan),)
        else:
            products = Products(graph)
            inputs.append(recorder.declare(vectors))
            image = products.pull(vectors)  # JᵀU
            matrices = (products.push(image) if there_and_back else image,)
        results = [recorder.value_of(matrix) for matrix in matrices]
    nodes, outputs = _attached(recorder.nodes, captured, [*results, *(value for value, _ in graph.guards)])
    nodes = needed(nodes, outputs)  # before the check: kernels without a gradient may stand in parts that go
    _check_flow(nodes, inputs, outputs)
    tracer = Tracer()
    body = as_instructions(nodes, inputs, tracer)
    ends = ([tracer.variable_of(value.tensor) for value in values] for values in (inputs, outputs))
    program = generate(remove_dead_code(Instructions(body, *ends)), static_memory=False, fill_output=False)
    program.guards = [read for _, read in graph.guards]
    return Accumulation(program, len(results))


def _attached(nodes: Sequence[Node], captured: int, results: Sequence[Value]) -> tuple[list[Node], list[Value]]:
    """The nodes and results in operators that gradients flow through.

    The engine, whose nodes come after the first ``captured``, takes derivatives of single operators at detached
    tensors: those detachings are left out. Where the model itself detaches, no gradient flows.
    """
    same: dict[Value, Value] = {}

    def attached(value: Value) -> Value:
        return same.get(value, value)

    flowing: list[Node] = []
    for number, node in enumerate(nodes):
        args, kwargs = swap(node.args, attached), swap(node.kwargs, attached)
        if node.op is aten.detach.default and number >= captured:
            same[node.outputs[0]] = args[0]
        elif node.op is aten.copy.default:  # its first operand is overwritten whole: only the second one counts
            expanded = _run(aten.expand.default, args[1], list(node.outputs[0].shape))
            flowing += [expanded, _run(aten._to_copy.default, expanded, dtype=node.outputs[0].tensor.dtype)]
            same[node.outputs[0]] = flowing[-1].outputs[0]
        elif node.op is aten.silu_backward.default:
            flowing += _silu_backward(*args)
            same[node.outputs[0]] = flowing[-1].outputs[0]
        else:
            flowing.append(Node(node.op, args, kwargs, node.outputs, node.view))
            for old, moments in _moments(flowing[-1]).items():
                flowing += moments
                same[old] = moments[-1].outputs[0]
    return flowing, [attached(value) for value in results]


def _run(op: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node, run; a node among its arguments stands for its first output."""
    values = tuple(a.outputs[0] if isinstance(a, Node) else a for a in args)
    node = Node(op, values, kwargs)
    node.outputs.append(Value(op(*swap(values, lambda v: v.tensor), **kwargs), "node", node, varies=True))
    return node


def _silu_backward(cotangent: Value, x: Value) -> list[Node]:
    """u σ(x) (1 + x (1 − σ(x))); the kernel of that name has no derivative."""
    s = _run(aten.sigmoid.default, x)
    rest = _run(aten.rsub.Scalar, s, 1)
    slope = _run(aten.mul.Tensor, x, rest)
    more = _run(aten.add.Scalar, slope, 1)
    both = _run(aten.mul.Tensor, s, more)
    return [s, rest, slope, more, both, _run(aten.mul.Tensor, cotangent, both)]


def _moments(node: Node) -> dict[Value, list[Node]]:
    """The mean and 1/σ that a normalisation returns beside its result, by operators that gradients flow through.

    Its kernel returns them without a derivative.
    """
    name = node.name.removeprefix("aten.")
    if name not in ("native_layer_norm", "native_group_norm"):
        return {}
    x, shape, reshaping = node.args[0], node.args[1], []
    if name == "native_group_norm":
        samples, groups = node.args[3], node.args[6]
        reshaping.append(_run(aten.reshape.default, x, [samples, groups, -1]))
        x, shape = reshaping[0], [0]
    dims = [d - len(shape) for d in range(len(shape))]
    keep = name == "native_layer_norm"
    moments = {}
    for value in node.outputs[1:]:
        if value.out == 1:
            moments[value] = [*reshaping, _run(aten.mean.dim, x, dims, keep)]
            continue
        var = _run(aten.var.correction, x, dims, correction=0, keepdim=keep)
        shifted = _run(aten.add.Scalar, var, node.args[-1])
        moments[value] = [*reshaping, var, shifted, _run(aten.rsqrt.default, shifted)]
    return moments


def _check_flow(nodes: Sequence[Node], inputs: Sequence[Value], results: Sequence[Value]) -> None:
    """Run the nodes once with gradients: some kernels have results that none flows through, and do not say so.

    Raises:
        CaptureGap: such a result is used.
    """
    computed = {v: v.tensor.detach().requires_grad_(v.tensor.is_floating_point()) for v in inputs}
    used = {v for node in nodes for v in node.inputs()} | set(results)

    def tensor(value: Value) -> Tensor:
        return computed.get(value, value.tensor)

    with torch.enable_grad():
        for node in nodes:
            result = node.op(*swap(node.args, tensor), **swap(node.kwargs, tensor))
            depends = any(tensor(v).requires_grad for v in node.inputs())
            detached = node.op.overloadpacket in BLIND or node.op is aten.detach.default
            for value in node.outputs:
                computed[value] = result[value.out] if isinstance(result, list | tuple) else result
                lost = depends and value.tensor.is_floating_point() and not computed[value].requires_grad
                if lost and value in used and not detached:
                    raise CaptureGap(f"no gradient flows through output {value.out} of {node.name}")
