"""Derivatives of operators that pick elements by index, or put them there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Primitive
from jaccli.graph.maps.elementwise import Mul
from jaccli.graph.maps.gather import Drop, Gather, Pick, Scatter
from jaccli.graph.maps.reshape import Expand
from jaccli.graph.rules.elementwise import broadcast
from jaccli.graph.rules.registry import Map, active, bound, normal, number, only_active, reshaped, rule, scaled, sliced
from jaccli.graph.trace.ir import CaptureGap, Node, Value


@rule("index_select")
def index_select(node: Node) -> list[Map]:
    """Positions of one dimension."""
    found = only_active(node, "self")
    value, index, out = found["self"], found["index"], node.outputs[0]
    dim = normal(found["dim"], len(value.shape))
    return [Map(value, out, _picked(value, dim, index, out))]


def _picked(value: Value, dim: int, index: Value, out: Value) -> tuple[Primitive, ...]:
    if index.varies:
        shape = tuple(out.shape[dim] if d == dim else 1 for d in range(len(out.shape)))
        wide = tuple(out.shape)
        late = LazyTensor(lambda: index.tensor.reshape(shape).expand(wide))
        return (Gather(dim, value.shape[dim], late, wide),)
    if value.shape[dim] == 1:
        return () if index.tensor.numel() == 1 else (Expand(value.shape, out.shape),)
    return (Pick(dim, value.shape[dim], index.tensor.reshape(-1)),)


@rule("index", "_unsafe_index")
def index(node: Node) -> list[Map]:
    """Indexing with tensors: adjacent ones are one index into those dimensions flattened."""
    found = only_active(node, "self")
    value, out, indices = found["self"], node.outputs[0], list(found["indices"])
    places = [d for d, i in enumerate(indices) if i is not None]
    if places != list(range(places[0], places[-1] + 1)):
        raise CaptureGap("indices with a gap between them")
    chosen = [indices[d] for d in places]
    if any(i.tensor.dtype in (torch.bool, torch.uint8) for i in chosen):
        return _masked(value, chosen, places, out)
    if any(i.varies for i in chosen):
        raise CaptureGap("an index that hangs on the input")
    sizes = [value.shape[d] for d in places]
    flat = _flat_index([i.tensor for i in chosen], sizes)
    first = places[0]
    merged = (*value.shape[:first], math.prod(sizes), *value.shape[places[-1] + 1 :])
    picked = (*value.shape[:first], flat.numel(), *value.shape[places[-1] + 1 :])
    steps: tuple[Primitive, ...] = reshaped(value.shape, merged)
    if merged[first] == 1:
        steps += (Expand(merged, picked),) if merged != picked else ()
    else:
        steps += (Pick(first, merged[first], flat.reshape(-1)),)
    return [Map(value, out, (*steps, *reshaped(picked, out.shape)))]


def _masked(value: Value, chosen: list[Value], places: list[int], out: Value) -> list[Map]:
    if len(chosen) != 1 or chosen[0].varies:
        raise CaptureGap("a mask that hangs on the input")
    mask, first = chosen[0].tensor, places[0]
    width = mask.dim()
    merged = (*value.shape[:first], mask.numel(), *value.shape[first + width :])
    index_ = mask.reshape(-1).nonzero().reshape(-1)
    if merged[first] == 1:
        return [Map(value, out, reshaped(value.shape, out.shape))]
    picked = (*merged[:first], index_.numel(), *merged[first + 1 :])
    return [
        Map(
            value,
            out,
            (*reshaped(value.shape, merged), Pick(first, merged[first], index_), *reshaped(picked, out.shape)),
        )
    ]


def _flat_index(indices: list[Tensor], sizes: list[int]) -> Tensor:
    """One index into the flattened dimensions."""
    wide = torch.broadcast_tensors(*indices)
    flat = torch.zeros_like(wide[0])
    for position, size in zip(wide, sizes, strict=True):
        flat = flat * size + position % size
    return flat


@rule("index_put", "_unsafe_index_put")
def index_put(node: Node) -> list[Map]:
    """Positions replaced, or added to."""
    found = only_active(node, "self", "values")
    base, values, out = found["self"], found["values"], node.outputs[0]
    indices = list(found["indices"])
    places = [d for d, i in enumerate(indices) if i is not None]
    if places != list(range(places[0], places[-1] + 1)) or any(indices[d].varies for d in places):
        raise CaptureGap("an index_put whose indices are apart or hang on the input")
    tensors = [t for d in places for t in _positions(indices[d].tensor)]
    first, count = places[0], len(tensors)
    sizes = list(base.shape[first : first + count])
    flat = _flat_index(tensors, sizes)
    merged = (*base.shape[:first], math.prod(sizes), *base.shape[first + count :])
    result = []
    wide = (*base.shape[:first], *flat.shape, *base.shape[first + count :])
    picked = (*base.shape[:first], flat.numel(), *base.shape[first + count :])
    flat = flat.reshape(-1)
    if merged[first] == 1 or (not found["accumulate"] and flat.unique().numel() != flat.numel()):
        raise CaptureGap("an index_put with repeated positions")
    if active(values):
        drop = Drop(first, merged[first], flat)
        steps = (*broadcast(values.shape, wide), *reshaped(wide, picked), drop, *reshaped(merged, out.shape))
        result.append(Map(values, out, steps))
    if active(base):
        steps_: tuple[Primitive, ...] = ()
        if not found["accumulate"]:
            shape = tuple(merged[first] if d == first else 1 for d in range(len(merged)))

            def mask() -> Tensor:
                keep = torch.ones(merged[first], dtype=out.tensor.dtype, device=out.tensor.device)
                return keep.index_fill(0, flat, 0).reshape(shape)

            steps_ = (*reshaped(base.shape, merged), Mul(LazyTensor(mask), shape), *reshaped(merged, out.shape))
        result.append(Map(base, out, steps_))
    return result


def _positions(index_: Tensor) -> list[Tensor]:
    if index_.dtype in (torch.bool, torch.uint8):
        return list(index_.nonzero().unbind(1))
    return [index_]


@rule("index_add", "scatter_add", "scatter", "index_copy", "scatter_reduce")
def scattered(node: Node) -> list[Map]:
    """Rows added or put at positions of one dimension, the positions being constant."""
    found = only_active(node, "self", "src", "source")
    base, index_, out = found["self"], found["index"], node.outputs[0]
    piece = found.get("src", found.get("source"))
    name = node.name.removeprefix("aten.")
    if index_.varies or name == "scatter_reduce" or found.get("reduce") is not None:
        raise CaptureGap(f"{node.name} with an index that hangs on the input, or a reduction")
    dim = normal(found["dim"], len(base.shape))
    full, alpha = base.shape[dim], number(found.get("alpha"))
    adds = name in ("index_add", "scatter_add")
    result = []
    if name.startswith("index"):
        steps: tuple[Primitive, ...] = (Drop(dim, full, index_.tensor.reshape(-1)), *scaled(alpha))
        used = index_.tensor.reshape(-1)
        shape = tuple(full if d == dim else 1 for d in range(len(base.shape)))

        def mask() -> Tensor:
            keep = torch.ones(full, dtype=out.tensor.dtype, device=out.tensor.device)
            return keep.index_fill(0, used, 0).reshape(shape)
    else:
        trimmed = [(d, n, index_.shape[d]) for d, n in enumerate(piece.shape)] if isinstance(piece, Value) else []
        cut = [s for d, n, m in trimmed for s in sliced(d, n, 0, m)]
        if any(index_.shape[d] != n for d, n in enumerate(base.shape) if d != dim):
            raise CaptureGap(f"{node.name} into part of the other dimensions")
        steps = (*cut, Scatter(dim, full, LazyTensor(lambda: index_.tensor), index_.shape))
        shape = base.shape

        def mask() -> Tensor:
            return torch.ones(shape, dtype=out.tensor.dtype, device=out.tensor.device).scatter(dim, index_.tensor, 0)

        if not adds and bool(
            (torch.zeros(shape).scatter_add(dim, index_.tensor.cpu(), torch.ones(index_.shape)) > 1).any()
        ):
            raise CaptureGap(f"{node.name} with repeated positions")
    if name == "index_copy" and index_.tensor.unique().numel() != index_.tensor.numel():
        raise CaptureGap("an index_copy with repeated positions")
    if isinstance(piece, Value) and piece.active:
        result.append(Map(piece, out, steps))
    if active(base):
        result.append(Map(base, out, () if adds else (Mul(LazyTensor(mask), shape),)))
    return result


@rule("gather")
def gather(node: Node) -> list[Map]:
    """Elements by an index of the result's shape."""
    found = only_active(node, "self")
    value, index_, out = found["self"], found["index"], node.outputs[0]
    if not value.shape:
        return [Map(value, out, broadcast((), out.shape))]
    dim = normal(found["dim"], len(value.shape))
    steps: list[Primitive] = []
    for d, (n, m) in enumerate(zip(value.shape, index_.shape, strict=True)):
        if d != dim:
            steps += sliced(d, n, 0, m)
    return [Map(value, out, (*steps, Gather(dim, value.shape[dim], LazyTensor(lambda: index_.tensor), index_.shape)))]


@rule("sort", "topk", "kthvalue", "median", "mode", "max", "min", "cummax", "cummin")
def chosen(node: Node) -> list[Map]:
    """Values picked along a dimension, with the indices as second output."""
    found = bound(node)
    value = found["self"]
    if len(node.outputs) < 2:
        from jaccli.graph.rules.reductions import reduction

        return reduction(node)
    out, places = node.outputs
    if not value.shape:
        return [Map(value, out, ())]
    dim = normal(found["dim"], len(value.shape))
    shape = tuple(n for n in value.shape)
    count = out.shape[dim] if len(out.shape) == len(shape) else 1
    kept = (*shape[:dim], count, *shape[dim + 1 :])
    late = LazyTensor(lambda: places.tensor.reshape(kept))
    return [Map(value, out, (Gather(dim, shape[dim], late, kept), *reshaped(kept, out.shape)))]


@rule("diagonal")
def diagonal(node: Node) -> list[Map]:
    """A diagonal: an index into two dimensions flattened."""
    return _by_positions(node)


@rule(
    "unfold",
    "as_strided",
    "tril",
    "triu",
    "im2col",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "rot90",
    "diag_embed",
)
def moved(node: Node) -> list[Map]:
    """Any operator that only moves elements."""
    return _by_positions(node)


def _by_positions(node: Node) -> list[Map]:
    """Where every element comes from, found by running the operator on numbers; samples stay apart."""
    found = bound(node)
    value, out = found[next(iter(found))], node.outputs[0]
    batch = value.shape[0]
    if not value.shape:
        raise CaptureGap(f"{node.name} of a single number")
    result = node.op(_numbered(node, value), *node.args[1:], **node.kwargs)
    if not out.shape or out.shape[0] != batch:
        # samples are elsewhere: one index into all elements
        source, target, lead = (1, math.prod(value.shape)), (1, math.prod(out.shape)), 1
        places = result.reshape(1, -1).long() - 1
    else:
        inner = math.prod(value.shape[1:])
        source, target, lead = (batch, inner), (batch, math.prod(out.shape[1:])), batch
        places = result.reshape(batch, -1).long() - 1
        offset = torch.arange(lead, device=places.device)[:, None] * inner
        places = torch.where(places >= 0, places - offset, places)
        if not bool((places == places[0]).all()) or bool((places >= inner).any()):
            raise CaptureGap(f"{node.name} across samples")
    index_ = places[0]
    empty = index_ < 0
    shape = (1, target[1])
    if source[1] == 1:
        steps: tuple[Primitive, ...] = (Expand(source, target),) if source != target else ()
    else:
        steps = (Pick(1, source[1], index_.clamp(min=0)),)
    if bool(empty.any()):
        steps += (Mul(LazyTensor(lambda: (~empty).to(out.tensor.dtype).reshape(shape)), shape),)
    return [Map(value, out, (*reshaped(value.shape, source), *steps, *reshaped(target, out.shape)))]


def _numbered(node: Node, value: Value) -> Tensor:
    """1, 2, … in the place of the elements; 0 is what an operator fills in."""
    tensor = value.tensor
    numbers = torch.arange(1, tensor.numel() + 1, dtype=torch.float64, device=tensor.device).reshape(value.shape)
    if node.name != "aten.as_strided":
        return numbers
    # It reads memory, whatever the shape: the numbers must lie as the elements do.
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = numbers.new_zeros(size).as_strided(value.shape, tensor.stride(), tensor.storage_offset())
    memory.copy_(numbers)
    if not torch.equal(memory, numbers) or bool((node.op(memory, *node.args[1:], **node.kwargs) == 0).any()):
        raise CaptureGap("memory read through another tensor's strides")
    return memory
