"""Slices moved before the matrices that they follow: each part of a wide product becomes a product of its own.

Queries, keys and values come from one matrix product and are then sliced. Pulled back one by one through
their own part of the weight they keep what structure each has (of the queries a token reaches its own only);
put side by side first, they would all be stored in full. The steps of a sequence that is multiplied as a
whole are put side by side after the product, when they are narrower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from jaccli.graph.layout.layout import exchanged
from jaccli.graph.maps.base import LazyTensor, Primitive
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.maps.reshape import Permute, Reshape
from jaccli.graph.maps.slice import Slice
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value


def folded(nodes: Sequence[Node], maps_of: dict[Node, list[Map]], target: Value) -> dict[Node, list[Map]] | None:
    """Maps in which wide products that are only looked at in slices are as many products; None where there are none.

    Args:
        nodes: active ones, in order.
        maps_of: their maps.
        target: what they lead to; it is left whole.
    """
    maps_of = {node: list(found) for node, found in maps_of.items()}
    into: dict[Value, list[tuple[Node, Map]]] = {}
    out_of: dict[Value, list[tuple[Node, Map]]] = {}
    for node in nodes:
        for m in maps_of[node]:
            into.setdefault(m.target, []).append((node, m))
            out_of.setdefault(m.source, []).append((node, m))
    changed = False
    for node in reversed(nodes):
        for value in node.outputs:
            before, after = into.get(value, []), out_of.get(value, [])
            if value is target or len(before) != 1 or len(after) < 2:
                continue
            joined = [_joined(before[0][1], m) for _, m in after]
            if any(m is None for m in joined):
                continue
            changed |= any(isinstance(step, Matrix) for step in before[0][1].steps)
            maps_of[before[0][0]].remove(before[0][1])
            out_of[before[0][1].source].remove(before[0])
            for (user, old), new in zip(after, joined, strict=True):
                assert new is not None
                maps_of[user][maps_of[user].index(old)] = new
                into[new.target] = [(user, new) if m is old else (n, m) for n, m in into[new.target]]
                out_of[new.source].append((user, new))
            out_of[value] = []
    return maps_of if changed else None


def _joined(first: Map, second: Map) -> Map | None:
    """Two maps as one with the slice that begins the second moved to the front; None where it does not get there."""
    if not second.steps or not isinstance(second.steps[0], Slice):
        return None
    cut, done = second.steps[0], list(second.steps[1:])
    for position in range(len(first.steps) - 1, -1, -1):
        step = first.steps[position]
        if isinstance(step, Matrix) and cut.dim != step.dim and _alike_along(step, cut.dim):
            done.insert(0, step)
            continue
        if isinstance(step, Matrix):
            narrow = _narrowed(step, cut)
            if narrow is None:
                return None
            return Map(first.source, second.target, (*first.steps[:position], narrow, *done))
        moved = _before(step, cut)
        if moved is None:
            return None
        cut, step = moved
        done.insert(0, step)
    return Map(first.source, second.target, (cut, *done))


def _alike_along(matrix: Matrix, dim: int) -> bool:
    """Whether it is the same matrix everywhere along a dimension."""
    return dim not in matrix.parallel or matrix.shape[matrix.parallel.index(dim)] == 1


def _narrowed(matrix: Matrix, cut: Slice) -> Matrix | None:
    """A matrix that gives the slice alone."""
    if matrix.dim != cut.dim or matrix.swapped or cut.step != 1:
        return None
    part = LazyTensor(lambda: matrix.factor.tensor.narrow(-1, cut.start, cut.count))
    return replace(matrix, factor=part, shape=(*matrix.shape[:-1], cut.count))


def _before(step: Primitive, cut: Slice) -> tuple[Slice, Primitive] | None:
    """A slice after a view as a slice before it, and the view of what is left."""
    if isinstance(step, Permute):
        return replace(cut, dim=step.order[cut.dim]), step
    if not isinstance(step, Reshape) or cut.step != 1:
        return None
    dim, ahead = 0, math.prod(step.new[: cut.dim])
    while math.prod(step.old[:dim]) < ahead or (dim < len(step.old) and step.old[dim] == 1 != cut.full):
        dim += 1
    if dim >= len(step.old) or math.prod(step.old[:dim]) != ahead or step.old[dim] % cut.full:
        return None
    inner = step.old[dim] // cut.full
    end, got = cut.dim + 1, 1
    while got < inner and end < len(step.new):
        got, end = got * step.new[end], end + 1
    if got != inner:
        return None
    old = exchanged(step.old, dim, cut.count * inner)
    new = exchanged(step.new, cut.dim, cut.count)
    return Slice(dim, step.old[dim], cut.start * inner, cut.count * inner), Reshape(old, new)
