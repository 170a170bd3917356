"""Operators that run another way than the file says, because the ones in the file cannot be differentiated.

PyTorch fuses operators for speed (attention, oneDNN's layouts): those have no derivatives, no forward mode or no
batching rule for ``vmap``. Each function here takes the arguments of the operator that it replaces and gives the same
values. Of attention, ``width`` is the argument ``embed_dim``, and ``n`` counts the elements of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Never

import torch
import torch.nn.functional as F
from torch import Tensor

from jaccli.errors import UnsupportedError

if TYPE_CHECKING:
    from jaxtyping import Shaped


def _multi_head_attention(
    query: Shaped[Tensor, "batch n_q width"], key: Shaped[Tensor, "batch n_k width"],
    value: Shaped[Tensor, "batch n_k width"], embed_dim: int, heads: int,
    qkv_weight: Shaped[Tensor, "3*width width"], qkv_bias: Shaped[Tensor, " 3*width"],
    proj_weight: Shaped[Tensor, "width width"], proj_bias: Shaped[Tensor, " width"],
    mask: Shaped[Tensor, "*masked"] | None = None, need_weights: bool = True, average: bool = True,
    mask_type: int | None = None,
) -> tuple[Shaped[Tensor, "batch n_q width"], Shaped[Tensor, "*shares"]]:  # fmt: skip
    """The output, and the shares of attention ``(batch, *heads, n_q, n_k)``, the mean over heads or none of them."""
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
    src: Shaped[Tensor, "batch n width"], embed_dim: int, heads: int,
    qkv_weight: Shaped[Tensor, "3*width width"], qkv_bias: Shaped[Tensor, " 3*width"],
    proj_weight: Shaped[Tensor, "width width"], proj_bias: Shaped[Tensor, " width"],
    use_gelu: bool, norm_first: bool, eps: float,
    norm1_weight: Shaped[Tensor, " width"], norm1_bias: Shaped[Tensor, " width"],
    norm2_weight: Shaped[Tensor, " width"], norm2_bias: Shaped[Tensor, " width"],
    ffn1_weight: Shaped[Tensor, "hidden width"], ffn1_bias: Shaped[Tensor, " hidden"],
    ffn2_weight: Shaped[Tensor, "width hidden"], ffn2_bias: Shaped[Tensor, " width"],
    mask: Shaped[Tensor, "*masked"] | None = None, mask_type: int | None = None,
) -> Shaped[Tensor, "batch n width"]:  # fmt: skip
    def attend(x: Tensor) -> Tensor:
        parts = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _multi_head_attention(x, x, x, embed_dim, heads, *parts, mask, False, True, mask_type)[0]

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
    x: Shaped[Tensor, "batch n_in *size"], weight: Shaped[Tensor, "n_out n_group *kernel"],
    bias: Shaped[Tensor, " n_out"] | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Shaped[Tensor, "batch n_out *size_out"]:  # fmt: skip
    none = [0] * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)


def _dense(x: Shaped[Tensor, "*shape"], *_: Any) -> Shaped[Tensor, "*shape"]:
    return x.to_dense() if x.layout is not torch.strided else x


def _nested(*_: Any) -> Never:
    raise UnsupportedError(
        "the model makes a nested tensor", "tensors of one size", "use a model without it, or its eager form"
    )


def _flash_attention(
    query: Shaped[Tensor, "*batch n_q width"], key: Shaped[Tensor, "*batch n_k width"],
    value: Shaped[Tensor, "*batch n_k out"], dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Shaped[Tensor, "*masked"] | None = None, scale: float | None = None,
) -> tuple[Shaped[Tensor, "*batch n_q out"], None]:  # fmt: skip
    """The fused kernel that decompositions leave has no forward mode and no batching rule.

    Its second result is for a backward pass, which is not in an exported graph.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


def _copy(
    target: Shaped[Tensor, "*shape"], source: Shaped[Tensor, "*broadcast"], non_blocking: bool = False
) -> Shaped[Tensor, "*shape"]:
    """``copy_`` without the write; the operator of that name has no derivative."""
    moved = source.to(device=target.device, dtype=target.dtype, non_blocking=non_blocking)
    return moved.expand_as(target).clone()


IN_SCRIPTS: Final[dict[str, Callable[..., Any]]] = {
    "aten::_native_multi_head_attention": _multi_head_attention,
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

# Functions of PyTorch by which a script asks whether to take a fused path; here they return False.
SWITCHED_OFF = ("torch.backends.mha.get_fastpath_enabled",)

_aten: Final = torch.ops.aten
# A view that the export found possible may not be one here: strides are those of the kernel that ran, and
# another dtype or a gradient calls another kernel. The values are the same; memory is shared where it can be.
VIEWS: Final[dict[Any, Callable[..., Any]]] = {
    _aten.view.default: Tensor.reshape,
    _aten._unsafe_view.default: Tensor.reshape,
}
IN_EXPORTS: Final[dict[Any, Callable[..., Any]]] = {
    # These have no batching rule.
    _aten.sym_size.int: Tensor.size,
    _aten.sym_size.default: Tensor.size,
    _aten.sym_stride.int: Tensor.stride,
    _aten.sym_stride.default: Tensor.stride,
    _aten.sym_numel.default: Tensor.numel,
    _aten.sym_storage_offset.default: Tensor.storage_offset,
    _aten.copy.default: _copy,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention,
}
