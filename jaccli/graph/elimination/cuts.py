"""The values that every path from source to target passes through, and the stretches between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.gather import Gather, Pick
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value

# The linear maps that mix elements: others scale them, move them or add them up.
MIXING = (Matrix, Conv, Projection, Gather, Pick)
# Bracketings of so many stretches are searched in milliseconds; longer chains are cut at their narrow places.
MOST_CUTS = 12


def active_nodes(nodes: Sequence[Node], source: Value, target: Value) -> list[Node]:
    """The nodes on a path from source to target, in order."""
    reaching = {target}
    kept = []
    for node in reversed(nodes):
        if any(v in reaching for v in node.outputs):
            inputs = [v for v in node.inputs() if v.active]
            if inputs:
                kept.append(node)
                reaching.update(inputs)
    return kept[::-1] if source in reaching else []


def _last_uses(nodes: Sequence[Node], maps_of: dict[Node, list[Map]]) -> dict[Value, int]:
    return {m.source: position for position, node in enumerate(nodes) for m in maps_of[node]}


def cut_values(nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> list[int]:
    """Positions in ``nodes`` after which one value alone carries everything."""
    last_use = {**_last_uses(nodes, maps_of), target: len(nodes)}
    seed_axes: dict[int, int] = {}
    for use in last_use.values():
        seed_axes[use] = seed_axes.get(use, 0) + 1
    alive, places = int(source in last_use), []
    for position, node in enumerate(nodes):
        alive += sum(v in last_use for v in node.outputs)
        alive -= seed_axes.get(position, 0)
        if alive == 1 and any(last_use.get(v, -1) > position for v in node.outputs):
            places.append(position)
    return places


def stretches(
    nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]], most: int = MOST_CUTS
) -> tuple[list[Value], list[list[Node]]]:
    """Cuts worth bracketing at, source and target among them, and the nodes between them.

    A stretch that holds nothing but diagonals and views is joined to the one before it.
    """
    last_use = _last_uses(nodes, maps_of)
    cuts, parts = [source], [[]]  # type: ignore[var-annotated]
    places = set(cut_values(nodes, source, target, maps_of))
    for position, node in enumerate(nodes):
        parts[-1].append(node)
        if position in places:
            value = (
                target
                if position == len(nodes) - 1
                else next(v for v in node.outputs if last_use.get(v, -1) > position)
            )
            cuts.append(value)
            parts.append([])
    if not parts[-1]:
        parts.pop()
    if not parts:
        return [source], []
    if cuts[-1] is not target:
        cuts.append(target)
    cuts, parts = _joined(cuts, parts, maps_of)
    while len(cuts) > most:
        cuts, parts = _without_widest(cuts, parts)
    return cuts, parts


def mixes(nodes: Sequence[Node], maps_of: dict[Node, list[Map]]) -> bool:
    """Whether any of these operators mixes elements."""
    return any(isinstance(step, MIXING) for node in nodes for m in maps_of[node] for step in m.steps)


def _joined(
    cuts: list[Value], parts: list[list[Node]], maps_of: dict[Node, list[Map]]
) -> tuple[list[Value], list[list[Node]]]:
    kept_cuts, kept_parts = [cuts[0]], []  # type: ignore[var-annotated]
    for value, part in zip(cuts[1:], parts, strict=True):
        if (kept_parts and not mixes(part, maps_of)) or (kept_parts and not mixes(kept_parts[-1], maps_of)):
            kept_parts[-1] = kept_parts[-1] + part
            kept_cuts[-1] = value
        else:
            kept_parts.append(part)
            kept_cuts.append(value)
    return kept_cuts, kept_parts


def _without_widest(cuts: list[Value], parts: list[list[Node]]) -> tuple[list[Value], list[list[Node]]]:
    """One cut fewer: of the inner ones the widest, which would cost most to stop at."""
    widths = [math.prod(v.shape) for v in cuts[1:-1]]
    drop = widths.index(max(widths)) + 1
    joined = [*parts[: drop - 1], parts[drop - 1] + parts[drop], *parts[drop + 1 :]]
    return cuts[:drop] + cuts[drop + 1 :], joined
