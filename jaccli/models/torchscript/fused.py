"""Operators that PyTorch fuses for speed and that have no derivatives, done in differentiable steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jaccli.errors import UnsupportedError


def _attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, heads: int,
    qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor,
    mask: Tensor | None = None, need_weights: bool = True, average: bool = True, mask_type: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).reshape(*x.shape[:2], heads, -1).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-2, -1) * (embed_dim // heads) ** -0.5
    if mask is not None:
        hidden = mask[:, None, None, :] if mask_type == 1 else mask  # 1: of padding, one row a sample
        scores = scores.masked_fill(hidden.bool(), float("-inf"))
    shares = scores.softmax(-1)
    out = F.linear((shares @ v).transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return out, shares.new_empty(0)
    return out, shares.mean(1) if average else shares


def _encoder_layer(
    src: Tensor, embed_dim: int, heads: int,
    qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor,
    use_gelu: bool, norm_first: bool, eps: float,
    norm1_weight: Tensor, norm1_bias: Tensor, norm2_weight: Tensor, norm2_bias: Tensor,
    ffn1_weight: Tensor, ffn1_bias: Tensor, ffn2_weight: Tensor, ffn2_bias: Tensor,
    mask: Tensor | None = None, mask_type: int | None = None,
) -> Tensor:  # fmt: skip
    def attend(x: Tensor) -> Tensor:
        parts = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _attention(x, x, x, embed_dim, heads, *parts, mask, False, True, mask_type)[0]

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, ffn1_weight, ffn1_bias)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ffn2_weight, ffn2_bias)

    def norm1(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm1_weight, norm1_bias, eps)

    def norm2(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm2_weight, norm2_bias, eps)

    if norm_first:
        x = src + attend(norm1(src))
        return x + feed(norm2(x))
    x = norm1(src + attend(src))
    return norm2(x + feed(x))


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    none = [0] * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)


def _dense(x: Tensor, *_: Any) -> Tensor:
    return x.to_dense() if x.layout is not torch.strided else x


def _nested(*_: Any) -> Tensor:
    raise UnsupportedError(
        "the model makes a nested tensor", "tensors of one size", "use a model without it, or its eager form"
    )


REPLACED: dict[str, Callable[..., Any]] = {
    "aten::_native_multi_head_attention": _attention,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    # In a branch of nn.TransformerEncoder that SWITCHED_OFF keeps from running.
    "aten::_nested_tensor_from_mask": _nested,
    "aten::_nested_tensor_from_mask_left_aligned": _nested,
    # optimize_for_inference moves a frozen model to oneDNN's layout, where nothing has derivatives.
    "aten::to_mkldnn": lambda x, *_: x,
    "aten::to_dense": _dense,
    "prim::mkldnn_convolution": _convolution,
    "prim::MKLDNNHardSwish": F.hardswish,
    "prim::MKLDNNHardSigmoid": F.hardsigmoid,
    "prim::MKLDNNHardTanh": F.hardtanh,
    "prim::MKLDNNClamp": torch.clamp,
    "prim::MKLDNNScalarMul": torch.mul,
    "prim::MKLDNNLayerNorm": lambda x, shape, weight, bias, eps, *_: F.layer_norm(x, shape, weight, bias, eps),
    "prim::BroadcastMKLDNNTensors": torch.broadcast_tensors,
}

# Functions of PyTorch that choose a fused path; they answer as if it was switched off.
SWITCHED_OFF = ("torch.backends.mha.get_fastpath_enabled",)
