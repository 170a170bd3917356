"""Every value inside a model, by PyTorch's own executor and by ours: of a script, and of an exported program."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from jaccli.models.exported.from_fx import program_from_export
from jaccli.models.exported.interpreter import ProgramRun
from jaccli.models.exported.model import ExportedModel
from jaccli.models.torchscript.binding import bind
from jaccli.models.torchscript.program import FunctionTable, ScriptProgram
from jaccli.models.torchscript.run import ScriptRun
from jaccli.models.torchscript.script_objects import map_tensors
from jaccli.models.torchscript.state import live_tree

_SHOWN = {"TensorType", "IntType", "FloatType", "BoolType", "ComplexType"}


@dataclass(frozen=True)
class Value:
    """What one node of a graph gives: in PyTorch, and here."""

    node: str
    theirs: Any
    ours: Any

    def difference(self) -> str:
        """How they differ, "" if they do not: in type, dtype, shape or number."""
        a, b = self.theirs, self.ours
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return f"{self.node}: {a.dtype} {tuple(a.shape)} in PyTorch, {b.dtype} {tuple(b.shape)} here"
            same = torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) if a.numel() else True
        elif type(a) is not type(b):
            return f"{self.node}: {type(a).__name__} in PyTorch, {type(b).__name__} here"
        else:
            same = a == b or (a != a and b != b) or (isinstance(a, (float, complex)) and abs(a - b) <= 1e-12 * abs(a))
        return "" if same else f"{self.node}: {a} in PyTorch, {b} here"


def of_script(module: torch.jit.ScriptModule, args: tuple[Any, ...], runs: int = 1) -> list[Value]:
    """Values at the top of a module's graph, all its calls inlined, as the file has them."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    module = torch.jit.load(io.BytesIO(buffer.getvalue()))
    graph = _opened(module)
    args = tuple(bind(module._c._get_method("forward").schema, args, {}))
    function = torch._C._create_function_from_graph("opened", graph)
    for _ in range(runs):
        theirs = function(module._c, *map_tensors(args, Tensor.clone))
    module = torch.jit.load(io.BytesIO(buffer.getvalue()))
    code = _OneGraph(module, graph)
    root = live_tree(module, code.module_in_unit)
    program = ScriptProgram(code, root)
    run = ScriptRun(program, None)
    ours = program.method(root.cls, "forward")(run, [run.module(root), *map_tensors(args, Tensor.clone)])
    run.finish()
    names = [f"{value.node().kind()} %{value.debugName()}" for value in _given(graph)]
    return [Value(*item) for item in zip(names, theirs, ours, strict=True)]


def _opened(module: Any) -> Any:
    """A copy of the forward graph that returns all that it makes at its top."""
    graph = module._c._get_method("forward").graph.copy()
    torch._C._jit_pass_inline(graph)
    made = [v for node in graph.nodes() for v in node.outputs() if v.type().kind() in _SHOWN]
    made = [value for value in made if _is_certain(value)]
    both = graph.create("prim::TupleConstruct", made, 1)
    graph.appendNode(both)
    both.output().setType(torch._C.TupleType([value.type() for value in made]))
    for index in reversed(range(len(list(graph.outputs())))):
        graph.eraseOutput(index)
    graph.registerOutput(both.output())
    return graph


def _is_certain(value: Any) -> bool:
    """Whether it is made by a node, and not left open by a branch that returns or raises."""
    node = value.node()
    if node.kind() == "prim::If":
        ends = [list(block.outputs())[value.offset()] for block in node.blocks()]
        return all(end.node().kind() == "prim::Constant" or _is_certain(end) for end in ends)
    return node.kind() not in {"prim::Constant", "prim::Uninitialized"}


def _given(graph: Any) -> list[Any]:
    (output,) = graph.outputs()
    return list(output.node().inputs())


class _OneGraph(FunctionTable):
    """The code of a module whose forward is one graph."""

    def __init__(self, module: Any, graph: Any) -> None:
        super().__init__(module)
        self._forward, self._graph = f"{self.module_in_unit._type().qualified_name()}.forward", graph

    def graph(self, name: str) -> Any:
        return self._graph if name == self._forward else super().graph(name)


class _Recorder(fx.Interpreter):
    """PyTorch's interpreter of an exported graph, with all values kept."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.kept[n.name] = result = super().run_node(n)
        return result


def of_export(exported: Any, args: tuple[Any, ...]) -> list[Value]:
    """Values of an exported program's graph, by ``torch.fx`` and here; leaves no trace in either."""
    held = {**exported.state_dict, **exported.constants}
    given = iter(torch.utils._pytree.tree_leaves(map_tensors(args, Tensor.clone)))
    inputs = [
        held[spec.target].clone() if spec.target is not None else next(given)
        for spec in exported.graph_signature.input_specs
    ]
    recorder = _Recorder(exported.graph_module)
    recorder.run(*map_tensors(inputs, Tensor.clone))
    program, tensors = program_from_export(exported)
    model = ExportedModel(program, tensors)
    kept: dict[str, Any] = {}
    analysis = program.graph.analysis
    analysis.expiring.clear()
    values = dict(zip((n for n in program.graph.inputs if n is not None), inputs, strict=True))
    kept = ProgramRun(torch.device("cpu"), model._dtypes).run(program.graph, values)._values
    return [
        Value(f"{node.target} %{name}", recorder.kept[name], kept[name])
        for node in exported.graph_module.graph.nodes
        if (name := node.name) in kept
        and name in recorder.kept
        and isinstance(recorder.kept[name], (Tensor, int, float))
    ]
