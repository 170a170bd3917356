"""The derivative of every node of a graph, by the rule of its operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jaccli.graph.maps.elementwise import Cast
from jaccli.graph.rules import dense_fallback, elementwise, indexing, linear, reductions, shape
from jaccli.graph.rules.registry import RULES, Map
from jaccli.graph.trace.ir import CaptureGap, Node, Value

# Imported for their registrations.
RULE_MODULES = (dense_fallback, elementwise, indexing, linear, reductions, shape)
# Of these, one argument may be overwritten whole by another, so that its derivative is zero.
_OVERWRITE = frozenset(["aten.copy", "aten.slice_scatter", "aten.select_scatter"])


def derivatives(nodes: Sequence[Node], target: Value | None = None) -> dict[Node, list[Map]]:
    """The maps of all nodes.

    Args:
        nodes: active ones, in order.
        target: what they lead to.

    Raises:
        CaptureGap: an operator without a rule, or a value in use that no rule covers.
    """
    maps_of = {node: maps(node) for node in nodes}
    all_maps = [m for node_maps in maps_of.values() for m in node_maps]
    covered, used = {m.target for m in all_maps}, {m.source for m in all_maps} | {target}
    for node in nodes:
        # A sum over no elements has an active output and no derivative, which is right.
        if any(v.active and 0 not in v.shape for v in node.inputs()):
            for out in node.outputs:
                if out in used and out not in covered and out.active and 0 not in out.shape:
                    raise CaptureGap(f"output {out.out} of {node.name} has no derivative rule")
    return maps_of


def maps(node: Node) -> list[Map]:
    """The maps of an active node: from its active inputs to its active outputs, none with an empty end.

    Raises:
        CaptureGap: an operator without a rule, or an active argument that its rule does not cover.
    """
    if not any(v.active and 0 not in v.shape for v in node.outputs):
        return []
    if any(v.active and not v.tensor.is_floating_point() for v in (*node.inputs(), *node.outputs)):
        raise CaptureGap(f"{node.name} computes with complex numbers")
    # torch tags what is elementwise, so that operators this module has never heard of have a rule as well.
    rule = RULES.get(node.name, RULES["pointwise"] if torch.Tag.pointwise in node.op.tags else None)
    if rule is None:
        raise CaptureGap(f"no rule for the operator {node.name}")
    result = [m for m in rule(node) if m.target.active and 0 not in m.source.shape + m.target.shape]
    # An argument that is active and has no map would count as a derivative of zero, silently.
    covered = {m.source for m in result}
    if node.name not in _OVERWRITE and any(v.active and 0 not in v.shape and v not in covered for v in node.inputs()):
        raise CaptureGap(f"{node.name} with an argument that no rule covers")
    return [_cast(m) for m in result]


def _cast(m: Map) -> Map:
    """A map between dtypes begins with the change of dtype: its factors have the dtype of the result."""
    old, new = m.source.tensor.dtype, m.target.tensor.dtype
    return m if old == new else Map(m.source, m.target, (Cast(old, new), *m.steps))
