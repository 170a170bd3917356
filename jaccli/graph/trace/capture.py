"""f recorded as a graph of operators, from one forward pass.

LayerFunction f at a point ─→ run of the network below a Recorder ─→ Graph: nodes from source to target
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.boundary import MODEL_INPUT, MODEL_OUTPUT, ActivationLocation, Boundary, module_paths
from jaccli.activations.function import LayerFunction
from jaccli.graph.trace.ir import CaptureGap, Node, Value, gap_where_it_fails, tensors_in
from jaccli.graph.trace.recorder import Recorder
from jaccli.networks.network import StopRun
from jaccli.runtime.kernels import FUSED_OPERATORS, unfused


@dataclass
class Graph:
    """The operators that lead to the target.

    Args:
        nodes: in order of execution, those that the target and the guards need.
        inputs: of the model: the samples first, then further tensors.
        source: h, ``(batch, *shape)``.
        target: f(h), ``(batch, *shape)``.
        recorder: what recorded them; recording can go on.
        guards: values that steered the run, with the number that was read of each. At a point where another number
            is read, the graph does not hold.
    """

    nodes: list[Node]
    inputs: list[Value]
    source: Value
    target: Value
    recorder: Recorder
    guards: list[tuple[Value, Any]]


@gap_where_it_fails()
def capture(f: LayerFunction, also: Sequence[Tensor] = ()) -> Graph:
    """Record f at its point. To be called within the network's session.

    Args:
        f: the function.
        also: tensors of the network, of any shape, that are inputs of the graph too, after those of the call;
            gradients must flow through every operator on them.

    Cost: one forward pass, and some 20 µs for each operator.

    Raises:
        CaptureGap: the network does something that cannot be recorded.
    """
    on_cpu = all(t.device.type == "cpu" for t in tensors_in(f.inputs.args))
    graph = _captured(f, also) if on_cpu else None
    if graph is not None and not any(node.name in FUSED_OPERATORS for node in graph.nodes):
        return graph
    # A fused kernel for a whole layer cannot be derived; without it an LSTM is made of products and activations.
    # On accelerators, layers before the source are fused too.
    with unfused():
        return _captured(f, also)


def _captured(f: LayerFunction, also: Sequence[Tensor]) -> Graph:
    """As ``capture``; ``also`` are tensors of any shape."""
    if f.network.refuses_modes:
        raise CaptureGap("the model uses an operator that takes functions")
    recorder, draws_before = Recorder(whole=bool(also)), f.network.draws.passes
    args, kwargs = f.inputs.args, dict(f.inputs.kwargs)
    inputs = [recorder.declare(t) for t in (*tensors_in((args, kwargs)), *also)]
    tap = _SourceAndTarget(recorder, f.source, f.target)
    with recording(recorder):
        try:
            args = (tap.at(MODEL_INPUT, args[0]), *args[1:])
            output = f.network.run(args, kwargs, tap if tap.paths else None)
            tap.at(MODEL_OUTPUT, output)
        # Raised by the tap at the target. A target that is the output is reached without it.
        except StopRun:
            pass
        if tap.reached is None or tap.source is None:
            raise CaptureGap("the target was not reached")
        target = recorder.value_of(tap.reached)
    if f.network.draws.passes != draws_before:  # by a generator other than torch's: its numbers would be constants
        raise CaptureGap("the model draws random numbers")
    guards = list(recorder.guards)
    nodes = needed(recorder.nodes, [target, *(v for v, _ in guards)])
    return Graph(nodes, inputs, tap.source, target, recorder, guards)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Record operators in here. Gradient mode is on, so that the recorder notices where the model switches it off."""
    with torch.set_grad_enabled(True), recorder:
        yield


def needed(nodes: list[Node], values: list[Value]) -> list[Node]:
    """The nodes that the values are computed from, in order."""
    alive = set(values)
    needed_nodes = []
    # In reverse, a node comes after all nodes that use its outputs.
    for node in reversed(nodes):
        if any(v in alive for v in node.outputs):
            needed_nodes.append(node)
            alive.update(node.inputs())
    return needed_nodes[::-1]


class _SourceAndTarget:
    """The tap of a capture: it makes the source a value of its own and stops the run at the target."""

    gives_copies = True

    def __init__(self, recorder: Recorder, source: ActivationLocation, target: ActivationLocation) -> None:
        self.recorder, self.location, self.target = recorder, source, target
        self.paths: frozenset[str] | None = module_paths((source.boundary, target.boundary))
        self.source: Value | None = None
        self.reached: Tensor | None = None

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.at((path, "in", call), (args, kwargs))

    def leave(self, path: str, call: int, output: Any) -> Any:
        return self.at((path, "out", call), output)

    def at(self, key: Boundary, value: Any) -> Any:
        if key == self.location.boundary and self.source is None:
            # A copy: other references that the model has to this activation are not what J is taken by.
            h = self.location.get(value).clone()
            self.source = self.recorder.value_of(h)
            self.source.active = True
            value = self.location.put(value, h)
        if key == self.target.boundary and self.source is not None:
            # What the network does after its target is not part of f, and may not be recordable.
            self.reached = self.target.get(value)
            raise StopRun
        return value
