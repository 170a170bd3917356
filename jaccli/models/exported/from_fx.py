"""An ``ExportedProgram``, or the module that its ``module()`` makes, as a ``ExportedCode``.

The live objects hold what an archive holds, as a ``torch.fx`` graph. Operators are the user's own, in
their own process, so any operator is accepted; ``_guards_fn``, which runs generated code, is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from jaccli.errors import UnsupportedError
from jaccli.models.exported.code import (
    MODEL_DEVICE,
    ExportedCode,
    ExportedGraph,
    ExportedNode,
    Extent,
    InputLeaf,
    Output,
    Ref,
    StackEntry,
    StateKind,
)
from jaccli.models.exported.container_trees import LiveTree
from jaccli.models.exported.control import CONTROL
from jaccli.models.exported.module_stacks import clean_stack
from jaccli.models.exported.operators import skipped, unsupported
from jaccli.models.exported.parse import module_types
from jaccli.models.interpretation.nested import map_leaves
from jaccli.text.escape import quote

_GUARDS: Final = "_guards_fn"
_STATE_KINDS: Final[dict[str, StateKind]] = {
    "PARAMETER": "parameter",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "constant",
}


def is_exported_program(model: object) -> bool:
    """Whether this is what ``torch.export.export`` returns; torch.export is not imported for it."""
    return any(
        cls.__name__ == "ExportedProgram" and cls.__module__.startswith("torch.export") for cls in type(model).__mro__
    )


def is_exported_module(model: object) -> bool:
    """Whether this is what ``ExportedProgram.module()`` returns: operators only, traced from modules."""
    if not isinstance(model, fx.GraphModule) or not hasattr(model.graph._codegen, "pytree_info"):
        return False
    called = [node for node in model.graph.nodes if node.op in ("call_module", "call_method", "call_function")]
    if any(node.op != "call_function" and node.target != _GUARDS for node in called):
        return False
    return any("nn_module_stack" in node.meta for node in called)


def program_from_export(exported: Any) -> tuple[ExportedCode, dict[str, Tensor]]:
    """The program of an ``ExportedProgram``, and its tensors of any shape by qualified name, shared with it."""
    state, leaves = _inputs(exported)
    listed = {entry.fqn: "" for entry in exported.module_call_graph}
    graph = _Converter(exported.graph_module, {}, listed).graph()
    outputs = list(zip(exported.graph_signature.output_specs, graph.outputs, strict=True))
    program = ExportedCode(
        graph=graph,
        state=state,
        leaves=leaves,
        in_tree=LiveTree(exported.call_spec.in_spec),
        out_tree=LiveTree(exported.call_spec.out_spec),
        results=tuple(value for spec, value in outputs if spec.kind.name in ("USER_OUTPUT", "LOSS_OUTPUT")),
        mutations={spec.target: value for spec, value in outputs if spec.kind.name == "BUFFER_MUTATION"},
        modules=module_types(listed, graph),
        argument_names=_argument_names(exported),
    )
    tensors = {**exported.state_dict, **exported.constants}
    return program, {name: tensors[name] for _, name in state.values()}


def _inputs(exported: Any) -> tuple[dict[str, tuple[StateKind, str]], tuple[InputLeaf, ...]]:
    """Graph inputs that hold the program's own tensors, and those that hold the user's arguments."""
    state: dict[str, tuple[StateKind, str]] = {}
    leaves: list[InputLeaf] = []
    placeholders = {node.name: node for node in exported.graph_module.graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        kind = spec.kind.name
        if kind in _STATE_KINDS:
            state[spec.arg.name] = (_STATE_KINDS[kind], spec.target)
        elif kind == "USER_INPUT":
            leaves.append(_leaf(placeholders[spec.arg.name], getattr(exported, "range_constraints", {})))
        else:
            raise UnsupportedError(
                f"the exported model takes a {kind.lower()} as an input",
                "expected tensors and numbers",
                "re-export the model without it",
            )
    return state, tuple(leaves)


def _argument_names(exported: Any) -> tuple[str, ...] | None:
    signatures = (entry.signature for entry in exported.module_call_graph if entry.fqn == "")
    names = getattr(next(signatures, None), "forward_arg_names", None)
    return tuple(names) if names else None


def program_from_module(module: fx.GraphModule) -> tuple[ExportedCode, dict[str, Tensor]]:
    """The program of an exported module, and its tensors of any shape by qualified name, shared with it."""
    state: dict[str, tuple[StateKind, str]] = {}
    tensors: dict[str, Tensor] = {}
    parameters, buffers = dict(module.named_parameters(remove_duplicate=False)), dict(module.named_buffers())
    for node in module.graph.nodes:
        value = _attribute(module, node.target) if node.op == "get_attr" else None
        if isinstance(value, Tensor):
            kind: StateKind = "parameter" if node.target in parameters else "constant"
            state[node.name] = ("buffer" if node.target in buffers else kind, node.target)
            tensors[node.target] = value
    listed = _module_paths(module)
    graph = _Converter(module, state, listed).graph()
    info: Any = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    program = ExportedCode(
        graph=graph,
        state=state,
        leaves=tuple(_leaf(node, {}) for node in module.graph.nodes if node.op == "placeholder"),
        in_tree=LiveTree(info.in_spec),
        out_tree=LiveTree(info.out_spec),
        results=graph.outputs,
        mutations={},
        modules=module_types(listed, graph),
        argument_names=tuple(info.orig_args) or None,
    )
    return program, tensors


def _module_paths(module: fx.GraphModule) -> dict[str, str]:
    """Modules of the user's, without the graphs of control flow."""
    named = dict(module.named_modules())
    graphs = (name for name, part in named.items() if name and isinstance(part, fx.GraphModule))
    inner = (*graphs, _GUARDS)
    return {name: "" for name in named if not name.startswith(inner)}


def _attribute(module: torch.nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _leaf(node: fx.Node, ranges: Mapping[Any, Any]) -> InputLeaf:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return InputLeaf(node.name, None, tuple(_extent(size, ranges) for size in value.shape))
    if isinstance(value, (int, float, bool, str)) or (value is None and "val" in node.meta):
        return InputLeaf(None, value)
    return InputLeaf(node.name)


def _extent(size: Any, ranges: Mapping[Any, Any]) -> Extent:
    if isinstance(size, int):
        return Extent(size)
    expression = getattr(getattr(size, "node", None), "expr", None)
    if expression is None or not getattr(expression, "is_Symbol", False):
        return Extent(None)
    bounds: Any = ranges.get(expression)
    try:
        low, high = int(bounds.lower), int(bounds.upper)
    except (TypeError, ValueError, OverflowError, AttributeError):  # no bounds, or infinite ones
        return Extent(None, str(expression))
    return Extent(None, str(expression), low, high if high < 1 << 60 else None)


class _Converter:
    """One ``torch.fx`` graph."""

    def __init__(self, module: fx.GraphModule, state: Mapping[str, object], listed: Mapping[str, str]) -> None:
        self._module, self._state, self._listed = module, state, listed
        self._folded: set[fx.Node] = set()

    def graph(self) -> ExportedGraph:
        inputs: list[str | None] = [*self._state]
        nodes: list[ExportedNode] = []
        outputs: tuple[Any, ...] = ()
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "call_function" and node not in self._folded and not skipped(node.target):
                nodes.append(self._node(node))
            elif node.op == "output":
                results = node.args[0]
                outputs = tuple(self._value(results if isinstance(results, (tuple, list)) else (results,)))
        return ExportedGraph(tuple(inputs), nodes, outputs)

    def _node(self, node: fx.Node) -> ExportedNode:
        op = _operator(node.target)
        stack = node.meta.get("nn_module_stack")
        entries = [StackEntry(str(key), path, _type_name(kind)) for key, (path, kind) in (stack or {}).items()]
        return ExportedNode(
            _target(node.target),
            op,
            self._value(node.args),
            self._value(node.kwargs),
            self._outputs(node),
            clean_stack(entries, self._listed) if stack else None,
        )

    def _outputs(self, node: fx.Node) -> tuple[Output, ...]:
        """Names of the elements if the result is only ever taken apart, as an archive writes it."""
        value = node.meta.get("val")
        elements = {
            user: user.args[1]
            for user in node.users
            if user.target is operator.getitem and isinstance(user.args[1], int)
        }
        several = isinstance(value, (tuple, list)) or _is_control(node.target)
        if not several or not elements or len(elements) != len(node.users):
            return (node.name,)
        count = len(value) if isinstance(value, (tuple, list)) else max(elements.values()) + 1
        names: list[str | None] = [None] * count
        for user, index in elements.items():
            if names[index] is not None:  # taken out twice, under two names
                return (node.name,)
            names[index] = user.name
        self._folded.update(elements)
        listed = isinstance(value, list) and len(getattr(getattr(node.target, "_schema", None), "returns", ())) == 1
        return (tuple(names),) if listed else (*names,)

    def _value(self, value: Any) -> Any:
        """An argument of a ``torch.fx`` node as an argument of an ``ExportedNode``."""
        return map_leaves(value, self._leaf)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value.op == "get_attr" and value.name not in self._state:
                return self._inner(value.target)
            return Ref(value.name)
        if isinstance(value, torch.device):
            return value if value.type == "meta" else MODEL_DEVICE
        return value

    def _inner(self, target: Any) -> Any:
        part = _attribute(self._module, str(target))
        if isinstance(part, fx.GraphModule):
            return _Converter(part, {}, self._listed).graph()
        raise UnsupportedError(
            f"the exported model refers to {quote(target)}, which is not a tensor",
            "expected parameters, buffers and constant tensors",
            "re-export the model without it",
        )


def _is_control(target: Any) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator)


def _operator(target: Any) -> Callable[..., Any]:
    if _is_control(target):
        name = str(target.name() if callable(target.name) else target.name)
        if name not in CONTROL:
            raise unsupported(f"higher_order.{name}")
        return CONTROL[name]
    if not callable(target):
        raise unsupported(str(target))
    function: Callable[..., Any] = target
    return function


def _target(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def _type_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
