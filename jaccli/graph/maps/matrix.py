"""Linear maps that mix one dimension: matrices, and the cores of softmax and of normalisations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Block, OuterFactor, densify, materialized, merged, spread
from jaccli.graph.layout.contraction import arranged, contract
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Label, Layout
from jaccli.graph.maps.base import LazyTensor, Shape

# A product without a sum is put off where it has so many times the elements of its factors.
_OUTER = 2


@dataclass(frozen=True)
class Matrix:
    """A matrix along one dimension: ``y[…, j] = Σ_i x[…, i] M[…, i, j]``.

    Args:
        dim: the dimension.
        factor: M, ``(*parallel, n_in, n_out)``.
        shape: of M.
        parallel: dimensions of the activation that M has too; size 1 where M is the same along one.
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

    def apply(self, bundle: Block) -> Block:
        if bundle.outer is not None:
            done = self._on_outer(bundle)
            if done is not None:
                return done
            bundle = materialized(bundle)
        form = bundle.form
        odd = [x.key for x in form.dims[self.dim] if isinstance(x, BandedAxis) and x.width > 1]
        bundle = densify(bundle, odd)
        form = bundle.form
        n_out = self.shape[-1]
        opened = frozenset(x.key for x in form.dims[self.dim] if isinstance(x, BandedAxis))
        varied = {
            x.key
            for axis, d in enumerate(self.parallel)
            for x in form.dims[d]
            if isinstance(x, BandedAxis) and (self.shape[axis] != 1)
        }
        new = form.with_dim(self.dim, (DenseAxis(n_out),) if n_out != 1 else ())
        new = replace(new, flat=form.flat - opened - varied)
        out_label: Label = (self.dim, 0)
        wanted = [x for x in new.layout if x != out_label] + ([out_label] if n_out != 1 else [])
        la = [(-3, *x) if x[0] == self.dim else x for x in form.layout]
        first, second = OuterFactor(dict(zip(la, form.sizes, strict=True)), bundle.data), self._factor(bundle)
        if not any(x[0] == -3 for x in la) and new.numel >= _OUTER * (first.numel + second.numel):
            return Block(new, None, outer=(first, second))
        if bundle.data is None:
            meter.product(first.sizes, second.sizes, wanted)
            return Block(new, None)
        assert second.tensor is not None
        data = contract(bundle.data, la, second.tensor.to(bundle.data.dtype), second.labels, wanted)
        return bundle.filled(new, arranged(data, wanted, new.layout))

    def _labelled(self, form: Layout) -> tuple[Tensor, list[Label]]:
        """M with labels: parallel axes as the data's, then those of the dimension, then the new one."""
        factor = self.factor.tensor
        factor = factor.transpose(-1, -2) if self.swapped else factor
        factor, labels = spread(form, factor, self.parallel)
        inner, inner_labels = spread(
            Layout(form.seed_axes, (form.dims[self.dim],), form.flat), factor.movedim(len(labels), 0), [0]
        )
        named = [(-3, self.dim, x[1]) if x[0] != -1 else x for x in inner_labels]
        labels = [*named, *labels]
        if self.shape[-1] == 1:
            return inner.squeeze(-1), labels
        return inner, [*labels, (self.dim, 0)]

    def _factor(self, bundle: Block) -> OuterFactor:
        """M as a factor."""
        form = bundle.form
        if bundle.data is not None or (bundle.outer is not None and bundle.outer[0].tensor is not None):
            tensor, labels = self._labelled(form)
            return OuterFactor(dict(zip(labels, tensor.shape, strict=True)), tensor)
        sizes: dict[Label, int] = {}
        for axis, d in enumerate(self.parallel):
            for a, axis_factor in enumerate(form.dims[d]):
                label: Label = (-1, *axis_factor.key) if isinstance(axis_factor, BandedAxis) else (d, a)
                full = form.end[axis_factor.key].size if isinstance(axis_factor, BandedAxis) else axis_factor.size
                sizes[label] = 1 if self.shape[axis] == 1 else full
        for a, axis_factor in enumerate(form.dims[self.dim]):
            if isinstance(axis_factor, BandedAxis):
                sizes[(-1, *axis_factor.key)] = form.end[axis_factor.key].size
            else:
                sizes[(-3, self.dim, a)] = axis_factor.size
        if self.shape[-1] != 1:
            sizes[(self.dim, 0)] = self.shape[-1]
        return OuterFactor(sizes, None)

    def _on_outer(self, bundle: Block) -> Block | None:
        """M times the one factor that has some of what M sums over for itself; None where neither or both have."""
        assert bundle.outer is not None
        form, n_out = bundle.form, self.shape[-1]
        if any(isinstance(x, BandedAxis) for x in form.dims[self.dim]) or self.parallel or n_out == 1:
            return None
        a, b = (f.relabelled(lambda x: (-3, *x) if x[0] == self.dim else x) for f in bundle.outer)
        own_a, own_b = ([x for x in f.labels if x[0] == -3 and x not in g.sizes] for f, g in ((a, b), (b, a)))
        if bool(own_a) == bool(own_b):
            return None
        if own_a:
            a, b, own_b = b, a, own_a
        weight = self._factor(bundle)
        out: Label = (self.dim, 0)
        kept = [x for x in b.labels if x not in own_b]
        shared = [x for x in kept if x[0] == -3]
        if any(b.sizes[x] != weight.sizes[x] for x in (*shared, *own_b)):
            return None
        first = _contracted(b, weight, [*shared, *(x for x in kept if x not in shared), out])
        new = form.with_dim(self.dim, (DenseAxis(n_out),))
        if not shared:
            return Block(new, None, outer=(a, first))
        done = _contracted(a, first, list(new.layout))
        return Block(new, None) if done.tensor is None else bundle.filled(new, done.tensor)


def _contracted(a: OuterFactor, b: OuterFactor, out: list[Label]) -> OuterFactor:
    """The product summed over the labels that are not wanted."""
    sizes = {x: max(a.sizes.get(x, 1), b.sizes.get(x, 1)) for x in out}
    meter.product(a.sizes, b.sizes, out)
    if a.tensor is None or b.tensor is None:
        return OuterFactor(sizes, None)
    tensor = contract(a.tensor, a.labels, b.tensor.to(a.tensor.dtype), b.labels, out)
    return OuterFactor(dict(zip(out, tensor.shape, strict=True)), tensor)


@dataclass(frozen=True)
class Projection:
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

    def apply(self, bundle: Block) -> Block:
        keys = [k for k, (_, _, axis_factor) in bundle.form.banded.items() if axis_factor.width > 1]
        bundle = merged(densify(bundle, keys), self.dim)
        form = bundle.form
        new = replace(form, flat=frozenset())
        meter.move(2 * new.numel + 2 * form.numel)
        meter.move(3 * new.numel)
        if bundle.data is None:
            return Block(new, None)
        data = bundle.data.expand(new.sizes)
        axis = form.layout.index((self.dim, 0))
        vector = arranged(*spread(form, self.vector.tensor.to(data.dtype)), form.layout)
        if self.kind == "softmax":
            scaled = data * vector
            return bundle.made(new, torch.addcmul(scaled, vector, scaled.sum(axis, keepdim=True), value=-1))
        along = _along(data, vector, axis) / -data.shape[axis]
        out = torch.addcmul(data, vector, along)
        if self.kind == "norm":
            out -= data.mean(axis, keepdim=True)
        assert self.scale is not None
        out *= arranged(*spread(form, self.scale.tensor.to(data.dtype)), form.layout)
        return bundle.made(new, out)


def _along(data: Tensor, vector: Tensor, axis: int) -> Tensor:
    """⟨data, vector⟩ along an axis, kept."""
    return (data * vector).sum(axis, keepdim=True)
