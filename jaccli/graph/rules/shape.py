"""Derivatives of operators that move elements in whole ranges: views, slices, concatenation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Primitive
from jaccli.graph.maps.elementwise import Mul
from jaccli.graph.maps.gather import Pick
from jaccli.graph.maps.reshape import Expand, Permute, Reshape
from jaccli.graph.maps.slice import Embed
from jaccli.graph.rules.elementwise import broadcast
from jaccli.graph.rules.registry import Map, active, bound, normal, reshaped, rule, sliced
from jaccli.graph.trace.ir import Node, Value


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


@rule("t", "transpose", "swapaxes")
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
        if out.shape[dim]:
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

            result.append(Map(base, out, (Mul(LazyTensor(mask), shape),)))
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
    if math.prod(value.shape) == 1:
        return [Map(value, out, ())]
    if not dims:
        flat = (math.prod(value.shape),)
        index = torch.arange(flat[0], device=value.tensor.device).roll(shifts[0])
        return [Map(value, out, (Reshape(value.shape, flat), Pick(0, flat[0], index), Reshape(flat, value.shape)))]
    picks: dict[int, Tensor] = {}
    for d, shift in zip(dims, shifts, strict=True):
        d = normal(d, len(value.shape))
        picks[d] = picks.get(d, torch.arange(value.shape[d])).roll(shift)
    return [Map(value, out, tuple(_picks(value, picks)))]


def _picks(value: Value, picks: dict[int, Tensor]) -> list[Primitive]:
    return [Pick(d, value.shape[d], index.to(value.tensor.device)) for d, index in picks.items() if value.shape[d] != 1]
