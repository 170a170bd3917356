"""Derivatives of operators that read elements at an index, or write them there.

Reading at an index that is constant is a ``Pick``, at one that depends on the input a ``Gather``; writing is their
transpose, ``Drop`` or ``Scatter``. What is written over loses its derivative, so that positions must not repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.graph.layout.layout import exchanged
from jaccli.graph.maps.base import LazyTensor, Shape
from jaccli.graph.maps.elementwise import Mul
from jaccli.graph.maps.gather import Drop, Gather, Scatter
from jaccli.graph.rules.reductions import reduction
from jaccli.graph.rules.registry import Map, UnaryCall, active, arguments, only_active, rule, unary_rule
from jaccli.graph.rules.steps import (
    Steps,
    broadcast,
    from_front,
    number_or_one,
    on_one_dim,
    picked,
    reshaped,
    scaled,
    sliced,
    zeroed,
)
from jaccli.graph.trace.ir import CaptureGap, Node, Value

if TYPE_CHECKING:
    from jaxtyping import Shaped


@unary_rule("index_select")
def index_select(call: UnaryCall) -> Steps:
    """y[i] = x[index[i]], in one dimension."""
    value, index, wide, dim = call.value, call.args["index"], call.out.shape, call.dim
    if not index.varies:
        return picked(value.shape, dim, index.tensor.reshape(-1))
    shape = on_one_dim(len(wide), dim, wide[dim])
    return (Gather(dim, value.shape[dim], LazyTensor(lambda: index.tensor.reshape(shape).expand(wide)), wide),)


@unary_rule("index _unsafe_index")
def index(call: UnaryCall) -> Steps:
    """y[k] = x[i[k], j[k], …]: adjacent indices are one index into those dimensions flattened."""
    dim, merged, flat = _flat_index(call.value.shape, call.args["indices"])
    steps = picked(merged, dim, flat.reshape(-1))
    after = exchanged(merged, dim, flat.numel())
    return (*reshaped(call.value.shape, merged), *steps, *reshaped(after, call.out.shape))


def _flat_index(shape: Shape, indices: Sequence[Value | None]) -> tuple[int, Shape, Tensor]:
    """Constant indices, or masks, into adjacent dimensions as one index into those dimensions flattened.

    Returns:
        The flattened dimension, the shape with it, and the index, of the shape of the broadcast indices, ``(*shape,)``.

    Raises:
        CaptureGap: dimensions apart, or an index that depends on the input.
    """
    dims = [d for d, i in enumerate(indices) if i is not None]
    values = [i for i in indices if i is not None]
    if dims != list(range(dims[0], dims[-1] + 1)):
        raise CaptureGap("indices with a gap between them")
    if any(i.varies for i in values):
        raise CaptureGap("an index that depends on the input")
    positions = torch.broadcast_tensors(*(p for i in values for p in _positions(i.tensor)))
    first, sizes = dims[0], shape[dims[0] : dims[0] + len(positions)]
    flat = torch.zeros_like(positions[0])
    for position, size in zip(positions, sizes, strict=True):
        flat = flat * size + position % size
    return first, (*shape[:first], math.prod(sizes), *shape[first + len(sizes) :]), flat


def _positions(index: Tensor) -> list[Tensor]:
    """A mask of any shape as an index ``(k,)`` for each of its dimensions; an index itself."""
    return list(index.nonzero().unbind(1)) if index.dtype in (torch.bool, torch.uint8) else [index]


@rule("index_put _unsafe_index_put")
def index_put(node: Node) -> list[Map]:
    """y = x but y[index[k]] = values[k], or with ``accumulate`` y[index[k]] += values[k]."""
    args = only_active(node, "self", "values")
    base, values, out = args["self"], args["values"], node.outputs[0]
    dim, merged, index = _flat_index(base.shape, args["indices"])
    wide = (*base.shape[:dim], *index.shape, *merged[dim + 1 :])
    flat = index.reshape(-1)
    # A dimension of size 1 has no axis in a layout that ``Drop`` could add to.
    if merged[dim] == 1 or (not args["accumulate"] and _repeats(flat)):
        raise CaptureGap("an index_put with repeated positions")
    drop = (*reshaped(wide, exchanged(merged, dim, flat.numel())), Drop(dim, merged[dim], flat))
    added = (*broadcast(values.shape, wide), *drop, *reshaped(merged, out.shape))
    keep = (*reshaped(base.shape, merged), zeroed(out, dim, merged, flat), *reshaped(merged, out.shape))
    return _written(out, values, added, base, () if args["accumulate"] else keep)


def _repeats(index: Shaped[Tensor, "*shape"]) -> bool:
    return bool(index.unique().numel() != index.numel())


def _written(out: Value, piece: Any, steps: Steps, base: Any, base_steps: Steps) -> list[Map]:
    """The maps of a piece that is written into a base, of those of the two that are active."""
    pairs = ((piece, steps), (base, base_steps))
    return [Map(value, out, value_steps) for value, value_steps in pairs if active(value)]


@rule("index_add index_copy")
def index_add(node: Node) -> list[Map]:
    """y[index[i]] = x[index[i]] + α source[i], or, of ``index_copy``, source[i], in one dimension."""
    args = only_active(node, "self", "source")
    base, out = args["self"], node.outputs[0]
    adds = node.short_name == "index_add"
    if args["index"].varies:
        raise CaptureGap(f"{node.name} with an index that depends on the input")
    index, dim = args["index"].tensor.reshape(-1), from_front(args["dim"], len(base.shape))
    if not adds and _repeats(index):
        raise CaptureGap("an index_copy with repeated positions")
    steps = (Drop(dim, base.shape[dim], index), *scaled(number_or_one(args.get("alpha"))))
    return _written(out, args["source"], steps, base, () if adds else (zeroed(out, dim, base.shape, index),))


@rule("scatter scatter_add")
def scatter(node: Node) -> list[Map]:
    """y[index[i, j], j] = src[i, j], or, of ``scatter_add``, added there; dimension 0 stands for ``dim``."""
    args = only_active(node, "self", "src")
    base, piece, index, out = args["self"], args.get("src"), args["index"], node.outputs[0]
    adds, shape, dim = node.short_name == "scatter_add", base.shape, from_front(args["dim"], len(base.shape))
    if index.varies or args.get("reduce") is not None:
        raise CaptureGap(f"{node.name} with an index that depends on the input, or a reduction")
    # ``Scatter`` changes the size of one dimension alone.
    if any(index.shape[d] != n for d, n in enumerate(shape) if d != dim):
        raise CaptureGap(f"{node.name} into part of the other dimensions")
    if not adds and bool((torch.zeros(shape).scatter_add(dim, index.tensor.cpu(), torch.ones(index.shape)) > 1).any()):
        raise CaptureGap(f"{node.name} with repeated positions")

    def mask() -> Tensor:
        return torch.ones(shape, dtype=out.tensor.dtype, device=out.tensor.device).scatter(dim, index.tensor, 0)

    cut = _cut_to(index.shape, piece.shape) if isinstance(piece, Value) else ()
    steps = (*cut, Scatter(dim, shape[dim], LazyTensor(lambda: index.tensor), index.shape))
    return _written(out, piece, steps, base, () if adds else (Mul(LazyTensor(mask), shape),))


def _cut_to(small: Shape, shape: Shape) -> Steps:
    """The first elements of every dimension."""
    return tuple(s for d, (n, m) in enumerate(zip(shape, small, strict=True)) for s in sliced(d, n, 0, m))


@unary_rule("gather")
def gather(call: UnaryCall) -> Steps:
    """y[i, j] = x[index[i, j], j]; dimension 0 stands for ``dim``."""
    shape, index = call.value.shape, call.args["index"]
    if not shape:
        return broadcast((), call.out.shape)
    n = shape[call.dim]
    cut = _cut_to(exchanged(index.shape, call.dim, n), shape)
    return (*cut, Gather(call.dim, n, LazyTensor(lambda: index.tensor), index.shape))


@rule("sort topk kthvalue median mode max min cummax cummin")
def chosen(node: Node) -> list[Map]:
    """y[i] = x[index[i]] along a dimension, the index being the second output; without one, as ``reduction``."""
    if len(node.outputs) < 2:
        return reduction(node)
    args, (out, places) = arguments(node), node.outputs
    value = args["self"]
    if not value.shape:
        return [Map(value, out, ())]
    dim = from_front(args["dim"], len(value.shape))
    after = exchanged(value.shape, dim, out.shape[dim] if len(out.shape) == len(value.shape) else 1)
    index = LazyTensor(lambda: places.tensor.reshape(after))
    return [Map(value, out, (Gather(dim, value.shape[dim], index, after), *reshaped(after, out.shape)))]


@unary_rule(
    "unfold as_strided tril triu im2col diagonal diag_embed rot90 pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d"
)
def moved(call: UnaryCall) -> Steps:
    """y[k] = x[index[k]] or 0, of any operator that only moves elements.

    The index is found by running the operator on the numbers 1, 2, …; 0 is what it fills in.

    Raises:
        CaptureGap: samples mix.
    """
    node, shape, out = call.node, call.value.shape, call.out.shape
    if not shape:
        raise CaptureGap(f"{node.name} of a single number")
    # float64 holds whole numbers up to 2^53, more than a tensor has elements.
    places = node.op(_numbered(node, call.value), *node.args[1:], **node.kwargs).long() - 1
    if not out or out[0] != shape[0]:
        # Dimension 0 is not the samples in both: one index into all elements.
        n_in, places = math.prod(shape), places.reshape(1, -1)
    else:
        n_in, places = math.prod(shape[1:]), places.reshape(shape[0], -1)
        offset = torch.arange(shape[0], device=places.device)[:, None] * n_in
        places = torch.where(places >= 0, places - offset, places)
        # One index for all samples: each reads at the same places of its own, and at none of another sample.
        if not bool((places == places[0]).all()) or bool((places >= n_in).any()):
            raise CaptureGap(f"{node.name} across samples")
    index = places[0]
    empty = index < 0
    before, after = (len(places), n_in), (len(places), len(index))
    steps = picked(before, 1, index.clamp(min=0))
    if bool(empty.any()):
        filled = LazyTensor(lambda: (~empty).to(call.out.tensor.dtype).reshape(1, -1))
        steps += (Mul(filled, (1, len(index))),)
    return (*reshaped(shape, before), *steps, *reshaped(after, out))


def _numbered(node: Node, value: Value) -> Tensor:
    """1, 2, … in the place of the elements, in the value's shape."""
    tensor = value.tensor
    numbers = torch.arange(1, tensor.numel() + 1, dtype=torch.float64, device=tensor.device).reshape(value.shape)
    if node.short_name != "as_strided":
        return numbers
    # It reads memory, whatever the shape: the numbers must lie as the elements do.
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = numbers.new_zeros(size).as_strided(value.shape, tensor.stride(), tensor.storage_offset())
    memory.copy_(numbers)
    if not torch.equal(memory, numbers) or bool((node.op(memory, *node.args[1:], **node.kwargs) == 0).any()):
        raise CaptureGap("memory read through another tensor's strides")
    return memory
