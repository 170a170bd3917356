"""Operators that write into their arguments, replaced by ones that do not where the result is the same.

A run must not change the model or its input, an activation that became a variable must not be
written to, and ``vmap`` has no in-place form of many operators. ``relu_`` runs as ``relu`` if no other value that
shares the memory is read later. If one is, the write stays, into a private copy of the graph's input.

Invariants: a value is either rewritten (all its writes are left out) or copied (all of them stay). All values that
share memory with a copied one are copied too. Values share memory if a schema says so, or if the operator is a
composite one, whose schema may be silent about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import torch

from jaccli.models.exported.code import ExportedGraph, ExportedNode, graphs, last_reads, refs
from jaccli.models.exported.control import INLINE
from jaccli.models.interpretation.alias_sets import AliasSets
from jaccli.models.interpretation.overloads import find_packet
from jaccli.models.interpretation.training_flags import draws_numbers, has_running_statistics

_FRESH: Final = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul layer_norm group_norm "  # noqa: SIM905
    "batch_norm instance_norm max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d softmax log_softmax lstm gru "
    "rnn_tanh rnn_relu scaled_dot_product_attention silu rms_norm embedding_bag cross_entropy_loss".split()
)
"""Composite operators whose result never shares memory with an argument."""


@dataclass(frozen=True)
class Rewrites:
    """How the operators of one graph run that write in place.

    Attributes:
        functions: node index → (operator without a write, name of the value that it replaces).
        copied: values that are written to in place: copied when they come in from outside.
        written: graph inputs among them.
    """

    functions: dict[int, tuple[Callable[..., Any], str]] = field(default_factory=dict)
    copied: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()


def find_rewrites(graph: ExportedGraph, state: frozenset[str], *, inner: bool = False) -> Rewrites:
    """How to run a graph without writing into its inputs.

    Args:
        graph: one whose inner graphs have their ``analysis`` already.
        state: inputs whose memory matters after the run (parameters, buffers).
        inner: whether an outer graph may see what is written to the inputs.
    """
    writes = {index: names for index, node in enumerate(graph.nodes) if (names := _written(node))}
    if not writes:
        return Rewrites()
    sets, last = _alias_sets(graph), last_reads(graph)
    defined_at = {name: index for index, node in enumerate(graph.nodes) for name in node.defined()}
    inputs = {name for name in graph.inputs if name is not None}
    # An inner graph runs with memory of the outer one, which may read it afterwards.
    lasting = state | (inputs if inner else frozenset())
    functions: dict[int, tuple[Callable[..., Any], str]] = {}
    copied: set[str] = set()
    for index, names in writes.items():
        name = names[0]
        # Other names of the memory, older than the write: one that is read later would have to show the new value.
        others = [other for other in sets.members(name) - {name} if defined_at.get(other, -1) < index]
        shared = any(last.get(other, -1) > index or other in lasting for other in others)
        function = functional(graph.nodes[index].op)
        if function is None or shared or len(names) > 1 or (inner and name in inputs):
            copied |= set().union(*(sets.members(item) for item in names))
        else:
            functions[index] = (function, name)
    # A value that one node writes in place must not be rewritten by another.
    functions = {index: item for index, item in functions.items() if item[1] not in copied}
    return Rewrites(functions, frozenset(copied), frozenset(copied & inputs))


@cache
def functional(op: Callable[..., Any]) -> Callable[..., Any] | None:
    """``aten.relu.default`` for ``aten.relu_.default``; None if there is none or it draws random numbers."""
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.name.endswith("_"):
        return None
    packet = None if draws_numbers(op) else find_packet(*op._schema.name[:-1].split("::"))
    if packet is None:
        return None
    # By its arguments: pow_.Scalar is pow.Tensor_Scalar, and pow.Scalar has a number for the base.
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    same = (one for one in overloads if not one._schema.is_mutable and _formal(one) == _formal(op))
    return next(same, None)


def _formal(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


def named_arguments(node: ExportedNode) -> dict[str, Any]:
    """Arguments of an operator by the names in its schema."""
    if node.schema is None:
        return {}
    names = [argument.name for argument in node.schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _written(node: ExportedNode) -> list[str]:
    """Names of the values that a node writes to, the one that it returns first."""
    if inner := graphs(node):
        if node.op not in INLINE or inner[0].analysis is None:
            return []
        inputs = [name for name in inner[0].inputs if name is not None]
        pairs = zip(inputs, refs(node.args), strict=False)
        return [outer for name, outer in pairs if name in inner[0].analysis.rewrites.written]
    args, schema = named_arguments(node), node.schema
    if schema is None:
        return []
    # In training mode the statistics are updated, which no schema says; ``_functional`` ones return them instead.
    updates = has_running_statistics(schema) and not schema.name.endswith("_functional")
    if updates and (args.get("training") or args.get("use_input_stats")):
        return list(refs([args.get("running_mean"), args.get("running_var")]))
    formal = schema.arguments
    return list(refs([args.get(one.name) for one in formal if one.alias_info is not None and one.alias_info.is_write]))


def _alias_sets(graph: ExportedGraph) -> AliasSets[str]:
    sets = AliasSets[str]()
    for node in graph.nodes:
        for name in node.defined():
            sets.unite((name, *_sources(node)))
    return sets


def _sources(node: ExportedNode) -> list[str]:
    """Arguments whose memory a result of the node may share."""
    if graphs(node) or (isinstance(node.op, torch._ops.OpOverload) and _composite(node.op)):
        return list(node.used())
    if node.schema is None:
        return []
    args = named_arguments(node)
    return list(refs([args.get(one.name) for one in node.schema.arguments if one.alias_info is not None]))


@cache
def _composite(op: torch._ops.OpOverload) -> bool:
    """Whether an operator is written in terms of others and may hand back an argument."""
    if op._schema.name.split("::")[1] in _FRESH:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"))
