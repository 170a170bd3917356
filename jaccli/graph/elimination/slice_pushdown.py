"""Slices moved before the matrices that they follow: each part of a wide product becomes a product of its own.

    y = A x,  q = y[:n],  k = y[n:]        becomes        q = A[:n] x,  k = A[n:] x

Queries, keys and values come from one matrix product and are then sliced. Pulled back one by one through
their own part of the weight, each keeps its own structure (a token reaches its own query only);
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


def pushed_down(nodes: Sequence[Node], maps_of: dict[Node, list[Map]], target: Value) -> dict[Node, list[Map]] | None:
    """Maps in which wide products that are only read in slices are as many products; None where there are none.

    Args:
        nodes: active ones, in order.
        maps_of: their maps; left as they are.
        target: what they lead to; it is left whole.
    """
    maps_of = {node: list(maps) for node, maps in maps_of.items()}
    into: dict[Value, list[tuple[Node, Map]]] = {}
    out_of: dict[Value, list[tuple[Node, Map]]] = {}
    for node in nodes:
        for m in maps_of[node]:
            into.setdefault(m.target, []).append((node, m))
            out_of.setdefault(m.source, []).append((node, m))
    changed = False
    # From the end: a slice that was moved before one product may stand behind another one, which comes next.
    for value in (v for node in reversed(nodes) for v in node.outputs):
        makers, users = into.get(value, []), out_of.get(value, [])
        # All users must take slices, or the wide product would be computed as well.
        if value is target or len(makers) != 1 or len(users) < 2:
            continue
        (maker, first), *_ = makers
        joined = [new for _, m in users if (new := _joined(first, m)) is not None]
        if len(joined) < len(users):
            continue
        # Slices moved past views alone save nothing.
        changed |= any(isinstance(step, Matrix) for step in first.steps)
        maps_of[maker].remove(first)
        out_of[first.source].remove((maker, first))
        for (user, old), new in zip(users, joined, strict=True):
            maps_of[user][maps_of[user].index(old)] = new
            into[new.target] = [(user, new) if m is old else (n, m) for n, m in into[new.target]]
            out_of[new.source].append((user, new))
        out_of[value] = []
    return maps_of if changed else None


def _joined(first: Map, second: Map) -> Map | None:
    """Two maps as one, with the slice that begins the second moved to the front; None where it cannot get there."""
    if not second.steps or not isinstance(second.steps[0], Slice):
        return None
    cut, later = second.steps[0], list(second.steps[1:])
    for position in range(len(first.steps) - 1, -1, -1):
        step = first.steps[position]
        if isinstance(step, Matrix) and (cut.dim == step.dim or not _alike_along(step, cut.dim)):
            narrow = _narrowed(step, cut)
            if narrow is None:
                return None
            return Map(first.source, second.target, (*first.steps[:position], narrow, *later))
        if not isinstance(step, Matrix):
            exchange = _before(step, cut)
            if exchange is None:
                return None
            cut, step = exchange
        later.insert(0, step)
    return Map(first.source, second.target, (cut, *later))


def _alike_along(matrix: Matrix, dim: int) -> bool:
    """Whether it is the same matrix everywhere along a dimension."""
    return dim not in matrix.parallel or matrix.shape[matrix.parallel.index(dim)] == 1


def _narrowed(matrix: Matrix, cut: Slice) -> Matrix | None:
    """A matrix that gives the slice alone: its columns ``start : start + count``."""
    if matrix.dim != cut.dim or matrix.swapped or cut.step != 1:
        return None
    part = LazyTensor(lambda: matrix.factor.tensor.narrow(-1, cut.start, cut.count))
    return replace(matrix, factor=part, shape=(*matrix.shape[:-1], cut.count))


def _before(step: Primitive, cut: Slice) -> tuple[Slice, Primitive] | None:
    """A slice after a view as a slice before it, and the view of what is left; None where there is none.

    Through a reshape the sliced dimension must be whole: one old dimension that is split into it and what follows.
    """
    if isinstance(step, Permute):
        return replace(cut, dim=step.order[cut.dim]), step
    if not isinstance(step, Reshape) or cut.step != 1:
        return None
    # The old dimension before which as many elements lie as before the sliced one; dimensions of size 1 do not count.
    dim, ahead = 0, math.prod(step.new[: cut.dim])
    while math.prod(step.old[:dim]) < ahead or (dim < len(step.old) and step.old[dim] == 1 != cut.full):
        dim += 1
    if dim >= len(step.old) or math.prod(step.old[:dim]) != ahead or step.old[dim] % cut.full:
        return None
    inner = step.old[dim] // cut.full
    # What follows in the new shape must make up the rest of that old dimension, and no more.
    after, size = cut.dim + 1, 1
    while size < inner and after < len(step.new):
        size, after = size * step.new[after], after + 1
    if size != inner:
        return None
    old = exchanged(step.old, dim, cut.count * inner)
    new = exchanged(step.new, cut.dim, cut.count)
    return Slice(dim, step.old[dim], cut.start * inner, cut.count * inner), Reshape(old, new)
