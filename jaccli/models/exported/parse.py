"""The JSON of an archive → a ``ExportedCode``. Nothing in it is evaluated: symbols stay symbols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.models.exported.arguments import member, node_arguments, value_of
from jaccli.models.exported.code import (
    ExportedCode,
    ExportedGraph,
    ExportedNode,
    Extent,
    InputLeaf,
    Output,
    StateKind,
    graphs,
    refs,
    walk,
)
from jaccli.models.exported.container_trees import ArchivedTree, parse_spec
from jaccli.models.exported.module_stacks import parse_stack
from jaccli.models.exported.operators import resolve, skipped
from jaccli.text.escape import quote

_SYMBOL: Final = re.compile(r"(?:Symbol\('(\w+)'[^()]*\)|([A-Za-z_]\w*))", re.ASCII)
_STATE_FIELDS: Final[dict[str, tuple[StateKind, str]]] = {
    "parameter": ("parameter", "parameter_name"),
    "buffer": ("buffer", "buffer_name"),
    "tensor_constant": ("constant", "tensor_constant_name"),
}


def parse_program(raw: Mapping[str, Any], *, trust: bool = False) -> ExportedCode:
    """The program that an archive's JSON describes.

    Raises:
        RefusedError: the JSON is damaged or of a format that is not known.
        UnsupportedError: an operator that is not run, or a custom object.
    """
    try:
        return _Parser(raw, trust).program()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        version = raw.get("torch_version") if isinstance(raw, Mapping) else None
        raise RefusedError(
            f"the graph in the archive cannot be read (written by torch {quote(version, 24)})",
            "expected the format of torch 2.3 or later",
            "export the model again with a current torch",
        ) from error


class _Parser:
    def __init__(self, raw: Mapping[str, Any], trust: bool) -> None:
        self._raw, self._trust = raw, trust
        self._module = raw["graph_module"]
        self._listed = {str(entry["fqn"]): "" for entry in self._module["module_call_graph"]}
        self._ranges: Mapping[str, Any] = raw.get("range_constraints") or {}

    def program(self) -> ExportedCode:
        raw_graph, signature = self._module["graph"], self._module["signature"]
        graph = self.graph(raw_graph)
        call = next(entry["signature"] for entry in self._module["module_call_graph"] if entry["fqn"] == "")
        fields = self._module.get("treespec_namedtuple_fields") or {}
        in_tree, out_tree = (parse_spec(call[key], fields) for key in ("in_spec", "out_spec"))
        state, leaves = self.inputs(signature["input_specs"], raw_graph["tensor_values"])
        results, mutations = self.outputs(signature["output_specs"])
        if in_tree.size() != len(leaves) or out_tree.size() != len(results):
            raise ValueError("the number of inputs or outputs")
        inputs = {*state, *(leaf.name for leaf in leaves if leaf.name is not None)}
        _check_names(graph, inputs)
        if not {*refs(results), *refs(mutations)} <= set(refs(graph.outputs)):
            raise ValueError("a result that is not an output")
        names = call.get("forward_arg_names")
        return ExportedCode(
            graph=graph,
            state=state,
            leaves=tuple(leaves),
            in_tree=_rooted(in_tree),
            out_tree=out_tree,
            results=tuple(results),
            mutations=mutations,
            modules=module_types(self._listed, graph),
            argument_names=tuple(str(name) for name in names) if names else None,
        )

    def graph(self, raw: Mapping[str, Any]) -> ExportedGraph:
        inputs = tuple(_input_name(item) for item in raw["inputs"])
        nodes = [node for item in raw["nodes"] if (node := self.node(item)) is not None]
        return ExportedGraph(inputs, nodes, tuple(value_of(item, self.graph) for item in raw["outputs"]))

    def node(self, raw: Mapping[str, Any]) -> ExportedNode | None:
        target = str(raw["target"])
        op = resolve(target, trust=self._trust)
        if skipped(op):
            return None
        args, kwargs = node_arguments(op, raw["inputs"], self.graph)
        outputs = tuple(_output(item) for item in raw["outputs"])
        stack = parse_stack((raw.get("metadata") or {}).get("nn_module_stack"), self._listed)
        return ExportedNode(target.removeprefix("torch.ops."), op, args, kwargs, outputs, stack)

    def inputs(
        self, specs: list[Mapping[str, Any]], values: Mapping[str, Any]
    ) -> tuple[dict[str, tuple[StateKind, str]], list[InputLeaf]]:
        state: dict[str, tuple[StateKind, str]] = {}
        leaves: list[InputLeaf] = []
        for item in specs:
            kind, spec = member(item)
            if kind in _STATE_FIELDS:
                label, field = _STATE_FIELDS[kind]
                state[spec["arg"]["name"]] = (label, str(spec[field]))
            elif kind == "user_input":
                leaves.append(self.leaf(spec["arg"], values))
            elif kind == "constant_input":
                leaves.append(InputLeaf(None, value_of(spec["value"], self.graph)))
            else:
                raise UnsupportedError(
                    f"the exported model takes a {kind.replace('_', ' ')[:40]!r} as an input",
                    "expected tensors and numbers",
                    "re-export the model without it",
                )
        return state, leaves

    def leaf(self, arg: Mapping[str, Any], values: Mapping[str, Any]) -> InputLeaf:
        name = _input_name(arg)
        if name is None:
            return InputLeaf(None, value_of(arg, self.graph))
        if "as_tensor" not in arg:
            return InputLeaf(name)
        return InputLeaf(name, None, tuple(self.extent(size) for size in values[name]["sizes"]))

    def extent(self, raw: Mapping[str, Any]) -> Extent:
        if raw.get("as_int") is not None:
            return Extent(int(raw["as_int"]))
        match = _SYMBOL.fullmatch(str(raw["as_expr"]["expr_str"]))
        if match is None:
            return Extent(None)
        symbol = match[1] or match[2]
        bounds = self._ranges.get(symbol) or {}
        low, high = bounds.get("min_val"), bounds.get("max_val")
        return Extent(None, symbol, int(low or 0), int(high) if isinstance(high, int) else None)

    def outputs(self, specs: list[Mapping[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
        results: list[Any] = []
        mutations: dict[str, Any] = {}
        for item in specs:
            kind, spec = member(item)
            if kind == "user_output":
                results.append(value_of(spec["arg"], self.graph))
            elif kind == "loss_output":
                results.append(value_of({"as_tensor": spec["arg"]}, self.graph))
            elif kind == "buffer_mutation":
                mutations[str(spec["buffer_name"])] = value_of({"as_tensor": spec["arg"]}, self.graph)
            elif kind != "user_input_mutation":
                raise UnsupportedError(
                    f"the exported program returns a {kind.replace('_', ' ')[:40]!r}",
                    "expected tensors and numbers",
                    "re-export the model without it",
                )
        return results, mutations


def module_types(listed: Mapping[str, str], graph: ExportedGraph) -> dict[str, str]:
    """Module path → short type name: those listed and those met in the graph, parents before children."""
    # ``b@1`` is the second call of ``b``, unless a module is named so.
    types = {path: "" for path in listed if path and (path.rpartition("@")[0] or path) not in {*listed} - {path}}
    for node in walk(graph):
        for entry in node.stack or ():
            types[entry.path] = types.get(entry.path) or entry.type.rsplit(".", 1)[-1]
    children: dict[str, list[str]] = {}
    for path in types:
        children.setdefault(path.rpartition(".")[0], []).append(path)
    # Parents that nothing is known of (a list of modules) leave their children at the top.
    tops = [path for parent, paths in children.items() if parent not in types for path in paths]
    ordered: dict[str, str] = {}
    waiting = tops[::-1]
    while waiting:
        path = waiting.pop()
        ordered[path] = types[path] or "Module"
        waiting.extend(reversed(children.get(path, [])))
    return ordered


def _check_names(graph: ExportedGraph, inputs: set[str]) -> None:
    """Check that every value is defined once, before it is read: the graph runs in this order, and names are unique."""
    if {name for name in graph.inputs if name is not None} != inputs:
        raise ValueError("inputs that the graph does not have")
    defined_before = set(inputs)
    for node in graph.nodes:
        if not defined_before.issuperset(node.used()):
            raise ValueError("a value that is not there yet")
        for inner in graphs(node):
            _check_names(inner, {name for name in inner.inputs if name is not None})
        defined = list(node.defined())
        if len(set(defined)) < len(defined) or defined_before & set(defined):
            raise ValueError("a value that is defined twice")
        defined_before.update(defined)
    if not defined_before.issuperset(refs(graph.outputs)):
        raise ValueError("an output that is not there")


def _rooted(tree: ArchivedTree) -> ArchivedTree:
    """The tree of (args, kwargs); nothing else can be called."""
    if tree.kind != "tuple" or len(tree.children) != 2 or tree.children[1].kind != "dict":
        raise ValueError("inputs that are not args and kwargs")
    return tree


def _input_name(arg: Mapping[str, Any]) -> str | None:
    """The name that an input or output has in the graph, None where a constant stands."""
    if arg.get("as_tensor") is not None:
        return str(arg["as_tensor"]["name"])
    for kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        if arg.get(kind) is not None:
            name = arg[kind].get("as_name")
            return None if name is None else str(name)
    if arg.get("as_optional_tensor") is not None:
        return _input_name(arg["as_optional_tensor"])
    if arg.get("as_custom_obj") is not None:
        raise UnsupportedError(
            "the exported model uses a custom object, which only running code could build",
            "expected tensors and numbers",
            "re-export the model without it",
        )
    return None


def _output(raw: Mapping[str, Any]) -> Output:
    kind, value = member(raw)
    if isinstance(value, list):  # ``as_tensors``, ``as_sym_ints``: items of the kind in the singular
        return tuple(_input_name({kind.removesuffix("s"): item}) for item in value)
    return _input_name(raw)
