"""The values that every path from source to target passes, and the segments of nodes between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.gather import Gather, Pick
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value

# The linear maps that mix elements: others scale them, move them or add them up.
MIXING = (Matrix, Conv, Projection, Gather, Pick)
# Bracketings of up to 12 segments are searched in milliseconds; longer chains are cut at their narrow values only.
MOST_CUTS = 12

Cuts = tuple[list[Value], list[list[Node]]]  # one cut more than segments


def active_nodes(nodes: Sequence[Node], source: Value, target: Value) -> list[Node]:
    """The nodes on a path from source to target, in order; none where there is no path."""
    reaching = {target}
    on_path = []
    for node in reversed(nodes):
        inputs = [v for v in node.inputs() if v.active]
        if inputs and any(v in reaching for v in node.outputs):
            on_path.append(node)
            reaching.update(inputs)
    return on_path[::-1] if source in reaching else []


def segments(nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> Cuts:
    """Cuts worth bracketing at, source and target among them, and the nodes between them.

    A segment that holds nothing but diagonals and views is joined to the one before it. Of more than ``MOST_CUTS`` cuts
    the widest ones go.

    Args:
        nodes: active ones, in order.
        source: the first cut.
        target: the last cut.
        maps_of: their derivatives.
    """
    cuts, parts = _all_cuts(nodes, source, target, maps_of)
    cuts, parts = _without_idle_segments(cuts, parts, maps_of)
    while len(cuts) > MOST_CUTS:
        cuts, parts = _without_widest(cuts, parts)
    return cuts, parts


def _all_cuts(nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> Cuts:
    """A cut wherever one value alone is alive: made, and in use further on."""
    # The last node that reads a value through a map; the target is alive beyond the end. A value that no map reads
    # (as the mean of a normalisation) carries no derivative and is no cut.
    last_use = {m.source: position for position, node in enumerate(nodes) for m in maps_of[node]}
    last_use[target] = len(nodes)
    dying = Counter(last_use.values())
    alive = int(source in last_use)
    cuts: list[Value] = [source]
    parts: list[list[Node]] = [[]]
    for position, node in enumerate(nodes):
        parts[-1].append(node)
        alive += sum(v in last_use for v in node.outputs) - dying[position]
        survivors = [v for v in node.outputs if last_use.get(v, -1) > position]
        if alive == 1 and survivors:
            cuts.append(survivors[0])
            parts.append([])
    if not parts[-1]:
        parts.pop()
    if parts and cuts[-1] is not target:
        cuts.append(target)
    return cuts, parts


def _mixes(nodes: Sequence[Node], maps_of: dict[Node, list[Map]]) -> bool:
    """Whether any of these operators mixes elements."""
    return any(isinstance(step, MIXING) for node in nodes for m in maps_of[node] for step in m.steps)


def _without_idle_segments(cuts: list[Value], parts: list[list[Node]], maps_of: dict[Node, list[Map]]) -> Cuts:
    """Joined with their neighbours: segments that mix nothing."""
    # A diagonal or a view multiplies rows and columns at hardly any cost, on either side: a cut there gains nothing,
    # and the search for a bracketing takes the third power of their number.
    new_cuts, new_parts = [cuts[0]], list[list[Node]]()
    for value, part in zip(cuts[1:], parts, strict=True):
        if new_parts and not (_mixes(part, maps_of) and _mixes(new_parts[-1], maps_of)):
            new_parts[-1] = new_parts[-1] + part
            new_cuts[-1] = value
        else:
            new_parts.append(part)
            new_cuts.append(value)
    return new_cuts, new_parts


def _without_widest(cuts: list[Value], parts: list[list[Node]]) -> Cuts:
    """One cut fewer: of the inner ones the widest, which would cost most to stop at."""
    widths = [math.prod(v.shape) for v in cuts[1:-1]]
    drop = widths.index(max(widths)) + 1
    joined = [*parts[: drop - 1], parts[drop - 1] + parts[drop], *parts[drop + 1 :]]
    return cuts[:drop] + cuts[drop + 1 :], joined
