"""Derivatives of operators that move elements in whole ranges: views, slices, concatenation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.layout.layout import exchanged
from jaccli.graph.maps.base import Primitive
from jaccli.graph.maps.gather import Pick
from jaccli.graph.maps.reshape import Expand, Permute, Reshape
from jaccli.graph.rules.registry import Map, UnaryCall, active, arguments, rule, unary_rule
from jaccli.graph.rules.steps import Steps, broadcast, embedded, from_front, picked, reshaped, sliced, zeroed
from jaccli.graph.trace.ir import Node


@rule("view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten unflatten view_as squeeze_ expand_as_view")
def reshape(node: Node) -> list[Map]:
    """y = x in another shape."""
    value, out = node.inputs()[0], node.outputs[0]
    return [Map(value, out, reshaped(value.shape, out.shape))]


@unary_rule("permute")
def permute(call: UnaryCall) -> Steps:
    """y[i, j, …] = x[j, i, …]: dimensions in another order."""
    return (Permute(tuple(from_front(d, len(call.value.shape)) for d in call.args["dims"])),)


@unary_rule("t transpose swapaxes")
def transpose(call: UnaryCall) -> Steps:
    """y = xᵀ: two dimensions exchanged."""
    order = list(range(len(call.value.shape)))
    if len(order) < 2:
        return ()
    a, b = (from_front(call.args.get(name, d), len(order)) for d, name in enumerate(("dim0", "dim1")))
    order[a], order[b] = order[b], order[a]
    return (Permute(tuple(order)),)


@unary_rule("expand")
def expand(call: UnaryCall) -> Steps:
    """y[i, …] = x[0, …]: copies along dimensions of size 1."""
    return broadcast(call.value.shape, call.out.shape)


@unary_rule("repeat")
def repeat(call: UnaryCall) -> Steps:
    """y[i] = x[i mod n]: copies one after another along dimensions."""
    shape, times = call.value.shape, list(call.args["repeats"])
    padded = (1,) * (len(times) - len(shape)) + shape
    # ``(n, m)`` as ``(1, n, 1, m)``, copied along the ones, and read as ``(k n, l m)``.
    pairs = tuple(n for size in padded for n in (1, size))
    wide = tuple(n for count, size in zip(times, padded, strict=True) for n in (count, size))
    return (*reshaped(shape, pairs), Expand(pairs, wide), Reshape(wide, call.out.shape))


@unary_rule("slice")
def slice_(call: UnaryCall) -> Steps:
    """y[i] = x[start + step i]."""
    full = call.value.shape[call.dim]
    start, _, step = slice(call.args["start"], call.args["end"], call.args["step"]).indices(full)
    return sliced(call.dim, full, start, call.out.shape[call.dim], step)


@unary_rule("narrow")
def narrow(call: UnaryCall) -> Steps:
    """y[i] = x[start + i]."""
    full = call.value.shape[call.dim]
    return sliced(call.dim, full, call.args["start"] % full, call.args["length"])


@unary_rule("select")
def select(call: UnaryCall) -> Steps:
    """y = x[i]: one position of one dimension."""
    return _selected(call, call.args["index"] % call.value.shape[call.dim])


@unary_rule("unbind", all_outputs=True)
def unbind(call: UnaryCall) -> Steps:
    """y_i = x[i]: every position of one dimension."""
    return _selected(call, call.out.out)


def _selected(call: UnaryCall, index: int) -> Steps:
    shape, dim = call.value.shape, call.dim
    return (*sliced(dim, shape[dim], index, 1), Reshape(exchanged(shape, dim, 1), call.out.shape))


@unary_rule(
    "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split", all_outputs=True
)
def split(call: UnaryCall) -> Steps:
    """y_k[i] = x[start_k + i]: one dimension in pieces."""
    start = sum(out.shape[call.dim] for out in call.node.outputs if out.out < call.out.out)
    return sliced(call.dim, call.value.shape[call.dim], start, call.out.shape[call.dim])


@rule("cat concat concatenate")
def cat(node: Node) -> list[Map]:
    """y[start_k + i] = x_k[i]: one after another in one dimension."""
    args, out = arguments(node), node.outputs[0]
    result, start = [], 0
    dim = from_front(args["dim"], len(out.shape))
    for value in args["tensors"]:
        if value.shape == (0,):  # of any number of dimensions, for historical reasons
            continue
        if active(value):
            result.append(Map(value, out, embedded(dim, out.shape[dim], start, value.shape[dim])))
        start += value.shape[dim]
    return result


@rule("stack")
def stack(node: Node) -> list[Map]:
    """y[k] = x_k: one after another in a new dimension."""
    args, out = arguments(node), node.outputs[0]
    dim, count = from_front(args["dim"], len(out.shape)), len(args["tensors"])
    return [
        Map(v, out, (Reshape(v.shape, exchanged(out.shape, dim, 1)), *embedded(dim, count, i, 1)))
        for i, v in enumerate(args["tensors"])
        if v.active
    ]


def _overwritten(node: Node, start: int, step: int, count: int) -> list[Map]:
    """y = x but y[start + step i] = src[i] in one dimension, for i < count."""
    args, out = arguments(node), node.outputs[0]
    base, piece, dim = args["self"], args["src"], from_front(args["dim"], len(out.shape))
    full = out.shape[dim]
    result = []
    if active(piece):
        embed = embedded(dim, full, start, count, step)
        result.append(Map(piece, out, (*reshaped(piece.shape, exchanged(out.shape, dim, count)), *embed)))
    # With step 1 the rest of the base is two ranges, and slices keep diagonals; else the positions are masked out.
    if active(base) and step == 1:
        for low, high in ((0, start), (start + count, full)):
            if high > low:
                part = (*sliced(dim, full, low, high - low), *embedded(dim, full, low, high - low))
                result.append(Map(base, out, part))
    elif active(base):
        index = torch.arange(start, start + step * (count - 1) + 1, step, device=out.tensor.device)
        result.append(Map(base, out, (zeroed(out, dim, out.shape, index),)))
    return result


@rule("select_scatter")
def select_scatter(node: Node) -> list[Map]:
    """y = x but y[i] = src: one position of one dimension replaced."""
    args = arguments(node)
    shape = args["self"].shape
    return _overwritten(node, args["index"] % shape[from_front(args["dim"], len(shape))], 1, 1)


@rule("slice_scatter")
def slice_scatter(node: Node) -> list[Map]:
    """y = x but y[start + step i] = src[i]: a range replaced."""
    args = arguments(node)
    dim = from_front(args["dim"], len(args["self"].shape))
    start, _, step = slice(args["start"], args["end"], args["step"]).indices(args["self"].shape[dim])
    return _overwritten(node, start, step, args["src"].shape[dim])


@unary_rule("constant_pad_nd")
def pad(call: UnaryCall) -> Steps:
    """y[before + i] = x[i], constants around it; negative widths cut a border off."""
    pads, shape = list(call.args["pad"]), call.value.shape
    steps: list[Primitive] = []
    for i in range(0, len(pads), 2):
        dim = len(shape) - 1 - i // 2
        before, after, size = pads[i], pads[i + 1], shape[dim]
        low, high = max(0, -before), size - max(0, -after)
        steps += sliced(dim, size, low, high - low)
        steps += embedded(dim, call.out.shape[dim], max(0, before), high - low)
    return tuple(steps)


@unary_rule("flip")
def flip(call: UnaryCall) -> Steps:
    """y[i] = x[n - 1 - i], in some dimensions."""
    shape = call.value.shape
    dims = [from_front(d, len(shape)) for d in call.args["dims"]]
    return _permuted(call, {d: torch.arange(shape[d] - 1, -1, -1) for d in dims})


@unary_rule("roll")
def roll(call: UnaryCall) -> Steps:
    """y[i] = x[(i - shift) mod n], in some dimensions, or of all elements in reading order."""
    shape, device = call.value.shape, call.value.tensor.device
    dims, shifts = list(call.args["dims"] or []), list(call.args["shifts"])
    if math.prod(shape) == 1:
        return ()
    if not dims:
        n = math.prod(shape)
        index = torch.arange(n, device=device).roll(shifts[0])
        return (Reshape(shape, (n,)), Pick(0, n, index), Reshape((n,), shape))
    order: dict[int, Tensor] = {}
    for dim, shift in zip(dims, shifts, strict=True):
        d = from_front(dim, len(shape))
        order[d] = order.get(d, torch.arange(shape[d])).roll(shift)
    return _permuted(call, order)


def _permuted(call: UnaryCall, order: dict[int, Tensor]) -> Steps:
    """The positions of some dimensions in another order, an index ``(n,)`` each; the shape stays."""
    shape, device = call.value.shape, call.value.tensor.device
    return tuple(step for d, index in order.items() for step in picked(shape, d, index.to(device)))
