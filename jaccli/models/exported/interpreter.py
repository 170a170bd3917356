"""Runs a graph, operator by operator, and reports its module calls to a tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.models.exported.code import MODEL_DEVICE, ExportedGraph, ExportedNode, Ref, graphs, refs
from jaccli.models.exported.control import CONTROL
from jaccli.models.exported.inplace_writes import Rewrites, find_rewrites
from jaccli.models.exported.module_calls import ModuleCall, ModuleStack, find_calls, state_names
from jaccli.models.interpretation.last_use import expiring
from jaccli.models.interpretation.module_calls import CallReports
from jaccli.models.interpretation.nested import Nesting, arrange, pairs
from jaccli.models.interpretation.replaced_operators import IN_EXPORTS, VIEWS
from jaccli.models.screening.argument_checks import guarded
from jaccli.networks.dtypes import follows
from jaccli.networks.network import Tap

_CONTROL: Final = frozenset(CONTROL.values())


@dataclass(frozen=True)
class GraphAnalysis:
    """What is known about a graph before it runs.

    Attributes:
        rewrites: how operators run that write in place.
        entering: node → the module calls that begin before it, outer ones first.
        leaving: node → the module calls that end after it, inner ones first.
        expiring: node → the values that nobody reads after it.
    """

    rewrites: Rewrites
    entering: dict[int, list[ModuleCall]]
    leaving: dict[int, list[ModuleCall]]
    expiring: dict[int, list[str]]


def analyse(graph: ExportedGraph, state: frozenset[str], outer: ModuleStack = (), *, inner: bool = False) -> None:
    """Find, once, the module calls, in-place writes and lifetimes of a graph and of those inside it.

    Args:
        graph: gets its ``analysis``.
        state: inputs that hold parameters, buffers and constants.
        outer: the module calls that the graph is inside of.
        inner: whether it is a graph inside another.
    """
    names = state_names(graph, state)
    for node in graph.nodes:
        for part in graphs(node):
            constant = frozenset(name for name, source in _operands(node, part) if source in names)
            analyse(part, constant, (*outer, *(node.stack or ())), inner=True)
    entering: dict[int, list[ModuleCall]] = {}
    leaving: dict[int, list[ModuleCall]] = {}
    for call in find_calls(graph, outer, names):
        entering.setdefault(call.first, []).append(call)
        leaving.setdefault(call.last, []).insert(0, call)
    reported = {last: [name for call in calls for name in call.outputs] for last, calls in leaving.items()}
    uses = [[*node.defined(), *node.used(), *reported.get(index, ())] for index, node in enumerate(graph.nodes)]
    expired = expiring(uses, {*refs(graph.outputs), *state})
    graph.analysis = GraphAnalysis(find_rewrites(graph, state, inner=inner), entering, leaving, expired)


def _operands(node: ExportedNode, part: ExportedGraph) -> list[tuple[str, str]]:
    """Inputs of an inner graph with the outer values that go in there, where that is plain to see."""
    # Operands come last in the arguments of all operators of ``control``.
    operands = list(refs(node.args))[-len(part.inputs) :] if part.inputs else []
    if len(operands) != len(part.inputs):
        return []
    return [(name, outer) for name, outer in zip(part.inputs, operands, strict=True) if name is not None]


class ProgramRun:
    """One run of a program.

    Args:
        device: where tensors that the graph makes are put.
        dtypes: floating dtype as exported → as cast, for operators that make tensors.
        tap: sees module calls.
    """

    def __init__(self, device: torch.device, dtypes: Mapping[torch.dtype, torch.dtype], tap: Tap | None = None) -> None:
        self.device, self.dtypes, self.reports = device, dtypes, CallReports(tap)

    def run(self, graph: ExportedGraph, values: dict[str, Any]) -> _GraphRun:
        """Run a graph on named inputs; the scope returned still holds its results."""
        scope = _GraphRun(self, graph, values)
        scope.run()
        return scope

    def run_inner(self, graph: ExportedGraph, operands: Sequence[Any]) -> tuple[Any, ...]:
        """Run a graph inside a control-flow operator."""
        if len(operands) != len(graph.inputs):
            raise RefusedError(
                "a control-flow block of the exported model gets the wrong number of inputs",
                f"expected {len(graph.inputs)}, and it gets {len(operands)}",
                "copy, download or export it again",
            )
        values = {name: value for name, value in zip(graph.inputs, operands, strict=True) if name is not None}
        scope = self.run(graph, values)
        return tuple(scope.value(item) for item in graph.outputs)


class _GraphRun:
    """The values of one graph while it runs.

    Invariants: a value is there from the node that defines it to the last node, or report of a call, that reads it.
    What a tap put in for an input of a call is seen by nodes inside of the call alone; what it put in for an output is
    seen by all nodes after the call. A value that the graph may write to in place belongs to this run.
    """

    def __init__(self, program_run: ProgramRun, graph: ExportedGraph, values: dict[str, Any]) -> None:
        self._program_run, self._graph, self._values = program_run, graph, values
        self._analysis: GraphAnalysis = graph.analysis
        # Of the calls that are open, outermost first: their numbers, and the inputs that a tap replaced.
        self._open: dict[ModuleCall, tuple[int, dict[str, Any]]] = {}

    def run(self) -> None:
        analysis = self._analysis
        # Releases come last: a tap sees the outputs of calls that end here.
        for index, node in enumerate(self._graph.nodes):
            for call in analysis.entering.get(index, ()):
                self._enter(call)
            self._step(index, node)
            for call in analysis.leaving.get(index, ()):
                self._leave(call)
            for name in analysis.expiring.get(index, ()):
                self._values.pop(name, None)

    def value(self, arg: Any) -> Any:
        """An argument with references replaced by what they refer to."""
        # As ``map_leaves``, with the usual case first: this runs for every argument of every operator.
        if isinstance(arg, Ref):
            return self._lookup(arg.name)
        if arg is MODEL_DEVICE:
            return self._program_run.device
        if isinstance(arg, (list, tuple)):
            return type(arg)(self.value(item) for item in arg)
        if isinstance(arg, dict):
            return {key: self.value(item) for key, item in arg.items()}
        return arg

    def _scope(self, name: str) -> dict[str, Any]:
        """Where the value of this name is: an input that a tap replaced counts only inside of the call."""
        for _, replaced in reversed(self._open.values()):
            if name in replaced:
                return replaced
        return self._values

    def _lookup(self, name: str) -> Any:
        return self._scope(name)[name]

    def _step(self, index: int, node: ExportedNode) -> None:
        args, kwargs = self.value(node.args), self.value(node.kwargs)
        rewrite = self._analysis.rewrites.functions.get(index)
        if node.op in _CONTROL:
            result = node.op(self._program_run.run_inner, *args, **kwargs)
        elif rewrite is not None:
            result = (IN_EXPORTS.get(rewrite[0]) or guarded(rewrite[0]))(*args, **kwargs)
            result = self._overwrite(rewrite[1], result)
        else:
            if self._program_run.dtypes:
                args, kwargs = self._cast(node.target.split(".")[1], args, kwargs)
            result = self._function(node)(*args, **kwargs)
        self._store(node, result)

    def _cast(self, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Arguments of an operator in a cast model: dtypes as cast, where they follow (see ``dtypes.follows``)."""
        dtypes = self._program_run.dtypes

        def cast(value: Any) -> Any:
            is_cast = isinstance(value, torch.dtype) and value in dtypes and follows(operator, value, dtypes[value])
            return dtypes[value] if is_cast else value

        return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}

    def _function(self, node: ExportedNode) -> Callable[..., Any]:
        """What runs for a node; a view of what is written to in place must stay one."""
        if node.op in VIEWS and self._analysis.rewrites.copied.isdisjoint(node.defined()):
            return VIEWS[node.op]
        return IN_EXPORTS.get(node.op) or guarded(node.op)

    def _overwrite(self, name: str, result: Any) -> Any:
        """The value that a write in place would have left under ``name``."""
        scope = self._scope(name)
        scope[name] = result.to(scope[name].dtype)
        return scope[name]

    def _store(self, node: ExportedNode, result: Any) -> None:
        outputs = node.outputs
        if not outputs:
            return
        single = len(outputs) == 1 and (isinstance(outputs[0], tuple) or not isinstance(result, (tuple, list)))
        results = (result,) if single else tuple(result)
        for output, item in zip(outputs, results, strict=False):
            if isinstance(output, tuple):
                named = zip(output, item, strict=False)
                self._values.update({name: part for name, part in named if name is not None})
            elif output is not None:
                self._values[output] = item

    def _enter(self, call: ModuleCall) -> None:
        reports = self._program_run.reports
        if not reports.wants(call.path):
            return
        names = [name for name in call.inputs if isinstance(self._lookup(name), Tensor)]
        args = tuple(map(self._lookup, names))
        number, changed = reports.enter(call.path, args)
        items = zip(names, changed, args, strict=True)
        self._open[call] = number, {name: self._writable(name, new) for name, new, old in items if new is not old}

    def _leave(self, call: ModuleCall) -> None:
        reports = self._program_run.reports
        if not reports.wants(call.path):
            return
        layout = call.layout or self._layout(call)
        output = arrange(layout, self._values)
        number, _ = self._open.pop(call)
        changed = reports.leave(call.path, number, output)
        if changed is not output:
            for name, value in pairs(layout, changed):  # what comes after the call reads the changed values
                if value is not self._values[name]:
                    self._values[name] = self._writable(name, value)

    def _layout(self, call: ModuleCall) -> Nesting:
        """Names of the output, in a tuple if there are several."""
        names = tuple(name for name in call.outputs if isinstance(self._values[name], Tensor))
        return names[0] if len(names) == 1 else names or None

    def _writable(self, name: str, value: Any) -> Any:
        """A value that may be written to, if the graph will."""
        copied = name in self._analysis.rewrites.copied and isinstance(value, Tensor)
        return value.clone() if copied else value
