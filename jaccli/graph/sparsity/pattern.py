"""The sparsity pattern of J: which source elements each target element can depend on, at any point.

graph ─→ for each map: factors (structural zeros, constants) ─→ propagate ─→ dependency sets of the target ─→ Pattern
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jaccli.graph.maps.base import Primitive
from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.elementwise import Mul
from jaccli.graph.maps.gather import Gather
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.rules.registry import Map, arguments
from jaccli.graph.rules.steps import from_front, per_dimension
from jaccli.graph.sparsity.dependency import Along, DependencySets, Factors, Links, SamplesMixed
from jaccli.graph.sparsity.index_sets import BoolArray, IndexSets, IntArray, TooMuchWork
from jaccli.graph.sparsity.known_zeros import StructuralZeros, constant
from jaccli.graph.sparsity.propagation import propagate
from jaccli.graph.trace.ir import Node, Value

# A denser J is not worth compressing.
DENSEST = 0.25
# Limit of work, in ids read at some 15 ns each: a constant, and a share of the elements of J, whose writing takes
# about as long.
_WORK = 1e5
_WORK_SHARE = 0.4

_RUNNING = {"cumprod", "logcumsumexp", "cummax", "cummin"}
_WINDOWED_POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices"}
_ADAPTIVE_POOLS = {"adaptive_max_pool2d", "adaptive_max_pool3d"}
# These multiply by masks that depend on positions alone.
_BY_PLACE = {
    "slice_scatter", "select_scatter", "index_put", "_unsafe_index_put", "as_strided", "tril", "triu", "im2col",
    "diag_embed",
}  # fmt: skip
# The only elementwise operators whose factors may be constant.
_CHOICES = {"where", "masked_fill", "mul", "div"}
# The arguments of matrix products, left and right.
_PRODUCTS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "linear": ("input", "weight"),
}


@dataclass(frozen=True)
class Pattern:
    """A boolean matrix in compressed rows.

    Args:
        indptr: ``(n_out + 1,)``, where the rows begin in ``indices``.
        indices: columns, ascending in each row.
        shape: ``(n_out, n_in)``.
    """

    indptr: IntArray
    indices: IntArray
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Entries that may be nonzero."""
        return len(self.indices)

    @cached_property
    def rows(self) -> IntArray:
        """The row of every entry."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    @cached_property
    def T(self) -> Pattern:
        """The transpose."""
        order = np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=self.shape[1])
        return Pattern(np.concatenate([[0], np.cumsum(counts)]), self.rows[order], self.shape[::-1])


def pattern(
    nodes: Sequence[Node],
    maps_of: dict[Node, list[Map]],
    source: Value,
    target: Value,
    densest: float = DENSEST,
    work: float | None = None,
) -> Pattern | None:
    """The pattern of one sample's J, ``(n_out, n_in)``.

    No dependency is missed at any point at which the graph is the same: values that depend on the inputs never
    count as zero; constant weights and masks that are zero do. Dimension 0 of source and target is the samples.

    Args:
        nodes: the active nodes from source to target, in order.
        maps_of: their derivatives.
        source: ``(batch, …)``.
        target: ``(batch, …)``.
        densest: the largest share of entries of a pattern worth having.
        work: ids that may be read, some 15 ns each; by default about as long as J takes to write.

    Cost: some 50 µs a map, and the work.

    Returns:
        None where samples mix, J is denser, or the work exceeds the limit.
    """
    batch, target_size = source.shape[0], math.prod(target.shape[1:])
    size = math.prod(source.shape[1:])
    if not size or not target_size or not batch or target.shape[:1] != (batch,):
        return None
    # A limit, so that looking for a pattern that is not there costs no more than what it could save.
    if work is None:
        work = _WORK + _WORK_SHARE * batch * size * target_size
    pool = IndexSets(size, min(1.0, 2 * densest), work)  # rows may be denser than J
    try:
        deps = _of_target(nodes, maps_of, source, target, pool)
    except (SamplesMixed, TooMuchWork):
        return None
    ids = np.zeros(target_size, np.int64) if deps is None else deps.ids.reshape(-1)
    # An operator may have moved the samples away from dimension 0: then row b of J is not sample b's.
    if deps is not None and batch > 1 and (deps.dim, deps.inner, deps.ids.shape[0]) != (0, 1, 1):
        return None
    if pool.count[ids].sum() > densest * size * target_size:
        return None
    return Pattern(*pool.rows(ids), (target_size, size))


def _of_target(
    nodes: Sequence[Node], maps_of: dict[Node, list[Map]], source: Value, target: Value, pool: IndexSets
) -> DependencySets | None:
    """The dependency sets of the target; None where no path leads there."""
    zeros = StructuralZeros()
    batch = source.shape[0]
    deps_of = {source: DependencySets(pool, pool.singles((1, *source.shape[1:])), 0, 1, batch)}
    # Sets are let go after their last use: they are arrays of an activation's size.
    last_use = {m.source: node for node in nodes for m in maps_of[node]}
    for node in nodes:
        for m in maps_of[node]:
            if m.source not in deps_of:
                continue
            deps = deps_of[m.source]
            for step in _steps(node, m):
                deps = propagate(step, deps, _factors(node, m, zeros))
            deps_of[m.target] = _united(deps_of[m.target], deps) if m.target in deps_of else deps
        for value in {m.source for m in maps_of[node]}:
            if last_use[value] is node and value is not target:
                deps_of.pop(value, None)
    return deps_of.get(target)


def _united(a: DependencySets, b: DependencySets) -> DependencySets:
    if a.batch > 1 and (a.dim, a.inner) != (b.dim, b.inner):
        raise SamplesMixed
    return a.with_ids(a.pool.pairs(a.ids, b.ids))


def _steps(node: Node, m: Map) -> tuple[Primitive | Along, ...]:
    """The primitives of a map, or what holds of them at every point: an index of a pooling stays in its window."""
    name = node.short_name
    if name in _RUNNING and m.source.shape:
        dim = from_front(arguments(node)["dim"], len(m.source.shape))
        n = m.source.shape[dim]
        return (Along(dim, Links.of(np.tri(n, dtype=np.bool_))),)
    if name in _WINDOWED_POOLS | _ADAPTIVE_POOLS and any(isinstance(s, Gather) for s in m.steps):
        n = 3 if "3d" in node.name else 2
        tables = [_window(node, m, d, n) for d in range(n)]
        return tuple(Along(len(m.source.shape) - n + d, Links.at(table)) for d, table in enumerate(tables))
    return m.steps


def _window(node: Node, m: Map, d: int, n: int) -> IntArray:
    """``(n_out, width)``: positions in the windows of a pooling along direction ``d`` of ``n``, -1 for none."""
    size, count = m.source.shape[len(m.source.shape) - n + d], m.target.shape[len(m.target.shape) - n + d]
    places, args = np.arange(count)[:, None], arguments(node)
    if node.short_name in _ADAPTIVE_POOLS:
        low, high = places * size // count, -(-(places + 1) * size // count)
        table = low + np.arange(int((high - low).max()))
        return np.where(table < high, table, -1)
    kernel = per_dimension(args["kernel_size"], n)
    stride = per_dimension(args.get("stride"), n, kernel)[d]
    padding, dilation = (per_dimension(args.get(k), n, (v,))[d] for k, v in (("padding", 0), ("dilation", 1)))
    table = places * stride - padding + dilation * np.arange(kernel[d])
    return np.where((table >= 0) & (table < size), table, -1)


def _factors(node: Node, m: Map, zeros: StructuralZeros) -> Factors:
    """What holds of the numbers in a map of a node at every point."""

    def nonzero(step: Any) -> BoolArray | None:
        zero = _zero_factors(step, node, m, zeros)
        mask: BoolArray | None = None if zero is None or not bool(zero.any()) else (~zero).cpu().numpy()
        return mask

    def index(step: Any) -> IntArray | None:
        tensor = constant(step.index, node)
        return None if tensor is None else tensor.cpu().numpy()

    return Factors(nonzero, index)


def _zero_factors(step: Any, node: Node, m: Map, zeros: StructuralZeros) -> Tensor | None:
    """Where a factor of a map is zero at every point, of the factor's shape."""
    if isinstance(step, Projection):
        return zeros.where(node.outputs[0], "zero") if step.kind == "softmax" else None
    if isinstance(step, Conv):
        return zeros.where(arguments(node)["weight"], "zero")
    other = _other_factor(step, node, m)
    if other is not None:
        mask = zeros.where(other, "zero")
        return None if mask is None else _shaped(step, node, m, mask)
    if isinstance(step, Mul | Matrix) and _may_be_constant(node, step):
        factor = constant(step.factor, node)
        return None if factor is None else factor == 0
    return None


def _other_factor(step: Any, node: Node, m: Map) -> Value | None:
    """The value that a product multiplies by, where the factor is nothing else."""
    args, name = arguments(node), node.short_name
    if isinstance(step, Matrix) and name in _PRODUCTS:
        left, right = (args[key] for key in _PRODUCTS[name])
        factor: Value = right if step.dim == len(m.source.shape) - 1 else left
        return factor
    if isinstance(step, Mul) and name == "mul":
        other = args["other"] if m.source is args["self"] else args["self"]
        return other if isinstance(other, Value) else None
    return None


def _shaped(step: Any, node: Node, m: Map, mask: Tensor) -> Tensor:
    """A mask over that value, in the shape of the factor."""
    if isinstance(step, Mul):
        return mask.reshape(step.shape)
    if node.short_name == "linear" or step.dim != len(m.source.shape) - 1:
        mask = mask.transpose(-1, -2)
    # One factor for all samples, from an operand that was expanded: zero where it is zero in all of them.
    if mask.dim() == 3 and step.shape[0] == 1 and mask.shape[0] != 1:
        mask = mask.all(0, keepdim=True)
    return mask


def _may_be_constant(node: Node, step: Mul | Matrix) -> bool:
    """Whether it is worth computing the factor: not where it is certainly a value that varies."""
    if node.short_name in _BY_PLACE:
        return True
    # A factor with parallel dimensions is a batch of products of activations, which vary.
    if isinstance(step, Matrix):
        return not step.parallel
    constants = [v for v in node.inputs() if not v.varies]
    return bool(constants) and (torch.Tag.pointwise not in node.op.tags or node.short_name in _CHOICES)
