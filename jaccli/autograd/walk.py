"""Gradient graphs: a walk over them, and what torch's kernels get wrong in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor


def graph_nodes(*values: Tensor, beyond: Iterable[Tensor] = ()) -> Iterator[Any]:
    """The differentiable operators that lead to values, each once; not those that lead to a tensor of ``beyond``."""
    seen: set[Any] = {None, *(tensor.grad_fn for tensor in beyond)}
    ahead: list[Any] = [value.grad_fn for value in values]
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            yield node
            ahead += [before for before, _ in node.next_functions]


def node_shape(meta: Any) -> tuple[Any, ...]:
    """The shape of an operator's result; () of a nested tensor of the kind that has none."""
    try:
        return tuple(getattr(meta, "shape", ()))
    except RuntimeError:
        return ()


def mend_batch_norm(*values: Tensor, beyond: Iterable[Tensor] = ()) -> list[Any]:
    """Have batch and instance norms that lead to the values take cotangents in their input's memory layout.

    On the CPU ``native_batch_norm_backward`` reads input and cotangent by one index. Where dimensions of size 1
    make strides ambiguous (one sample, or a width of 1), it takes layouts for the same that are not, and mixes
    positions with channels: so it does for one sample whose normalised image is then cut into tokens
    (``flatten(2).transpose(1, 2)``). torch 2.13, instance norm too, alone and batched. Cost: a walk over the
    graph; for such inputs a copy of the cotangent in each pass.

    Returns:
        Handles of the hooks, to remove them from a graph that is the caller's.
    """
    handles = []
    for node in graph_nodes(*(value for value in values if value.device.type == "cpu"), beyond=beyond):
        if node.name().startswith("NativeBatchNorm"):
            given = node._saved_input
            if given.dim() > 2 and 1 in given.shape:
                handles.append(node.register_prehook(partial(_in_layout, not given.is_contiguous())))
    return handles


def _in_layout(channels_last: bool, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    first, *rest = cotangents
    if first is None:
        return cotangents
    # Not clone(memory_format=channels_last): within a batched pass there is no such copy.
    moved = first.movedim(1, -1) if channels_last else first
    copied = moved.clone(memory_format=torch.contiguous_format)
    return copied.movedim(-1, 1) if channels_last else copied, *rest
