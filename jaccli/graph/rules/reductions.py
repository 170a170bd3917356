"""Derivatives of reductions, softmax, normalisations and whatever else mixes one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Primitive
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.maps.reshape import SumTo
from jaccli.graph.rules.registry import Map, bound, local_gradient, normal, only_active, reshaped, rule
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap


@rule("sum", "mean")
def linear_reduction(node: Node) -> list[Map]:
    """Sum or mean over dimensions."""
    value, out = bound(node)["self"], node.outputs[0]
    kept = _kept(node, value)
    steps: tuple[Primitive, ...] = (SumTo(value.shape, kept), *reshaped(kept, out.shape))
    if node.name == "aten.mean":
        steps += (Scale(math.prod(out.shape) / math.prod(value.shape)),)
    return [Map(value, out, steps)]


def _kept(node: Node, value: Value) -> tuple[int, ...]:
    """The shape with the reduced dimensions as 1."""
    found = bound(node)
    dims = found.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return (1,) * len(value.shape)
    chosen = [normal(d, len(value.shape)) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    return tuple(1 if d in chosen else n for d, n in enumerate(value.shape))


@rule(
    "amax",
    "amin",
    "logsumexp",
    "var",
    "std",
    "norm",
    "linalg_vector_norm",
    "prod",
    "var_mean",
    "std_mean",
    "nansum",
    "aminmax",
)
def reduction(node: Node) -> list[Map]:
    """Any reduction: its gradient by autograd through the operator alone, as rows."""
    value = bound(node)["self"] if "self" in bound(node) else node.inputs()[0]
    kept = _kept(node, value)

    def gradient(out: int) -> LazyTensor:
        def make() -> Tensor:
            (found,) = local_gradient(node, [value], out)
            return torch.zeros_like(value.tensor) if found is None else found

        return LazyTensor(make)

    return [
        Map(value, out, (Mul(gradient(out.out), value.shape), SumTo(value.shape, kept), *reshaped(kept, out.shape)))
        for out in node.outputs
    ]


@rule("_softmax", "_safe_softmax", "softmax")
def softmax(node: Node) -> list[Map]:
    """diag(y) - y yᵀ along a dimension."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    if not value.shape:
        return [Map(value, out, (Scale(0.0),))]
    return [
        Map(
            value, out, (Projection(normal(found["dim"], len(value.shape)), LazyTensor(lambda: out.tensor), "softmax"),)
        )
    ]


@rule("_log_softmax", "log_softmax", "cumprod", "logcumsumexp")
def along(node: Node) -> list[Map]:
    """What mixes one dimension: its matrix there, column by column by autograd through the operator alone."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    if not value.shape:
        return [Map(value, out, (Mul(LazyTensor(lambda: _one(node, value)), out.shape),))]
    dim = normal(found["dim"], len(value.shape))
    n = value.shape[dim]
    others = tuple(d for d in range(len(value.shape)) if d != dim)

    def make() -> Tensor:
        leaf = value.tensor.detach().requires_grad_()
        with torch.enable_grad():
            result = node.op(*swap(node.args, lambda v: leaf if v is value else v.tensor), **node.kwargs)
            rows = [torch.autograd.grad(result.select(dim, i).sum(), leaf, retain_graph=True)[0] for i in range(n)]
        return torch.stack([row.permute(*others, dim) for row in rows], -1)

    shape = (*(value.shape[d] for d in others), n, n)
    return [Map(value, out, (Matrix(dim, LazyTensor(make), shape, others),))]


def _one(node: Node, value: Value) -> Tensor:
    (found,) = local_gradient(node, [value])
    return found if found is not None else torch.zeros_like(value.tensor)


@rule("native_layer_norm")
def layer_norm(node: Node) -> list[Map]:
    """γ (I - 11ᵀ/n - x̂x̂ᵀ/n) r, over the last dimensions (J. L. Ba et al. 2016)."""
    found = only_active(node, "input")
    value, (out, mean, deviation) = found["input"], node.outputs
    count = math.prod(found["normalized_shape"])
    lead = value.shape[: len(value.shape) - len(found["normalized_shape"])]
    flat = (*lead, count)
    stats = (*lead, 1)
    hat = LazyTensor(
        lambda: _centred(value.tensor.reshape(flat), mean.tensor.reshape(stats), deviation.tensor.reshape(stats))
    )
    scale = LazyTensor(lambda: deviation.tensor.reshape(stats))
    steps: list[Primitive] = [*reshaped(value.shape, flat), _norm(len(lead), hat, scale, count)]
    steps += _gain(found["weight"], (1,) * len(lead) + (count,))
    return [Map(value, out, (*steps, *reshaped(flat, out.shape)))]


def _norm(dim: int, hat: LazyTensor, scale: LazyTensor, count: int) -> Primitive:
    if count == 1:
        raise CaptureGap("a normalisation over one element")
    return Projection(dim, hat, "norm", scale)


def _centred(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - mean) * scale


def _gain(weight: Value | None, shape: tuple[int, ...]) -> tuple[Primitive, ...]:
    if weight is None:
        return ()
    return (Mul(LazyTensor(lambda: weight.tensor.reshape(shape)), shape),)


@rule("native_group_norm")
def group_norm(node: Node) -> list[Map]:
    """Normalised over the channels of a group and all positions."""
    found = only_active(node, "input")
    value, (out, mean, deviation) = found["input"], node.outputs
    n, channels, groups = value.shape[0], value.shape[1], found["group"]
    count = math.prod(value.shape[1:]) // groups
    flat, stats = (n, groups, count), (n, groups, 1)
    hat = LazyTensor(
        lambda: _centred(value.tensor.reshape(flat), mean.tensor.reshape(stats), deviation.tensor.reshape(stats))
    )
    scale = LazyTensor(lambda: deviation.tensor.reshape(stats))
    steps = (*reshaped(value.shape, flat), _norm(2, hat, scale, count), *reshaped(flat, value.shape))
    gain = _gain(found["weight"], (1, channels) + (1,) * (len(value.shape) - 2))
    return [Map(value, out, (*steps, *gain))]


@rule(
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
    "_batch_norm_impl_index",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "batch_norm",
)
def batch_norm(node: Node) -> list[Map]:
    """A scale for each channel, with the running statistics."""
    found = only_active(node, "input", "self")
    if found.get("training"):
        return _instance_norm(node)
    value = found.get("input") or found["self"]
    variance, weight, eps = found["running_var"], found["weight"], found["eps" if "eps" in found else "epsilon"]
    shape = (1, value.shape[1]) + (1,) * (len(value.shape) - 2)

    def make() -> Tensor:
        scale: Tensor = (variance.tensor + eps).rsqrt()
        return (scale if weight is None else scale * weight.tensor).reshape(shape)

    return [Map(value, node.outputs[0], (Mul(LazyTensor(make), shape),))]


def _instance_norm(node: Node) -> list[Map]:
    """Batch statistics over a first dimension of 1, which is how an instance normalisation is made."""
    found = bound(node)
    value = found["input"]
    if value.shape[0] != 1:
        raise CaptureGap("a normalisation over the batch: samples mix")
    out, mean, deviation = node.outputs[:3]
    channels, count = value.shape[1], math.prod(value.shape[2:])
    flat, stats = (channels, count), (channels, 1)
    hat = LazyTensor(
        lambda: _centred(value.tensor.reshape(flat), mean.tensor.reshape(stats), deviation.tensor.reshape(stats))
    )
    scale = LazyTensor(lambda: deviation.tensor.reshape(stats))
    shape = (1, channels) + (1,) * (len(value.shape) - 2)
    steps = (*reshaped(value.shape, flat), _norm(1, hat, scale, count), *reshaped(flat, value.shape))
    return [Map(value, out, (*steps, *_gain(found["weight"], shape)))]


@rule("cumsum")
def cumsum(node: Node) -> list[Map]:
    """Running sums: a triangular matrix of ones."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    if not value.shape:
        return [Map(value, out, ())]
    dim = normal(found["dim"], len(value.shape))
    n = value.shape[dim]
    ones = LazyTensor(lambda: torch.ones(n, n, dtype=out.tensor.dtype, device=out.tensor.device).triu())
    return [Map(value, out, (Matrix(dim, ones, (n, n)),))]
