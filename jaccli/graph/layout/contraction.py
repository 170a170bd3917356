"""Products of labelled tensors: one matrix product each, with as few copies as the labels allow.

A labelled tensor has a name for each axis, as the data axes of a block have (``Layout.labels``). Axes of both
factors with one name are multiplied with each other; those that the result does not have are summed over. This is
``torch.einsum`` with names, and with one extension: an axis of size 1 stands for one along which a factor is
constant.

Example: rows ``(token, out, hidden)`` times a weight ``(hidden, in)`` give ``(token, out, in)``: a matrix product
of ``(token · out, hidden)`` and ``(hidden, in)``. A weight for each token, ``(token, hidden, in)``, makes it a
batched one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import Label


@dataclass(frozen=True)
class LabelledTensor:
    """A tensor with a label for each axis; in a dry run sizes only, and the cost model.

    Args:
        sizes: label → size, in the order of the axes.
        data: of these sizes.
    """

    sizes: dict[Label, int]
    data: Tensor | CostModel

    @classmethod
    def of(cls, tensor: Tensor, labels: Sequence[Label]) -> LabelledTensor:
        """A tensor of any shape, with a label for each of its axes."""
        return cls(dict(zip(labels, tensor.shape, strict=True)), tensor)

    @property
    def labels(self) -> list[Label]:
        """Of the axes."""
        return list(self.sizes)

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.sizes.values())

    def relabelled(self, new: Callable[[Label], Label]) -> LabelledTensor:
        """The same with other labels."""
        return LabelledTensor({new(x): n for x, n in self.sizes.items()}, self.data)

    def times(self, other: LabelledTensor, out: Sequence[Label]) -> Tensor | CostModel:
        """The product, summed over the labels that are not in ``out``, which names the axes of its shape in order."""
        if isinstance(self.data, CostModel):
            self.data.product(self.sizes, other.sizes, out)
            return self.data
        assert isinstance(other.data, Tensor)
        return contract(self.data, self.labels, other.data, other.labels, out)


def arranged(tensor: Tensor, labels: Sequence[Label], order: Sequence[Label]) -> Tensor:
    """A tensor with its axes in another order, and axes of size 1 for labels that it does not have.

    Args:
        tensor: of any shape.
        labels: of its axes.
        order: labels of the result's axes; they contain ``labels``.

    Returns:
        A view where strides allow it: the shape has the tensor's size or 1 for each label of ``order``.
    """
    present = [label for label in order if label in labels]
    places = [labels.index(label) for label in present]
    if places != list(range(len(places))):
        tensor = tensor.permute(places)
    # ``reshape`` by sizes: axes of size 1 are inserted without a copy, whatever the strides.
    if len(present) != len(order):
        sizes = iter(tensor.shape)
        tensor = tensor.reshape([next(sizes) if label in labels else 1 for label in order])
    return tensor


def contract(a: Tensor, la: Sequence[Label], b: Tensor, lb: Sequence[Label], out: Sequence[Label]) -> Tensor:
    """The product of two tensors, summed over the labels that are not in ``out``.

    Args:
        a: of any shape, with an axis for each label of ``la``.
        la: its labels.
        b: of any shape, with an axis for each label of ``lb``. Under one label both have the same size, or one has 1.
        lb: its labels.
        out: labels of the result.

    Returns:
        A tensor with an axis for each label of ``out``, in that order; of the wider dtype of the two.
    """
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    # ``bmm`` does not broadcast: an axis of size 1 that the other factor has in full is left out, and then belongs to
    # the other one alone.
    a, la = _trimmed(a, la, b, lb)
    b, lb = _trimmed(b, lb, a, la)
    summed = [x for x in la if x in lb and x not in out]
    if not summed:
        return arranged(a, la, out) * arranged(b, lb, out)
    batch = [x for x in la if x in lb and x in out]
    only_a = [x for x in la if x not in lb]
    only_b = [x for x in lb if x not in la]
    # A product comes out with the axes of its first factor first. Where ``out`` has them the other way round,
    # exchanging the factors saves a permuted result.
    if a.numel() < b.numel() and not batch and only_a and only_b and out.index(only_a[0]) > out.index(only_b[0]):
        return contract(b, lb, a, la, out)
    size_a, size_b = dict(zip(la, a.shape, strict=True)), dict(zip(lb, b.shape, strict=True))
    n, i, j, k = (math.prod(size_a.get(x, 0) or size_b[x] for x in group) for group in (batch, only_a, only_b, summed))
    left = arranged(a, la, [*batch, *only_a, *summed])
    right = arranged(b, lb, [*batch, *summed, *only_b])
    if batch:
        product = torch.bmm(left.reshape(n, i, k), right.reshape(n, k, j))
    else:
        product = torch.mm(left.reshape(i, k), right.reshape(k, j))
    labels = [*batch, *only_a, *only_b]
    product = product.reshape([size_a.get(x) or size_b[x] for x in labels])
    return arranged(product, labels, out)


def _trimmed(a: Tensor, la: Sequence[Label], b: Tensor, lb: Sequence[Label]) -> tuple[Tensor, list[Label]]:
    """``a``, of any shape, without its axes of size 1 along which the other factor varies."""
    drop = [x for x, n in zip(la, a.shape, strict=True) if n == 1 and x in lb and b.shape[list(lb).index(x)] != 1]
    if not drop:
        return a, list(la)
    rest = [x for x in la if x not in drop]
    return arranged(a, la, [*rest, *drop]).reshape([a.shape[list(la).index(x)] for x in rest]), rest
