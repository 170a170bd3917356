"""f recorded as an operator graph, from one forward pass."""

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
        nodes: in order of execution, those that the target needs.
        inputs: of the model: the samples first, then further tensors.
        source: h, ``(batch, *shape)``.
        target: f(h), ``(batch, *shape)``.
        recorder: what recorded them; recording can go on.
        guards: values that steered the run, with what was read.
    """

    nodes: list[Node]
    inputs: list[Value]
    source: Value
    target: Value
    recorder: Recorder
    guards: list[tuple[Value, Any]]

    @property
    def active_nodes(self) -> list[Node]:
        """The nodes on a path from source to target."""
        return [n for n in self.nodes if any(v.active for v in n.outputs) and any(v.active for v in n.inputs())]


@gap_where_it_fails()
def capture(f: LayerFunction, also: Sequence[Tensor] = ()) -> Graph:
    """Record f at its point. To be called within the network's session.

    Args:
        f: the function.
        also: tensors of the network that are inputs of the graph too, after those of the call; every operator
            on them counts as one that a gradient flows through.

    Cost: one forward pass, and some 20 µs an operator.

    Raises:
        CaptureGap: the network does something that cannot be recorded.
    """
    if any(t.device.type != "cpu" for t in tensors_in(f.inputs.args)):  # there also what lies before the source
        with unfused():
            return _captured(f, also)
    graph = _captured(f, also)
    if any(node.name in FUSED_OPERATORS for node in graph.nodes):
        # One kernel for a layer has no parts to see; without it an LSTM is made of products and activations.
        with unfused():
            return _captured(f, also)
    return graph


def _captured(f: LayerFunction, also: Sequence[Tensor]) -> Graph:
    if f.network.refuses_modes:
        raise CaptureGap("the model uses an operator that takes functions")
    recorder, drawn = Recorder(whole=bool(also)), f.network.draws.passes
    args, kwargs = f.inputs.args, dict(f.inputs.kwargs)
    inputs = [recorder.declare(t) for t in (*tensors_in((args, kwargs)), *also)]
    tap = _Mark(recorder, f.source, f.target)
    with recording(recorder):
        try:
            args = (tap.at(MODEL_INPUT, args[0]), *args[1:])
            output = f.network.run(args, kwargs, tap if tap.paths else None)
            tap.at(MODEL_OUTPUT, output)
        except StopRun:
            pass
        if tap.reached is None or tap.source is None:
            raise CaptureGap("the target was not reached")
        target = recorder.value_of(tap.reached)
    if f.network.draws.passes != drawn:  # by a generator that is not torch's: what it gave would be a constant
        raise CaptureGap("the model draws random numbers")
    return Graph(
        needed(recorder.nodes, [target, *(v for v, _ in recorder.guards)]),
        inputs,
        tap.source,
        target,
        recorder,
        list(recorder.guards),
    )


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Operators are recorded in here; nothing requires a gradient, yet the model may switch gradients off."""
    with torch.set_grad_enabled(True), recorder:
        yield


def needed(nodes: list[Node], wanted: list[Value]) -> list[Node]:
    """The nodes that the wanted values are computed from."""
    alive = set(wanted)
    kept = []
    for node in reversed(nodes):
        if any(v in alive for v in node.outputs):
            kept.append(node)
            alive.update(node.inputs())
    return kept[::-1]


class _Mark:
    """The tap of a capture: makes the source a value of its own and stops at the target."""

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
            # A copy: what else the model holds of this activation is not the variable.
            h = self.location.get(value).clone()
            self.source = self.recorder.value_of(h)
            self.source.active = True
            value = self.location.put(value, h)
        if key == self.target.boundary and self.source is not None:
            self.reached = self.target.get(value)
            raise StopRun
        return value
