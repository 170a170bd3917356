"""Operators that are run in another way than the file says, because autograd or vmap needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional


def _size(tensor: Tensor, dim: int | None = None) -> Any:
    return tensor.size() if dim is None else tensor.size(dim)


def _stride(tensor: Tensor, dim: int | None = None) -> Any:
    return tensor.stride() if dim is None else tensor.stride(dim)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, None]:
    """The fused kernel that decompositions leave has no forward mode and no batching rule.

    Its second result is for a backward pass, which is not in an exported graph.
    """
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    ), None


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``copy_`` without the write; the operator of that name has no derivative."""
    moved = source.to(device=target.device, dtype=target.dtype, non_blocking=non_blocking)
    return moved.expand_as(target).clone()


_aten: Final = torch.ops.aten
# A view that the export found possible may not be one here: strides are those of the kernel that ran, and
# another dtype or a gradient calls another kernel. The values are the same; memory is shared where it can be.
VIEWS: Final[dict[Any, Callable[..., Any]]] = {
    _aten.view.default: Tensor.reshape,
    _aten._unsafe_view.default: Tensor.reshape,
}
DIRECT: Final[dict[Any, Callable[..., Any]]] = {
    # These have no batching rule.
    _aten.sym_size.int: _size,
    _aten.sym_size.default: _size,
    _aten.sym_stride.int: _stride,
    _aten.sym_stride.default: _stride,
    _aten.sym_numel.default: Tensor.numel,
    _aten.sym_storage_offset.default: Tensor.storage_offset,
    _aten.copy.default: _copy,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}
