"""Derivatives of operators that move elements: views, slices, concatenation, indexing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.primitives import (
    Drop,
    Embed,
    Expand,
    Gather,
    Late,
    Matrix,
    Mul,
    Permute,
    Pick,
    Primitive,
    Reshape,
    Scale,
    Scatter,
)
from jaccli.graph.recorder import CaptureGap, Node, Value
from jaccli.graph.rules import Map, active, bound, normal, only_active, reshaped, rule, sliced
from jaccli.graph.rules_elementwise import broadcast


@rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "view_as",
    "squeeze_",
    "expand_as_view",
)
def reshape(node: Node) -> list[Map]:
    """Another shape."""
    value, out = node.inputs()[0], node.outputs[0]
    return [Map(value, out, reshaped(value.shape, out.shape))]


@rule("permute")
def permute(node: Node) -> list[Map]:
    """Dimensions in another order."""
    value = bound(node)["self"]
    order = tuple(normal(d, len(value.shape)) for d in bound(node)["dims"])
    return [Map(value, node.outputs[0], (Permute(order),))]


@rule("t", "transpose", "swapaxes", "numpy_T")
def transpose(node: Node) -> list[Map]:
    """Two dimensions exchanged."""
    found = bound(node)
    value = found["self"]
    order = list(range(len(value.shape)))
    if len(order) < 2:
        return [Map(value, node.outputs[0], ())]
    a, b = normal(found.get("dim0", 0), len(order)), normal(found.get("dim1", 1), len(order))
    order[a], order[b] = order[b], order[a]
    return [Map(value, node.outputs[0], (Permute(tuple(order)),))]


@rule("expand")
def expand(node: Node) -> list[Map]:
    """Broadcast."""
    value, out = bound(node)["self"], node.outputs[0]
    return [Map(value, out, broadcast(value.shape, out.shape))]


@rule("repeat")
def repeat(node: Node) -> list[Map]:
    """Copies along dimensions."""
    found = bound(node)
    value, out, times = found["self"], node.outputs[0], list(found["repeats"])
    padded = (1,) * (len(times) - len(value.shape)) + value.shape
    pairs = tuple(n for size in padded for n in (1, size))
    wide = tuple(n for count, size in zip(times, padded, strict=True) for n in (count, size))
    return [Map(value, out, (*reshaped(value.shape, pairs), Expand(pairs, wide), Reshape(wide, out.shape)))]


@rule("slice")
def slice_(node: Node) -> list[Map]:
    """A range of one dimension."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    dim = normal(found["dim"], len(value.shape))
    full = value.shape[dim]
    start, _, step = slice(found["start"], found["end"], found["step"]).indices(full)
    if out.shape[dim] == 0:
        raise CaptureGap("an empty slice")
    return [Map(value, out, sliced(dim, full, start, out.shape[dim], step))]


@rule("narrow")
def narrow(node: Node) -> list[Map]:
    """A range of one dimension."""
    found = bound(node)
    value = found["self"]
    dim = normal(found["dim"], len(value.shape))
    return [
        Map(value, node.outputs[0], sliced(dim, value.shape[dim], found["start"] % value.shape[dim], found["length"]))
    ]


@rule("select")
def select(node: Node) -> list[Map]:
    """One position of one dimension."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    dim = normal(found["dim"], len(value.shape))
    return [Map(value, out, _selected(value, dim, found["index"] % value.shape[dim], out))]


def _selected(value: Value, dim: int, index: int, out: Value) -> tuple[Primitive, ...]:
    kept = (*value.shape[:dim], 1, *value.shape[dim + 1 :])
    return (*sliced(dim, value.shape[dim], index, 1), Reshape(kept, out.shape))


@rule("unbind")
def unbind(node: Node) -> list[Map]:
    """Every position of one dimension."""
    found = bound(node)
    value = found["self"]
    dim = normal(found["dim"], len(value.shape))
    return [Map(value, out, _selected(value, dim, out.out, out)) for out in node.outputs]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def split(node: Node) -> list[Map]:
    """One dimension in pieces."""
    found = bound(node)
    value = found["self"]
    dim = normal(found["dim"], len(value.shape))
    result, start = [], 0
    for out in node.outputs:
        result.append(Map(value, out, sliced(dim, value.shape[dim], start, out.shape[dim])))
        start += out.shape[dim]
    return result


@rule("cat", "concat", "concatenate")
def cat(node: Node) -> list[Map]:
    """One after another in one dimension."""
    found = bound(node)
    out, result, start = node.outputs[0], [], 0
    dim = normal(found["dim"], len(out.shape))
    for value in found["tensors"]:
        if len(value.shape) == 1 and value.shape[0] == 0:
            continue
        count = value.shape[dim]
        if value.active and count:
            steps = () if count == out.shape[dim] else (Embed(dim, out.shape[dim], start, count),)
            result.append(Map(value, out, steps))
        start += count
    return result


@rule("stack")
def stack(node: Node) -> list[Map]:
    """One after another in a new dimension."""
    found = bound(node)
    out = node.outputs[0]
    dim, count = normal(found["dim"], len(out.shape)), len(found["tensors"])
    kept = (*out.shape[:dim], 1, *out.shape[dim + 1 :])
    return [
        Map(v, out, (Reshape(v.shape, kept), *((Embed(dim, count, i, 1),) if count > 1 else ())))
        for i, v in enumerate(found["tensors"])
        if v.active
    ]


def _scattered(node: Node, dim: int, start: int, step: int, count: int) -> list[Map]:
    found = bound(node)
    base, piece, out = found["self"], found["src"], node.outputs[0]
    full = out.shape[dim]
    result = []
    if active(piece):
        kept = tuple(count if d == dim else n for d, n in enumerate(out.shape))
        embed = (Embed(dim, full, start, count, step),) if count != full else ()
        result.append(Map(piece, out, (*reshaped(piece.shape, kept), *embed)))
    if active(base):
        rest = [(0, start), (start + count, full)] if step == 1 else []
        kept_parts = [(a, b) for a, b in rest if b > a]
        if step == 1:
            result += [
                Map(base, out, (*sliced(dim, full, a, b - a), *sliced_back(dim, full, a, b - a))) for a, b in kept_parts
            ]
        else:
            shape = tuple(full if d == dim else 1 for d in range(len(out.shape)))

            def mask() -> Tensor:
                keep = torch.ones(full, dtype=out.tensor.dtype, device=out.tensor.device)
                keep[start : start + step * (count - 1) + 1 : step] = 0
                return keep.reshape(shape)

            result.append(Map(base, out, (Mul(Late(mask), shape),)))
    return result


def sliced_back(dim: int, full: int, start: int, count: int) -> tuple[Primitive, ...]:
    """A slice put back at its place."""
    return () if count == full else (Embed(dim, full, start, count),)


@rule("select_scatter")
def select_scatter(node: Node) -> list[Map]:
    """One position replaced."""
    found = bound(node)
    dim = normal(found["dim"], len(found["self"].shape))
    return _scattered(node, dim, found["index"] % found["self"].shape[dim], 1, 1)


@rule("slice_scatter")
def slice_scatter(node: Node) -> list[Map]:
    """A range replaced."""
    found = bound(node)
    shape = found["self"].shape
    dim = normal(found["dim"], len(shape))
    start, _, step = slice(found["start"], found["end"], found["step"]).indices(shape[dim])
    return _scattered(node, dim, start, step, found["src"].shape[dim])


@rule("constant_pad_nd")
def pad(node: Node) -> list[Map]:
    """Constants around, or, with negative widths, a border cut off."""
    found = bound(node)
    value, out, pads = found["self"], node.outputs[0], list(found["pad"])
    steps: list[Primitive] = []
    for i in range(0, len(pads), 2):
        dim = len(value.shape) - 1 - i // 2
        before, after, size = pads[i], pads[i + 1], value.shape[dim]
        low, high = max(0, -before), size - max(0, -after)
        steps += sliced(dim, size, low, high - low)
        full = out.shape[dim]
        if high - low != full:
            steps.append(Embed(dim, full, max(0, before), high - low))
    return [Map(value, out, tuple(steps))]


@rule("flip")
def flip(node: Node) -> list[Map]:
    """Dimensions reversed."""
    found = bound(node)
    value = found["self"]
    dims = [normal(d, len(value.shape)) for d in found["dims"]]
    return [
        Map(value, node.outputs[0], tuple(_picks(value, {d: torch.arange(value.shape[d] - 1, -1, -1) for d in dims})))
    ]


@rule("roll")
def roll(node: Node) -> list[Map]:
    """Elements moved around in a circle."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    dims, shifts = list(found["dims"] or []), list(found["shifts"])
    if not dims:
        flat = (math.prod(value.shape),)
        index = torch.arange(flat[0], device=value.tensor.device).roll(shifts[0])
        return [Map(value, out, (Reshape(value.shape, flat), Pick(0, flat[0], index), Reshape(flat, value.shape)))]
    picks = {}
    for d, shift in zip(dims, shifts, strict=True):
        d = normal(d, len(value.shape))
        picks[d] = picks.get(d, torch.arange(value.shape[d])).roll(shift)
    return [Map(value, out, tuple(_picks(value, picks)))]


def _picks(value: Value, picks: dict[int, Tensor]) -> list[Primitive]:
    return [Pick(d, value.shape[d], index.to(value.tensor.device)) for d, index in picks.items() if value.shape[d] != 1]


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
        late = Late(lambda: index.tensor.reshape(shape).expand(wide))
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
        return _masked(node, value, chosen, places, out)
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


def _masked(node: Node, value: Value, chosen: list[Value], places: list[int], out: Value) -> list[Map]:
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

            steps_ = (*reshaped(base.shape, merged), Mul(Late(mask), shape), *reshaped(merged, out.shape))
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
    piece = found.get("src") if "src" in found else found.get("source")
    name = node.name.removeprefix("aten.")
    if index_.varies or name == "scatter_reduce" or found.get("reduce") is not None:
        raise CaptureGap(f"{node.name} with an index that hangs on the input, or a reduction")
    dim = normal(found["dim"], len(base.shape))
    full, alpha = base.shape[dim], float(found.get("alpha") or 1)
    adds = name in ("index_add", "scatter_add")
    result = []
    if name.startswith("index"):
        steps: tuple[Primitive, ...] = (Drop(dim, full, index_.tensor.reshape(-1)), *_scaled(alpha))
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
        steps = (*cut, Scatter(dim, full, Late(lambda: index_.tensor), index_.shape))
        shape = base.shape

        def mask() -> Tensor:
            return torch.ones(shape, dtype=out.tensor.dtype, device=out.tensor.device).scatter(dim, index_.tensor, 0)

        if not adds and bool(
            (torch.zeros(shape).scatter_add(dim, index_.tensor.cpu(), torch.ones(index_.shape)) > 1).any()
        ):
            raise CaptureGap(f"{node.name} with repeated positions")
    if name == "index_copy" and index_.tensor.unique().numel() != index_.tensor.numel():
        raise CaptureGap("an index_copy with repeated positions")
    if active(piece):
        result.append(Map(piece, out, steps))
    if active(base):
        result.append(Map(base, out, () if adds else (Mul(Late(mask), shape),)))
    return result


def _scaled(alpha: float) -> tuple[Primitive, ...]:
    return () if alpha == 1 else (Scale(alpha),)


@rule("gather")
def gather(node: Node) -> list[Map]:
    """Elements by an index of the result's shape."""
    found = only_active(node, "self")
    value, index_, out = found["self"], found["index"], node.outputs[0]
    dim = normal(found["dim"], len(value.shape))
    steps: list[Primitive] = []
    for d, (n, m) in enumerate(zip(value.shape, index_.shape, strict=True)):
        if d != dim:
            steps += sliced(d, n, 0, m)
    return [Map(value, out, (*steps, Gather(dim, value.shape[dim], Late(lambda: index_.tensor), index_.shape)))]


@rule("sort", "topk", "kthvalue", "median", "mode", "max", "min", "cummax", "cummin")
def chosen(node: Node) -> list[Map]:
    """Values picked along a dimension, with the indices as second output."""
    found = bound(node)
    value = found["self"]
    if len(node.outputs) < 2:
        from jaccli.graph.rules_reduce import reduction

        return reduction(node)
    out, places = node.outputs
    dim = normal(found["dim"], len(value.shape))
    shape = tuple(n for n in value.shape)
    count = out.shape[dim] if len(out.shape) == len(shape) else 1
    kept = (*shape[:dim], count, *shape[dim + 1 :])
    late = Late(lambda: places.tensor.reshape(kept))
    return [Map(value, out, (Gather(dim, shape[dim], late, kept), *reshaped(kept, out.shape)))]


@rule("cumsum")
def cumsum(node: Node) -> list[Map]:
    """Running sums: a triangular matrix of ones."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    if not value.shape:
        return [Map(value, out, ())]
    dim = normal(found["dim"], len(value.shape))
    n = value.shape[dim]
    ones = Late(lambda: torch.ones(n, n, dtype=out.tensor.dtype, device=out.tensor.device).triu())
    return [Map(value, out, (Matrix(dim, ones, (n, n)),))]


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
    numbers = torch.arange(1, math.prod(value.shape) + 1, dtype=torch.float64, device=value.tensor.device)
    args: list[Any] = list(node.args)
    args[0] = numbers.reshape(value.shape)
    result = node.op(*args, **node.kwargs)
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
        if not bool((places == places[0]).all()):
            raise CaptureGap(f"{node.name} across samples")
    index_ = places[0]
    empty = index_ < 0
    shape = (1, target[1])
    if source[1] == 1:
        steps: tuple[Primitive, ...] = (Expand(source, target),) if source != target else ()
    else:
        steps = (Pick(1, source[1], index_.clamp(min=0)),)
    if bool(empty.any()):
        steps += (Mul(Late(lambda: (~empty).to(out.tensor.dtype).reshape(shape)), shape),)
    return [Map(value, out, (*reshaped(value.shape, source), *steps, *reshaped(target, out.shape)))]
