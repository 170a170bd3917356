"""Linear maps that mix one dimension: matrices, and the cores of softmax and of normalisations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, OuterProduct, densify, materialized, merged
from jaccli.graph.layout.contraction import LabelledTensor, arranged
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Label, Layout, exchanged
from jaccli.graph.layout.spread import laid_out, spread
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape

# A product without a sum is put off where it has at least this many times the elements of its factors.
_OUTER = 2


@dataclass(frozen=True)
class Matrix(Primitive):
    """A matrix along one dimension: ``y[…, j] = Σ_i x[…, i] M[…, i, j]``.

    Where the dimension is a diagonal, or of size 1, nothing is summed: the result is a row or column of M for each
    element of the block. If that is large, it stays a product of two factors (``OuterProduct``), since the next
    matrix may be cheaper on one of them.

    In labels, -3 stands in front of those of the dimension that is summed over: ``(-3, dim, place)``.

    Args:
        dim: the dimension.
        factor: M, ``(*parallel, n_in, n_out)``; with ``swapped`` ``(*parallel, n_out, n_in)``.
        shape: ``(*parallel, n_in, n_out)``.
        parallel: dimensions of the activation that M has too; size 1 where M is the same along one.
        swapped: the last two axes of ``factor`` are the other way round.
    """

    dim: int
    factor: LazyTensor
    shape: Shape
    parallel: tuple[int, ...] = ()
    swapped: bool = False

    @property
    def T(self) -> Matrix:
        *parallel, i, j = self.shape
        return replace(self, shape=(*parallel, j, i), swapped=not self.swapped)

    def apply(self, block: Block) -> Block:
        if isinstance(block.data, OuterProduct):
            return self._on_outer(block.layout, block.data) or self.apply(materialized(block))
        axes = block.layout.primal_axes[self.dim]
        block = densify(block, [x.key for x in axes if isinstance(x, BandedAxis) and x.width > 1])
        old, new = block.layout, self.layout(block.layout)
        labels = [self._summed(x) for x in old.labels]
        data = block.data if isinstance(block.data, CostModel) else block.tensor
        vectors = LabelledTensor(dict(zip(labels, old.sizes, strict=True)), data)
        weight = self._labelled(old, data)
        # Nothing is summed over: each element of the result is one product, and there may be many more of them than of
        # the factors.
        if not any(x[0] == -3 for x in labels) and new.numel >= _OUTER * (vectors.numel + weight.numel):
            return Block(new, OuterProduct(vectors, weight))
        out: Label = (self.dim, 0)
        order = [x for x in new.labels if x != out] + ([out] if self.shape[-1] != 1 else [])
        result = vectors.times(weight, order)
        return Block.repeated(new, result if isinstance(result, CostModel) else arranged(result, order, new.labels))

    def layout(self, old: Layout) -> Layout:
        n_out = self.shape[-1]
        varied = [d for axis, d in enumerate(self.parallel) if self.shape[axis] != 1]
        primal_axes = exchanged(old.primal_axes, self.dim, (DenseAxis(n_out),) if n_out != 1 else ())
        return Layout(old.seed_axes, primal_axes, old.broadcast - set(old.banded_keys(self.dim, *varied)))

    def _summed(self, label: Label) -> Label:
        return (-3, *label) if label[0] == self.dim else label

    def _labelled(self, old: Layout, like: Tensor | CostModel) -> LabelledTensor:
        """M with labels: those of the dimension, parallel axes as the block's, then ``(dim, 0)`` for its result.

        Args:
            old: layout of the block that is multiplied.
            like: the block's data, of whose dtype M is.
        """
        if isinstance(like, CostModel):
            return LabelledTensor(self._sizes(old), like)
        factor = self.factor.tensor.to(like.dtype)
        factor = factor.transpose(-1, -2) if self.swapped else factor
        factor, labels = spread(old, factor, self.parallel)
        # A layout of the one dimension, so that ``spread`` gives the rows of M the axis factors of the dimension.
        summed = Layout(old.seed_axes, (old.primal_axes[self.dim],), old.broadcast)
        factor, summed_labels = spread(summed, factor.movedim(len(labels), 0), [0])
        labels = [*((-3, self.dim, x[1]) if x[0] != -1 else x for x in summed_labels), *labels]
        if self.shape[-1] == 1:
            return LabelledTensor.of(factor.squeeze(-1), labels)
        return LabelledTensor.of(factor, [*labels, (self.dim, 0)])

    def _sizes(self, old: Layout) -> dict[Label, int]:
        """The sizes of ``_labelled``, in another order."""
        sizes: dict[Label, int] = {}
        for d, n in (*zip(self.parallel, self.shape, strict=False), (self.dim, -1)):
            for a, axis in enumerate(old.primal_axes[d]):
                label: Label = (-1, *axis.key) if isinstance(axis, BandedAxis) else self._summed((d, a))
                full = old.seed_axis[axis.key].size if isinstance(axis, BandedAxis) else axis.size
                sizes[label] = 1 if n == 1 else full
        if self.shape[-1] != 1:
            sizes[(self.dim, 0)] = self.shape[-1]
        return sizes

    def _on_outer(self, old: Layout, outer: OuterProduct) -> Block | None:
        """M times the one factor that alone has an axis that M sums over; None where neither or both have one."""
        if old.banded_keys(self.dim) or self.parallel or self.shape[-1] == 1:
            return None
        a, b = (f.relabelled(self._summed) for f in (outer.a, outer.b))
        own_a, own_b = ([x for x in f.labels if x[0] == -3 and x not in g.sizes] for f, g in ((a, b), (b, a)))
        # With an axis to sum over in both, or in neither, M would touch both factors.
        if bool(own_a) == bool(own_b):
            return None
        if own_a:
            a, b, own_b = b, a, own_a
        weight = self._labelled(old, b.data)
        rest = [x for x in b.labels if x not in own_b]
        shared = [x for x in rest if x[0] == -3]
        if any(b.sizes[x] != weight.sizes[x] for x in (*shared, *own_b)):
            return None
        labels: list[Label] = [*shared, *(x for x in rest if x not in shared), (self.dim, 0)]
        sizes = {x: max(b.sizes.get(x, 1), weight.sizes.get(x, 1)) for x in labels}
        product = LabelledTensor(sizes, b.times(weight, labels))
        new = self.layout(old)
        if not shared:
            return Block(new, OuterProduct(a, product))
        return Block.repeated(new, a.times(product, new.labels))


@dataclass(frozen=True)
class Projection(Primitive):
    """The core of softmax and of normalisations over one dimension: symmetric, ``v ↦ s (v - … )``.

    ``softmax``: y ⊙ (v - ⟨y, v⟩). ``norm``: r (v - mean v - x̂ mean(x̂ v)), r the reciprocal deviation;
    ``rms``: without the mean.

    Args:
        dim: the dimension.
        vector: y or x̂, of the activation's shape.
        kind: which.
        scale: r, of the activation's shape with 1 in ``dim``.
    """

    dim: int
    vector: LazyTensor
    kind: str
    scale: LazyTensor | None = None

    @property
    def T(self) -> Projection:
        return self

    def prepared(self, block: Block) -> Block:
        return merged(densify(block, block.layout.window_keys()), self.dim)

    def layout(self, old: Layout) -> Layout:
        return replace(old, broadcast=frozenset())

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        cost.move(2 * new.numel + 2 * old.numel)
        cost.move(3 * new.numel)

    def compute(self, block: Block, new: Layout) -> Block:
        data = block.tensor.expand(new.sizes)
        axis = new.labels.index((self.dim, 0))
        vector = laid_out(block.layout, self.vector.tensor.to(data.dtype))
        if self.kind == "softmax":
            scaled = data * vector
            return Block.of(new, torch.addcmul(scaled, vector, scaled.sum(axis, keepdim=True), value=-1))
        # v - x̂ mean(x̂ v); of ``norm`` also minus mean v, the mean of the vectors that came in.
        out = torch.addcmul(data, vector, (data * vector).sum(axis, keepdim=True) / -data.shape[axis])
        if self.kind == "norm":
            out -= data.mean(axis, keepdim=True)
        assert self.scale is not None
        out *= laid_out(block.layout, self.scale.tensor.to(data.dtype))
        return Block.of(new, out)
