"""Products of labelled tensors: one matrix product each, with as few copies as the labels allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.graph.layout.layout import Label


def arranged(tensor: Tensor, labels: Sequence[Label], wanted: Sequence[Label]) -> Tensor:
    """A tensor with its axes in another order, and axes of size 1 where it has none."""
    have = [label for label in wanted if label in labels]
    order = [labels.index(label) for label in have]
    if order != list(range(len(order))):
        tensor = tensor.permute(order)
    if len(have) != len(wanted):
        sizes = iter(tensor.shape)
        tensor = tensor.reshape([next(sizes) if label in labels else 1 for label in wanted])
    return tensor


def contract(a: Tensor, la: Sequence[Label], b: Tensor, lb: Sequence[Label], out: Sequence[Label]) -> Tensor:
    """Σ over the labels that are not in ``out``; sizes of 1 stand for axes along which a factor is constant."""
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    a, la = _trimmed(a, la, b, lb)
    b, lb = _trimmed(b, lb, a, la)
    summed = [x for x in la if x in lb and x not in out]
    if not summed:
        return arranged(a, la, out) * arranged(b, lb, out)
    batch = [x for x in la if x in lb and x in out]
    only_a = [x for x in la if x not in lb]
    only_b = [x for x in lb if x not in la]
    if a.numel() < b.numel() and not batch and only_a and only_b and out.index(only_a[0]) > out.index(only_b[0]):
        return contract(b, lb, a, la, out)  # the order that leaves the result as it is wanted
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
    """Without the axes of size 1 along which the other factor varies."""
    drop = [x for x, n in zip(la, a.shape, strict=True) if n == 1 and x in lb and b.shape[list(lb).index(x)] != 1]
    if not drop:
        return a, list(la)
    kept = [x for x in la if x not in drop]
    return arranged(a, la, [*kept, *drop]).reshape([a.shape[list(la).index(x)] for x in kept]), kept
