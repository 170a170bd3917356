"""Derivatives of reductions, softmax, normalisations and other operators that mix one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Shape
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.matrix import Matrix, Projection
from jaccli.graph.maps.reshape import SumTo
from jaccli.graph.rules.registry import UnaryCall, local_gradient, local_rows, unary_rule
from jaccli.graph.rules.steps import Steps, from_front, reshaped
from jaccli.graph.trace.ir import CaptureGap, Value


@unary_rule("sum mean")
def linear_reduction(call: UnaryCall) -> Steps:
    """y = Σ xᵢ, or Σ xᵢ / n, over dimensions."""
    mean = (Scale(math.prod(call.out.shape) / math.prod(call.value.shape)),) if call.node.short_name == "mean" else ()
    return (*_summed(call), *mean)


def _summed(call: UnaryCall) -> Steps:
    """Sums over the argument ``dim``: one dimension, several, or all of them."""
    shape, dims = call.value.shape, call.args.get("dim")
    # No dimension and an empty list both mean all of them.
    listed = dims if isinstance(dims, list | tuple) else () if dims is None else (dims,)
    reduced = {from_front(d, len(shape)) for d in listed} or set(range(len(shape)))
    ones = tuple(1 if d in reduced else n for d, n in enumerate(shape))
    return (SumTo(shape, ones), *reshaped(ones, call.out.shape))


@unary_rule(
    "amax amin logsumexp var std norm linalg_vector_norm prod var_mean std_mean nansum aminmax", all_outputs=True
)
def reduction(call: UnaryCall) -> Steps:
    """y = f(x): (∇f)ᵀ for each result, by autograd through the operator alone."""
    node, value, out = call.node, call.value, call.out.out
    return (Mul(LazyTensor(lambda: local_gradient(node, value, out)), value.shape), *_summed(call))


@unary_rule("_softmax _safe_softmax softmax")
def softmax(call: UnaryCall) -> Steps:
    """y = softmax(x): diag(y) - y yᵀ along a dimension."""
    if not call.value.shape:
        return (Scale(0.0),)
    return (Projection(call.dim, LazyTensor(lambda: call.out.tensor), "softmax"),)


@unary_rule("_log_softmax log_softmax cumprod logcumsumexp")
def one_dimension_mixed(call: UnaryCall) -> Steps:
    """y = f(x) that mixes one dimension: its matrix there, row by row by autograd through the operator alone."""
    node, value = call.node, call.value
    if not value.shape:
        return (Mul(LazyTensor(lambda: local_gradient(node, value)), ()),)
    dim, n = call.dim, value.shape[call.dim]
    others = tuple(d for d in range(len(value.shape)) if d != dim)

    def make() -> Tensor:
        rows = local_rows(node, value, lambda result, i: result.select(dim, i), n)
        return torch.stack([row.permute(*others, dim) for row in rows], -1)

    shape = (*(value.shape[d] for d in others), n, n)
    return (Matrix(dim, LazyTensor(make), shape, others),)


@unary_rule("native_layer_norm", "input")
def layer_norm(call: UnaryCall) -> Steps:
    """y = γ x̂ + β, x̂ = r (x - μ): diag(γ) (I - 11ᵀ/n - x̂x̂ᵀ/n) r, over the last dimensions (J. L. Ba et al. 2016)."""
    lead = call.value.shape[: len(call.value.shape) - len(call.args["normalized_shape"])]
    count = math.prod(call.args["normalized_shape"])
    return _standardized(call, (*lead, count), _gain(call, (1,) * len(lead) + (count,)))


@unary_rule("native_group_norm", "input")
def group_norm(call: UnaryCall) -> Steps:
    """As ``layer_norm``, over the channels of a group and all positions."""
    n, channels, *space = call.value.shape
    groups = call.args["group"]
    gain = _gain(call, (1, channels) + (1,) * len(space))
    return (*_standardized(call, (n, groups, channels * math.prod(space) // groups)), *gain)


def _standardized(call: UnaryCall, flat: Shape, gain: Steps = ()) -> Steps:
    """(I - 11ᵀ/n - x̂x̂ᵀ/n) r along the last dimension of x in the shape ``flat``; ``gain`` follows in that shape.

    The mean μ and r = 1/σ are the operator's second and third results.
    """
    if flat[-1] == 1:
        # x̂ is zero whatever x: r is 1/√ε, and the layout has no axis to take a mean over.
        raise CaptureGap("a normalisation over one element")
    value, (_, mean, inverse_deviation) = call.value, call.node.outputs[:3]
    shape = (*flat[:-1], 1)

    def x_hat() -> Tensor:
        return (value.tensor.reshape(flat) - mean.tensor.reshape(shape)) * inverse_deviation.tensor.reshape(shape)

    scale = LazyTensor(lambda: inverse_deviation.tensor.reshape(shape))
    norm = Projection(len(flat) - 1, LazyTensor(x_hat), "norm", scale)
    return (*reshaped(value.shape, flat), norm, *gain, *reshaped(flat, value.shape))


def _gain(call: UnaryCall, shape: Shape) -> Steps:
    weight: Value | None = call.args["weight"]
    return () if weight is None else (Mul(LazyTensor(lambda: weight.tensor.reshape(shape)), shape),)


@unary_rule(
    "_native_batch_norm_legit_no_training native_batch_norm _batch_norm_impl_index cudnn_batch_norm "
    "_native_batch_norm_legit batch_norm",
    "input self",
)
def batch_norm(call: UnaryCall) -> Steps:
    """y = γ (x - μ) / √(v + ε) + β, with running statistics: diag(γ / √(v + ε)), a factor for each channel.

    With batch statistics, as ``layer_norm`` where dimension 0 is 1, which is how an instance normalisation is made.
    """
    args, (n, channels, *space) = call.args, call.value.shape
    shape = (1, channels) + (1,) * len(space)
    if args.get("training"):
        if n != 1:
            raise CaptureGap("a normalisation over the batch: samples mix")
        return (*_standardized(call, (channels, math.prod(space))), *_gain(call, shape))
    variance, weight, eps = args["running_var"], args["weight"], args["eps" if "eps" in args else "epsilon"]

    def make() -> Tensor:
        scale: Tensor = (variance.tensor + eps).rsqrt()
        return (scale if weight is None else scale * weight.tensor).reshape(shape)

    return (Mul(LazyTensor(make), shape),)


@unary_rule("cumsum")
def cumsum(call: UnaryCall) -> Steps:
    """y[i] = Σ x[j] over j ≤ i: a triangular matrix of ones."""
    if not call.value.shape:
        return ()
    n, like = call.value.shape[call.dim], call.out.tensor
    return (
        Matrix(call.dim, LazyTensor(lambda: torch.ones(n, n, dtype=like.dtype, device=like.device).triu()), (n, n)),
    )
