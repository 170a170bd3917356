"""J as a program that gradients flow through: to the samples and to what the network is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.function import LayerFunction
from jaccli.graph.elimination.accumulate import accumulated, factors, plan_elimination
from jaccli.graph.elimination.products import Products
from jaccli.graph.program.codegen import Program, emitted
from jaccli.graph.program.trace import as_steps, live_steps
from jaccli.graph.trace.capture import capture, needed, recording
from jaccli.graph.trace.effects import BLIND
from jaccli.graph.trace.ir import CaptureGap, Node, Value, gap_where_it_fails, swap
from jaccli.graph.trace.tracer import Tracer

aten = torch.ops.aten


@dataclass(frozen=True)
class Accumulation:
    """The operators that make J, or products with it, none of which writes in place.

    Args:
        program: from the tensors of the call, those of the network, and vectors, to the results.
        way: what the guards read when it was recorded.
        results: how many there are.
    """

    program: Program
    way: list[Any]
    results: int

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """J ``(batch, n_out, n_in)``; or L ``(batch, n_out, m)`` and R ``(batch, m, n_in)`` of J = LR; or products.

        None where the model takes another branch than it did. Cost: that of the structured method; its
        backward pass costs about twice as much, and keeps every intermediate result until then.
        """
        made = self.program.call(*tensors, None)
        return made[: self.results] if [guard.item() for guard in made[self.results :]] == self.way else None


@gap_where_it_fails()
def accumulation(
    f: LayerFunction, tensors: Sequence[Tensor], vectors: Tensor | None = None, there_and_back: bool = False
) -> Accumulation:
    """Record the engine's run once. To be called within the network's session, frozen.

    Args:
        f: the function, at the point that it was captured for.
        tensors: of the network, that gradients are wanted by.
        vectors: U ``(batch, n_out, k)``: what is recorded is JᵀU, or with ``there_and_back`` JJᵀU, of any U.

    Raises:
        CaptureGap: the network does something that cannot be recorded.
    """
    graph = capture(f, tensors)
    recorder, inputs = graph.recorder, list(graph.inputs)
    made = len(recorder.nodes)
    recorder.derive()
    with recording(recorder):
        # Planning makes tensors of its own, as filters with an upsampling folded in.
        plan = plan_elimination(graph) if vectors is None else None
        products = Products(graph) if vectors is not None else None
        if products is not None and vectors is not None:
            inputs.append(recorder.declare(vectors))
            image = products.pull(vectors)
            found: tuple[Tensor, ...] = (products.push(image) if there_and_back else image,)
        else:
            assert plan is not None
            found = factors(plan) or (accumulated(plan),)
        results = [recorder.value_of(m) for m in found]
    nodes, wanted = _attached(recorder.nodes, made, [*results, *(v for v, _ in graph.guards)])
    tracer = Tracer()
    nodes = needed(nodes, wanted)
    _check_flow(nodes, inputs, wanted)
    steps = as_steps(nodes, inputs, tracer)
    given, variables = ([tracer.slot_of(v.tensor) for v in values] for values in (inputs, wanted))
    program = emitted(live_steps(steps, variables), given, variables, housed=False, placing=False)
    return Accumulation(program, [read for _, read in graph.guards], len(results))


def _attached(nodes: Sequence[Node], made: int, wanted: Sequence[Value]) -> tuple[list[Node], list[Value]]:
    """In operators that gradients flow through.

    Without the engine's detaching, which comes after the first ``made`` nodes: it takes derivatives of single
    operators. Where the model itself detaches, no gradient flows.
    """
    same: dict[Value, Value] = {}

    def attached(value: Value) -> Value:
        return same.get(value, value)

    kept: list[Node] = []
    for number, node in enumerate(nodes):
        args, kwargs = swap(node.args, attached), swap(node.kwargs, attached)
        if node.op is aten.detach.default and number >= made:
            same[node.outputs[0]] = args[0]
        elif node.op is aten.copy.default:
            kept.append(_made(aten.expand.default, (args[1], list(node.outputs[0].shape))))
            kept.append(_made(aten._to_copy.default, (kept[-1].outputs[0],), {"dtype": node.outputs[0].tensor.dtype}))
            same[node.outputs[0]] = kept[-1].outputs[0]
        elif node.op is aten.silu_backward.default:
            kept += _silu_backward(*args)
            same[node.outputs[0]] = kept[-1].outputs[0]
        else:
            kept.append(Node(node.op, args, kwargs, node.outputs, node.view))
            for old, steps in _moments(kept[-1]).items():
                kept += steps
                same[old] = steps[-1].outputs[0]
    return kept, [attached(value) for value in wanted]


def _made(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """A node, run."""
    tensor = op(*swap(args, lambda v: v.tensor), **(kwargs or {}))
    node = Node(op, args, kwargs or {})
    node.outputs.append(Value(tensor, "node", node, varies=True))
    return node


def _silu_backward(cotangent: Value, x: Value) -> list[Node]:
    """u σ(x) (1 + x (1 − σ(x))); the kernel of that name has no derivative."""
    s = _made(aten.sigmoid.default, (x,))
    rest = _made(aten.rsub.Scalar, (s.outputs[0], 1))
    slope = _made(aten.mul.Tensor, (x, rest.outputs[0]))
    more = _made(aten.add.Scalar, (slope.outputs[0], 1))
    both = _made(aten.mul.Tensor, (s.outputs[0], more.outputs[0]))
    return [s, rest, slope, more, both, _made(aten.mul.Tensor, (cotangent, both.outputs[0]))]


def _moments(node: Node) -> dict[Value, list[Node]]:
    """The mean and 1/σ that a normalisation puts out beside its result, through which no gradient flows."""
    name = node.name.removeprefix("aten.")
    if name not in ("native_layer_norm", "native_group_norm"):
        return {}
    found = {}
    x, shape, steps = node.args[0], node.args[1], []
    if name == "native_group_norm":
        samples, groups = node.args[3], node.args[6]
        steps.append(_made(aten.reshape.default, (x, [samples, groups, -1])))
        x, shape = steps[0].outputs[0], [0]
    dims = [d - len(shape) for d in range(len(shape))]
    keep = name == "native_layer_norm"
    for value in node.outputs[1:]:
        if value.out == 1:
            found[value] = [*steps, _made(aten.mean.dim, (x, dims, keep))]
            continue
        var = _made(aten.var.correction, (x, dims), {"correction": 0, "keepdim": keep})
        shifted = _made(aten.add.Scalar, (var.outputs[0], node.args[-1]))
        found[value] = [*steps, var, shifted, _made(aten.rsqrt.default, (shifted.outputs[0],))]
    return found


def _check_flow(nodes: Sequence[Node], inputs: Sequence[Value], wanted: Sequence[Value]) -> None:
    """Run the nodes once with gradients: some kernels have results that none flows through, and do not say so.

    Raises:
        CaptureGap: such a result is used.
    """
    now = {v: v.tensor.detach().requires_grad_(v.tensor.is_floating_point()) for v in inputs}
    used = {v for node in nodes for v in node.inputs()} | set(wanted)

    def tensor(value: Value) -> Tensor:
        return now.get(value, value.tensor)

    with torch.enable_grad():
        for node in nodes:
            result = node.op(*swap(node.args, tensor), **swap(node.kwargs, tensor))
            for value in node.outputs:
                now[value] = result[value.out] if isinstance(result, list | tuple) else result
                hangs = any(tensor(v).requires_grad for v in node.inputs())
                lost = hangs and value.tensor.is_floating_point() and not now[value].requires_grad
                blind = node.op.overloadpacket in BLIND or node.op is aten.detach.default
                if lost and value in used and not blind:
                    raise CaptureGap(f"no gradient flows through output {value.out} of {node.name}")
