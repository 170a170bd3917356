"""Derivatives of matrix products, convolutions, pooling and resampling."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.gather import Gather
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.maps.reshape import Expand, Reshape, SumTo
from jaccli.graph.rules.elementwise import broadcast
from jaccli.graph.rules.registry import Map, active, bound, only_active, reshaped, rule, scaled, sliced
from jaccli.graph.trace.ir import CaptureGap, Node, Value


def _left(a: Value, b: Value, out: Value, scale: float = 1.0) -> list[Map]:
    """∂(a b) / ∂a and ∂b of matrix products ``(n, i, k) (n, k, j)``, or without n."""
    result = []
    lead = len(a.shape) - 2
    more = scaled(scale)
    if a.active:
        parallel = tuple(range(lead))
        tensor = b.tensor
        if lead and tensor.stride(0) == 0:  # one weight for all: an expanded view
            shape = (1, *b.shape[1:])
            factor = LazyTensor(lambda: b.tensor[:1])
        else:
            shape, factor = b.shape, LazyTensor(lambda: b.tensor)
        result.append(Map(a, out, (Matrix(lead + 1, factor, shape, parallel), *more)))
    if b.active:
        parallel = tuple(range(lead))
        if lead and a.tensor.stride(0) == 0:
            shape = (1, *a.shape[1:])
            factor = LazyTensor(lambda: a.tensor[:1].transpose(-1, -2))
        else:
            shape, factor = a.shape, LazyTensor(lambda: a.tensor.transpose(-1, -2))
        shape = (*shape[:-2], shape[-1], shape[-2])
        result.append(Map(b, out, (Matrix(lead, factor, shape, parallel), *more)))
    return result


@rule("mm", "bmm")
def products(node: Node) -> list[Map]:
    """a b."""
    found = bound(node)
    return _left(found["self"], found["mat2"], node.outputs[0])


@rule("addmm", "baddbmm")
def added_products(node: Node) -> list[Map]:
    """β c + α a b."""
    found = bound(node)
    a, b = (found[n] for n in (("mat1", "mat2") if "mat1" in found else ("batch1", "batch2")))
    out = node.outputs[0]
    result = _left(a, b, out, float(found["alpha"]))
    if active(found["self"]):
        beta = float(found["beta"])
        result.append(Map(found["self"], out, (*broadcast(found["self"].shape, out.shape), *scaled(beta))))
    return result


@rule("mv")
def matrix_vector(node: Node) -> list[Map]:
    """A x."""
    found = bound(node)
    a, x, out = found["self"], found["vec"], node.outputs[0]
    result = []
    if x.active:
        result.append(Map(x, out, (Matrix(0, LazyTensor(lambda: a.tensor.t()), a.shape[::-1]),)))
    if a.active:
        shape = (1, x.shape[0])
        kept = (a.shape[0], 1)
        factor = Mul(LazyTensor(lambda: x.tensor.reshape(shape)), shape)
        steps: tuple[Primitive, ...] = (factor, SumTo(a.shape, kept), *reshaped(kept, out.shape))
        result.append(Map(a, out, steps))
    return result


@rule("dot", "vdot")
def dot(node: Node) -> list[Map]:
    """⟨x, y⟩."""
    found = bound(node)
    out = node.outputs[0]
    pair = (found["self"], found.get("tensor") or found["other"])
    return [
        Map(
            v,
            out,
            (Mul(LazyTensor(partial(getattr, other, "tensor")), v.shape), SumTo(v.shape, (1,)), Reshape((1,), ())),
        )
        for v, other in (pair, pair[::-1])
        if v.active
    ]


@rule("linear")
def linear(node: Node) -> list[Map]:
    """x Wᵀ + b."""
    found = only_active(node, "input")
    value, weight = found["input"], found["weight"]
    return [
        Map(
            value,
            node.outputs[0],
            (Matrix(len(value.shape) - 1, LazyTensor(lambda: weight.tensor.t()), weight.shape[::-1]),),
        )
    ]


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(node: Node) -> list[Map]:
    """A convolution of any number of dimensions, or a transposed one."""
    found = only_active(node, "input", "self")
    value, weight, out = found.get("input") or found["self"], found["weight"], node.outputs[0]
    n = len(weight.shape) - 2
    if len(value.shape) != n + 2:
        raise CaptureGap("a convolution without a dimension for samples")

    def each(name: str, default: int) -> tuple[int, ...]:
        given = found.get(name) or [default]
        return tuple(given) if len(given) == n else tuple(given) * n

    adjoint = bool(found.get("transposed"))
    strides, pads = each("stride", 1), each("padding", 0)
    if found["groups"] == 1 and set(weight.shape[2:]) == set(strides) == {1} and value.shape[2:] == out.shape[2:]:
        channels = weight.shape[:2] if adjoint else weight.shape[1::-1]
        mixing = LazyTensor(lambda: weight.tensor.flatten(1) if adjoint else weight.tensor.flatten(1).t())
        return [Map(value, out, (Matrix(1, mixing, channels),))]
    conv = Conv(
        LazyTensor(lambda: weight.tensor),
        weight.shape[2:],
        strides,
        pads,
        each("dilation", 1),
        found["groups"],
        x=out.shape if adjoint else value.shape,
        y=value.shape if adjoint else out.shape,
        adjoint=adjoint,
    )
    return [Map(value, out, (conv,))]


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "fractional_max_pool2d",
)
def max_pool(node: Node) -> list[Map]:
    """The largest of each window: a mask where windows lie side by side, else elements by index."""
    found = bound(node)
    value, (out, places) = found["self"], node.outputs
    n = 3 if "3d" in node.name else 2
    blocks = _side_by_side(value, out, n)
    lead, space = value.shape[:-n], value.shape[-n:]
    if blocks is not None and _tiling(found, blocks, n):
        return [Map(value, out, _masked_blocks(value, out, places, blocks, n))]
    flat, picked = (*lead, math.prod(space)), (*lead, math.prod(out.shape[-n:]))
    if flat[-1] == 1:  # padding is never the largest
        return [Map(value, out, broadcast(value.shape, out.shape))]
    late = LazyTensor(lambda: places.tensor.reshape(picked))
    gather = Gather(len(lead), flat[-1], late, picked)
    return [Map(value, out, (*reshaped(value.shape, flat), gather, *reshaped(picked, out.shape)))]


def _side_by_side(value: Value, out: Value, n: int) -> list[int] | None:
    """Sizes of the blocks that tile the space."""
    pairs = list(zip(value.shape[-n:], out.shape[-n:], strict=True))
    return [a // b for a, b in pairs] if all(a % b == 0 for a, b in pairs) else None


def _tiling(found: dict[str, object], blocks: list[int], n: int) -> bool:
    if "kernel_size" not in found:
        return True  # adaptive, and sizes divide

    def wide(name: str, default: list[int]) -> list[int]:
        given = found.get(name)
        given = list(given) if isinstance(given, list | tuple) else []
        return (given if len(given) == n else given * n) or default

    kernel = wide("kernel_size", [])
    return (
        kernel == blocks
        and wide("stride", kernel) == blocks
        and not any(wide("padding", []))
        and set(wide("dilation", [1])) <= {1}
    )


def _block_shapes(value: Value, out: Value, blocks: list[int], n: int) -> tuple[Shape, Shape, Shape]:
    """``(…, h k, w l)``, ``(…, h, k, w, l)`` and ``(…, h, 1, w, 1)``."""
    lead, small = value.shape[:-n], out.shape[-n:]
    pairs = (*lead, *(m for a, k in zip(small, blocks, strict=True) for m in (a, k)))
    return value.shape, pairs, (*lead, *(m for a in small for m in (a, 1)))


def _summed_blocks(value: Value, out: Value, blocks: list[int], n: int) -> tuple[Primitive, ...]:
    """``(…, h k, w l)`` to ``(…, h, w)``."""
    whole, pairs, ones = _block_shapes(value, out, blocks, n)
    return (Reshape(whole, pairs), SumTo(pairs, ones), Reshape(ones, out.shape))


def _masked_blocks(value: Value, out: Value, places: Value, blocks: list[int], n: int) -> tuple[Primitive, ...]:
    """A mask on the input, which joins the factors of what comes before it, and sums of blocks."""
    _, pairs, ones = _block_shapes(value, out, blocks, n)

    def mask() -> Tensor:
        position = torch.arange(math.prod(value.shape[-n:]), device=places.tensor.device).reshape(pairs[-2 * n :])
        return (places.tensor.reshape(ones) == position).to(value.tensor.dtype).reshape(value.shape)

    return (Mul(LazyTensor(mask), value.shape), *_summed_blocks(value, out, blocks, n))


@rule(
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "upsample_linear1d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "_upsample_nearest_exact3d",
)
def separable(node: Node) -> list[Map]:
    """Pooling by means and resampling: a matrix along each direction; blocks where they tile the space."""
    found = bound(node)
    value, out = found["self"] if "self" in found else found["input"], node.outputs[0]
    n = int(node.name.split("d")[-2][-1]) if node.name.endswith("d") else int(node.name.split("d_")[0][-1])
    down, up = _side_by_side(value, out, n), _side_by_side(out, value, n)
    if "avg_pool" in node.name and down is not None and (_tiling(found, down, n)):
        divisor = found.get("divisor_override") or math.prod(down)
        return [Map(value, out, (*_summed_blocks(value, out, down, n), Scale(1 / float(divisor))))]
    if "nearest" in node.name and up is not None and _even(node, value, out):
        return [Map(value, out, _repeated(value, out, up, n))]
    return [Map(value, out, _matrices(node, value, out, n))]


def _even(node: Node, value: Value, out: Value) -> bool:
    """Whether each element is repeated in a block: found by asking the operator for one row of numbers."""
    probe = torch.arange(float(max(value.shape)), dtype=torch.float64)
    for d in range(2, len(value.shape)):
        shape = tuple(n if e == d else (1 if e < 2 else n) for e, n in enumerate(value.shape))
        row = probe[: value.shape[d]].reshape([-1 if e == d else 1 for e in range(len(shape))]).expand(shape)
        got = node.op(row, *node.args[1:], **node.kwargs)
        times = out.shape[d] // value.shape[d]
        line = got.movedim(d, 0).reshape(out.shape[d], -1)[:, 0]
        if not torch.equal(line, probe[: value.shape[d]].repeat_interleave(times)):
            return False
    return True


def _repeated(value: Value, out: Value, times: list[int], n: int) -> tuple[Primitive, ...]:
    lead = value.shape[:-n]
    ones = (*lead, *(m for a in value.shape[-n:] for m in (a, 1)))
    wide = (*lead, *(m for a, k in zip(value.shape[-n:], times, strict=True) for m in (a, k)))
    return (*reshaped(value.shape, ones), *((Expand(ones, wide),) if ones != wide else ()), *reshaped(wide, out.shape))


def _matrices(node: Node, value: Value, out: Value, n: int) -> tuple[Primitive, ...]:
    """A matrix for each direction, read off the operator's answers to lines: it is their tensor product."""
    dtype, device = value.tensor.dtype, value.tensor.device
    space = value.shape[-n:]

    def ask(image: Tensor) -> Tensor:
        args = [image[None, None] if len(value.shape) == n + 2 else image[None], *node.args[1:]]
        result: Tensor = node.op(*args, **node.kwargs)
        return result.reshape(out.shape[-n:])

    ones = torch.ones(space, dtype=torch.float64, device=device)
    total = float(ask(ones)[(0,) * n])
    steps: list[Primitive] = []
    for d in range(n):
        columns = []
        for i in range(space[d]):
            line = torch.zeros(space, dtype=torch.float64, device=device)
            line.select(d, i).fill_(1)
            columns.append(ask(line).movedim(d, 0).reshape(out.shape[len(out.shape) - n + d], -1)[:, 0])
        table = torch.stack(columns)
        if d:
            table = table / total
        table = table.to(dtype)
        dim = len(value.shape) - n + d
        steps.append(_along_dim(dim, table, space[d], out.shape[dim]))
    return tuple(steps)


def _along_dim(dim: int, table: Tensor, n_in: int, n_out: int) -> Primitive:
    return Matrix(dim, LazyTensor(lambda: table), (n_in, n_out))


@rule("glu")
def glu(node: Node) -> list[Map]:
    """a σ(b), the two halves of a dimension."""
    found = bound(node)
    value, out = found["self"], node.outputs[0]
    dim = found["dim"] % len(value.shape)
    half = value.shape[dim] // 2

    def parts() -> tuple[Tensor, Tensor]:
        a, b = value.tensor.chunk(2, dim)
        return a, torch.sigmoid(b)

    first = Mul(LazyTensor(lambda: parts()[1]), out.shape)
    second = Mul(LazyTensor(lambda: parts()[0] * parts()[1] * (1 - parts()[1])), out.shape)
    full = value.shape[dim]
    return [
        Map(value, out, (*sliced(dim, full, 0, half), first)),
        Map(value, out, (*sliced(dim, full, half, half), second)),
    ]


@rule("prelu", "_prelu_kernel")
def prelu(node: Node) -> list[Map]:
    """1 or the slope, by sign."""
    found = only_active(node, "self")
    value, out, weight = found["self"], node.outputs[0], found["weight"]

    def make() -> Tensor:
        slope = weight.tensor
        if slope.dim() < 2 and slope.numel() > 1 and value.tensor.dim() > 1:
            slope = slope.reshape([1, -1] + [1] * (value.tensor.dim() - 2))
        return torch.where(value.tensor > 0, torch.ones_like(slope), slope)

    return [Map(value, out, (Mul(LazyTensor(make), out.shape),))]
