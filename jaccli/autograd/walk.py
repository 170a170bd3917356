"""Walks over gradient graphs, and what torch's kernels get wrong in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor


def graph_nodes(*values: Tensor, beyond: Iterable[Tensor] = ()) -> Iterator[Any]:
    """The differentiable operators that lead to values of any shape, each once, in no particular order.

    The walk stops at the tensors of ``beyond``: what leads to them is left out.
    """
    # A leaf that requires no gradients has None for an operator; counted as visited, it needs no test of its own.
    visited: set[Any] = {None, *(tensor.grad_fn for tensor in beyond)}
    pending: list[Any] = [value.grad_fn for value in values]
    while pending:
        node = pending.pop()
        if node not in visited:
            visited.add(node)
            yield node
            pending += [before for before, _ in node.next_functions]


def result_sizes(node: Any) -> list[int]:
    """How many elements each result of an operator has.

    A dimension of several lengths (of a nested tensor) counts as 1, and a nested tensor without a shape is one element.
    """
    sizes = []
    # A private attribute of torch: without it nothing is known, and callers then count no memory for the node.
    for meta in getattr(node, "_input_metadata", ()):
        try:
            shape = tuple(getattr(meta, "shape", ()))
        except RuntimeError:  # a nested tensor of the kind that has no shape
            shape = ()
        sizes.append(torch.Size([size if isinstance(size, int) else 1 for size in shape]).numel())
    return sizes


def coarsest(target: Tensor) -> float:
    """The largest machine epsilon among the dtypes of a value of any shape and of the results it was computed from.

    That of bfloat16 where a float32 network works in bfloat16 somewhere inside, whatever its target's own dtype.
    Precision inside of an operator (a checkpoint, an ``autograd.Function``) is not seen. Cost: a walk over the graph.
    """
    dtypes = {target.dtype}
    for node in graph_nodes(target):
        dtypes |= {meta.dtype for meta in getattr(node, "_input_metadata", ())}
    eps = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(eps, default=0.0)


def is_once_differentiable(node: Any) -> bool:
    """Whether an operator is the gradient of a function marked ``once_differentiable``: it has no derivative."""
    return bool(node.name() == "torch::autograd::Error")


def mend_batch_norm(*values: Tensor, beyond: Iterable[Tensor] = ()) -> list[Any]:
    """Have batch and instance norms that lead to values of any shape take cotangents in their input's memory layout.

    On the CPU ``native_batch_norm_backward`` reads input and cotangent by one index. Where dimensions of size 1
    make strides ambiguous (one sample, or a width of 1), it takes two different layouts for the same one, and mixes
    positions with channels: for example with one sample whose normalised image is then cut into tokens
    (``flatten(2).transpose(1, 2)``). Seen in torch 2.13, in instance norm too, in single and in batched passes.
    Cost: a walk over the graph; for such inputs a copy of the cotangent in each pass.

    Returns:
        Handles of the hooks, to remove them from a graph that is the caller's.
    """
    handles = []
    for node in graph_nodes(*(value for value in values if value.device.type == "cpu"), beyond=beyond):
        if node.name().startswith("NativeBatchNorm"):
            normalised = node._saved_input
            if normalised.dim() > 2 and 1 in normalised.shape:
                handles.append(node.register_prehook(partial(_in_layout, not normalised.is_contiguous())))
    return handles


def _in_layout(channels_last: bool, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same cotangents, of any shapes, of which the first is copied in the layout of the input."""
    first, *rest = cotangents  # of the normalised values; the saved mean and 1/σ take no cotangents in practice
    if first is None:
        return cotangents
    # Not clone(memory_format=channels_last): a batched pass has no such copy.
    moved = first.movedim(1, -1) if channels_last else first
    copied = moved.clone(memory_format=torch.contiguous_format)
    return copied.movedim(-1, 1) if channels_last else copied, *rest
