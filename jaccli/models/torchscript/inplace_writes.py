"""What a model may write to in place, from its graphs alone.

Every run starts from the state that the model had when it was handed over, so a tensor attribute that the code
may write to is cloned when it is read. Values that may share memory are put into one set (over all functions that
the forward pass can reach, in any order), and an operator that writes marks the whole set. Where the analysis is
unsure it clones.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from jaccli.models.interpretation.alias_sets import AliasSets
from jaccli.models.torchscript.operators import schema_of
from jaccli.models.torchscript.script_types import carries_tensors


class FunctionLookup(Protocol):
    """Where functions are looked up by qualified name."""

    def graph(self, name: str) -> Any:
        """The graph of a function or method, None if there is no such."""

    def implementations(self, method: str) -> list[str]:
        """All methods of that name, for a call through an interface."""


class WriteAnalysis:
    """Values and attributes that may be written to, over all functions that can be reached from ``root``.

    Keys: ``(function, number of a value)`` and ``(class, name of an attribute)``: all objects of a class share their
    attributes' sets, and all calls of a function its values'. So the result is an upper bound, whatever the order of
    calls, and each function is visited once.
    """

    def __init__(self, functions: FunctionLookup, root: str) -> None:
        self.functions = functions
        self.fields: set[tuple[str, str]] = set()
        self._sets = AliasSets[Hashable]()
        self._written: list[Hashable] = []
        self._seen: set[str] = set()
        pending = [root]
        while pending:
            name = pending.pop()
            graph = functions.graph(name)
            if name not in self._seen and graph is not None:
                self._seen.add(name)
                pending += [callee for node in walk(graph) for callee in self._visit(name, node)]
        self._dirty = {member for key in self._written for member in self._sets.members(key)}

    def field_is_written(self, cls: str, name: str) -> bool:
        """Whether an attribute of a class may be written to in place."""
        return (cls, name) in self._dirty

    def value_is_written(self, function: str, value: Any) -> bool:
        """Whether a value of a function's graph may be written to in place."""
        return (function, value.unique()) in self._dirty

    def _visit(self, function: str, node: Any) -> list[str]:
        kind = node.kind()
        if kind in {"prim::GetAttr", "prim::SetAttr"}:
            self._field(function, node)
        elif kind in {"prim::CallMethod", "prim::CallFunction"}:
            return self._call(function, node)
        elif kind == "prim::fork":
            return self._fork(function, node)
        elif kind in {"prim::Enter", "prim::Exit"}:
            method = "__enter__" if kind == "prim::Enter" else "__exit__"
            return [f"{node.inputsAt(0).type().qualified_name()}.{method}"]
        elif kind in {"prim::If", "prim::Loop"}:
            self._blocks(function, node)
        elif kind != "prim::Constant":
            self._operator(function, node)
        return []

    def _keys(self, function: str, values: Any) -> list[Hashable]:
        return [(function, v.unique()) for v in values if carries_tensors(v)]

    def _field(self, function: str, node: Any) -> None:
        owner = node.inputsAt(0).type()
        key = (owner.qualified_name(), node.s("name"))
        self.fields.add(key)
        value = node.output() if node.kind() == "prim::GetAttr" else node.inputsAt(1)
        self._sets.unite([key, *self._keys(function, [value])])

    def _call(self, function: str, node: Any) -> list[str]:
        inputs = list(node.inputs())
        owner = inputs[0].type()
        if node.kind() == "prim::CallFunction":
            callees, inputs = [owner.annotation_str], inputs[1:]
        elif owner.kind() == "InterfaceType":
            callees = self.functions.implementations(node.s("name"))
        else:
            callees = [f"{owner.qualified_name()}.{node.s('name')}"]
        for callee in callees:
            graph = self.functions.graph(callee)
            if graph is not None:
                self._pair(function, inputs, callee, graph.inputs())
                self._pair(function, node.outputs(), callee, graph.outputs())
        return callees

    def _fork(self, function: str, node: Any) -> list[str]:
        callee, graph = f"{function}/{node.output().unique()}", node.g("Subgraph")
        self._pair(function, node.inputs(), callee, graph.inputs())
        self._pair(function, node.outputs(), callee, graph.outputs())
        return [name for inner in walk(graph) for name in self._visit(callee, inner)]

    def _pair(self, function: str, values: Any, callee: str, others: Any) -> None:
        for value, other in zip(values, others, strict=False):
            if carries_tensors(value) or carries_tensors(other):
                self._sets.unite([(function, value.unique()), (callee, other.unique())])

    def _blocks(self, function: str, node: Any) -> None:
        outputs = list(node.outputs())
        carried = list(node.inputs())[2:] if node.kind() == "prim::Loop" else None
        for block in node.blocks():
            results = list(block.outputs())
            if carried is not None:
                results = results[1:]  # the first is the condition; of the block's inputs it is the counter
                self._pair(function, outputs, function, list(block.inputs())[1:])
                self._pair(function, outputs, function, carried)
            self._pair(function, outputs, function, results)

    def _operator(self, function: str, node: Any) -> None:
        inputs, outputs = list(node.inputs()), list(node.outputs())
        schema = schema_of(node)
        if schema is None or node.kind().startswith("prim::"):
            self._sets.unite(self._keys(function, inputs + outputs))
            return
        aliased = []
        for value, argument in zip(inputs, schema.arguments, strict=False):
            info = argument.alias_info
            if info is not None:
                aliased.append(value)
            writes = info is not None and info.is_write
            # Batch normalisation writes its statistics in training mode, and its schema does not say so.
            if (writes or argument.name in {"running_mean", "running_var"}) and carries_tensors(value):
                self._written += self._keys(function, [value]) if _is_tensor(value) else []
        # ``-> t`` and the like: an operator on lists may hand back any of its inputs, and no annotation says which.
        generic = any("Tensor" not in str(r.type) for r in schema.returns)
        aliased += [v for v, r in zip(outputs, schema.returns, strict=False) if r.alias_info is not None]
        self._sets.unite(self._keys(function, inputs + outputs if generic else aliased))


def walk(graph: Any) -> Iterator[Any]:
    """All nodes of a graph or block, those of nested blocks included."""
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from walk(block)


def _is_tensor(value: Any) -> bool:
    kind = value.type()
    return kind.kind() == "TensorType" or (kind.kind() == "OptionalType" and "Tensor" in str(kind))
