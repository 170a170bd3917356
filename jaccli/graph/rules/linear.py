"""Derivatives of matrix products, convolutions, pooling and resampling."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Shape
from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.gather import Gather
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.maps.reshape import Reshape, SumTo
from jaccli.graph.rules.registry import Map, UnaryCall, active, arguments, rule, unary_rule
from jaccli.graph.rules.steps import Steps, broadcast, expanded, per_dimension, reshaped, scaled, sliced
from jaccli.graph.trace.ir import CaptureGap, Node, Value

if TYPE_CHECKING:
    from jaxtyping import Shaped


def _product(a: Value, b: Value, out: Value, scale: float = 1.0) -> list[Map]:
    """y = α a b, ``(n, i, k) (n, k, j)`` or without n: dy = α da b + α a db."""
    n = len(a.shape) - 2
    result = []
    if a.active:
        result.append(Map(a, out, (_factor(n + 1, b, transposed=False), *scaled(scale))))
    if b.active:
        result.append(Map(b, out, (_factor(n, a, transposed=True), *scaled(scale))))
    return result


def _factor(dim: int, x: Value, transposed: bool) -> Matrix:
    """``x (n, k, j)`` or ``(k, j)`` as a matrix that acts on one dimension; of an expanded view one for all n."""
    lead = len(x.shape) - 2
    # A weight that the model expanded over its samples: stride 0 says that all of them have the same one.
    one_for_all = bool(lead) and x.tensor.stride(0) == 0
    rows, columns = x.shape[-2:]

    def make() -> Tensor:
        tensor = x.tensor[:1] if one_for_all else x.tensor
        return tensor.transpose(-1, -2) if transposed else tensor

    shape = (*((1,) if one_for_all else x.shape[:-2]), *((columns, rows) if transposed else (rows, columns)))
    return Matrix(dim, LazyTensor(make), shape, tuple(range(lead)))


@rule("mm bmm")
def products(node: Node) -> list[Map]:
    """y = a b."""
    args = arguments(node)
    return _product(args["self"], args["mat2"], node.outputs[0])


@rule("addmm baddbmm")
def added_products(node: Node) -> list[Map]:
    """y = β c + α a b."""
    args, out = arguments(node), node.outputs[0]
    a, b = (args[n] for n in (("mat1", "mat2") if "mat1" in args else ("batch1", "batch2")))
    result = _product(a, b, out, float(args["alpha"]))
    if active(args["self"]):
        steps = (*broadcast(args["self"].shape, out.shape), *scaled(float(args["beta"])))
        result.append(Map(args["self"], out, steps))
    return result


@rule("mv")
def matrix_vector(node: Node) -> list[Map]:
    """y = A x: ∂y/∂x = A; ∂y/∂A: rows times x, summed."""
    args, out = arguments(node), node.outputs[0]
    a, x = args["self"], args["vec"]
    result = []
    if x.active:
        result.append(Map(x, out, (_factor(0, a, transposed=True),)))
    if a.active:
        # dy = dA x: the rows of dA times x, elementwise, summed over columns.
        shape, column = (1, x.shape[0]), (a.shape[0], 1)
        factor = Mul(LazyTensor(lambda: x.tensor.reshape(shape)), shape)
        result.append(Map(a, out, (factor, SumTo(a.shape, column), *reshaped(column, out.shape))))
    return result


@rule("dot vdot")
def dot(node: Node) -> list[Map]:
    """y = Σ aᵢ bᵢ: ∂y/∂a = bᵀ, ∂y/∂b = aᵀ."""
    args, out = arguments(node), node.outputs[0]
    pair = (args["self"], args.get("tensor") or args["other"])

    def steps(factor: Value) -> Steps:
        times = Mul(LazyTensor(lambda: factor.tensor), factor.shape)
        return (times, SumTo(factor.shape, (1,)), Reshape((1,), ()))

    return [Map(v, out, steps(other)) for v, other in (pair, pair[::-1]) if v.active]


@unary_rule("linear", "input")
def linear(call: UnaryCall) -> Steps:
    """y = x Wᵀ + b: Wᵀ on the last dimension."""
    weight = call.args["weight"]
    return (Matrix(len(call.value.shape) - 1, LazyTensor(lambda: weight.tensor.t()), weight.shape[::-1]),)


@unary_rule("convolution _convolution cudnn_convolution mkldnn_convolution", "input self")
def convolution(call: UnaryCall) -> Steps:
    """y = w ∗ x, of any number of dimensions, or its transpose; with kernels of one element a matrix on channels."""
    args, x, y, weight = call.args, call.value.shape, call.out.shape, call.args["weight"]
    n = len(weight.shape) - 2
    if len(x) != n + 2:
        raise CaptureGap("a convolution without a dimension for samples")
    adjoint = bool(args.get("transposed"))
    stride, padding, dilation = (
        per_dimension(args.get(name), n, (default,))
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if args["groups"] == 1 and set(weight.shape[2:]) == set(stride) == {1} and x[2:] == y[2:]:
        channels = weight.shape[:2] if adjoint else weight.shape[1::-1]
        mixing = LazyTensor(lambda: weight.tensor.flatten(1) if adjoint else weight.tensor.flatten(1).t())
        return (Matrix(1, mixing, channels),)
    x, y = (y, x) if adjoint else (x, y)
    filters = LazyTensor(lambda: weight.tensor)
    return (Conv(filters, weight.shape[2:], stride, padding, dilation, args["groups"], x=x, y=y, adjoint=adjoint),)


@rule("max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d")
def max_pool(node: Node) -> list[Map]:
    """y[k] = max of window k = x[index[k]]: a mask and sums where windows tile the space, else elements by index."""
    args, (out, places) = arguments(node), node.outputs
    value, n = args["self"], 3 if "3d" in node.name else 2
    blocks = _tiles(value, out, n)
    lead, space = value.shape[:-n], value.shape[-n:]
    # A mask is an elementwise factor, which keeps diagonals and windows; an index stores the space in full.
    if blocks is not None and _covers(args, blocks):
        return [Map(value, out, _masked_blocks(value, out, places, blocks))]
    flat, after = (*lead, math.prod(space)), (*lead, math.prod(out.shape[-n:]))
    if flat[-1] == 1:  # padding is never the largest
        return [Map(value, out, broadcast(value.shape, out.shape))]
    gather = Gather(len(lead), flat[-1], LazyTensor(lambda: places.tensor.reshape(after)), after)
    return [Map(value, out, (*reshaped(value.shape, flat), gather, *reshaped(after, out.shape)))]


def _tiles(wide: Value, small: Value, n: int) -> list[int] | None:
    """Sizes of the blocks of the wide activation that stand for one element each of the small one; None if uneven."""
    pairs = list(zip(wide.shape[-n:], small.shape[-n:], strict=True))
    return [a // b for a, b in pairs] if all(a % b == 0 for a, b in pairs) else None


def _covers(args: dict[str, Any], blocks: list[int]) -> bool:
    """Whether the windows of a pooling are these blocks."""
    if "kernel_size" not in args:
        return True  # adaptive, and sizes divide
    kernel, n = per_dimension(args["kernel_size"], len(blocks)), len(blocks)
    return (
        list(kernel) == blocks
        and per_dimension(args.get("stride"), n, kernel) == kernel
        and not any(per_dimension(args.get("padding"), n))
        and set(per_dimension(args.get("dilation"), n)) <= {1}
    )


def _summed_blocks(value: Value, out: Value, blocks: list[int]) -> Steps:
    """Σ over blocks: ``(…, h k, w l)`` as ``(…, h, k, w, l)`` to ``(…, h, 1, w, 1)``."""
    pairs, ones = _paired(out.shape, blocks), _paired(out.shape, [1] * len(blocks))
    return (Reshape(value.shape, pairs), SumTo(pairs, ones), Reshape(ones, out.shape))


def _paired(shape: Shape, blocks: list[int]) -> Shape:
    """``(…, h, w)`` → ``(…, h, k, w, l)`` for blocks k, l."""
    lead, space = shape[: -len(blocks)], shape[-len(blocks) :]
    return (*lead, *(m for pair in zip(space, blocks, strict=True) for m in pair))


def _masked_blocks(value: Value, out: Value, places: Value, blocks: list[int]) -> Steps:
    """A mask on the input, which joins the factors of what comes before it, and sums over blocks."""
    n = len(blocks)
    pairs, ones = _paired(out.shape, blocks), _paired(out.shape, [1] * n)

    def mask() -> Tensor:
        position = torch.arange(math.prod(value.shape[-n:]), device=places.tensor.device).reshape(pairs[-2 * n :])
        return (places.tensor.reshape(ones) == position).to(value.tensor.dtype).reshape(value.shape)

    return (Mul(LazyTensor(mask), value.shape), *_summed_blocks(value, out, blocks))


@unary_rule(
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    "self input",
)
def separable(call: UnaryCall) -> Steps:
    """y = (A ⊗ B) x: means of windows and resampling, a matrix along each direction; blocks where they tile."""
    value, out, name = call.value, call.out, call.node.short_name
    n = int(re.findall(r"(\d)d", name)[-1])
    down, up = _tiles(value, out, n), _tiles(out, value, n)
    if "avg_pool" in name and down is not None and _covers(call.args, down):
        divisor = call.args.get("divisor_override") or math.prod(down)
        return (*_summed_blocks(value, out, down), Scale(1 / float(divisor)))
    if "nearest" in name and up is not None and _repeats(call):
        ones, wide = _paired(value.shape, [1] * n), _paired(value.shape, up)
        return (*reshaped(value.shape, ones), *expanded(ones, wide), *reshaped(wide, out.shape))
    return _matrices(call, n)


def _repeats(call: UnaryCall) -> bool:
    """Whether each element is repeated in a block: the operator is run on one row of numbers for each direction."""
    shape = call.value.shape
    for d in range(2, len(shape)):
        row = torch.arange(float(shape[d]), dtype=torch.float64)
        image = row.reshape([-1 if e == d else 1 for e in range(len(shape))]).expand(1, 1, *shape[2:])
        result = call.node.op(image, *call.node.args[1:], **call.node.kwargs).movedim(d, 0)
        line = result.reshape(len(result), -1)[:, 0]
        if not torch.equal(line, row.repeat_interleave(call.out.shape[d] // shape[d])):
            return False
    return True


def _matrices(call: UnaryCall, n: int) -> Steps:
    """A matrix for each direction, from the operator's results for images of one line: they are a tensor product."""
    node, value, out = call.node, call.value, call.out
    space, lead = value.shape[-n:], len(value.shape) - n

    def run(image: Tensor) -> Tensor:
        result: Tensor = node.op(image[(None,) * lead], *node.args[1:], **node.kwargs)
        return result.reshape(out.shape[-n:])

    blank = torch.zeros(space, dtype=torch.float64, device=value.tensor.device)
    # A line of ones in direction d gives the matrix of d, times the sum of row 0 of each other direction's matrix. All
    # these sums multiplied are the result for an image of ones. Divided out in all directions but one, the product of
    # the tables is that of the matrices.
    total = float(run(blank + 1)[(0,) * n])
    steps = []
    for d in range(n):
        lines = [run(blank.select_scatter(torch.ones_like(blank.select(d, i)), d, i)) for i in range(space[d])]
        table = torch.stack([line.movedim(d, 0).reshape(out.shape[lead + d], -1)[:, 0] for line in lines])
        table = (table / total if d else table).to(value.tensor.dtype)
        steps.append(_on_dim(lead + d, table))
    return tuple(steps)


def _on_dim(dim: int, table: Shaped[Tensor, "n_in n_out"]) -> Matrix:
    return Matrix(dim, LazyTensor(lambda: table), tuple(table.shape))


@rule("glu")
def glu(node: Node) -> list[Map]:
    """y = a σ(b), a and b the halves of x in a dimension: ∂y/∂a = diag(σ(b)), ∂y/∂b = diag(a σ(b) (1 - σ(b)))."""
    args, out = arguments(node), node.outputs[0]
    value = args["self"]
    dim = args["dim"] % len(value.shape)
    full = value.shape[dim]

    def slope_of_a() -> Tensor:
        _, b = value.tensor.chunk(2, dim)
        return torch.sigmoid(b)

    def slope_of_b() -> Tensor:
        a, gate = value.tensor.chunk(2, dim)[0], slope_of_a()
        slope: Tensor = a * gate * (1 - gate)
        return slope

    return [
        Map(value, out, (*sliced(dim, full, start, full // 2), Mul(LazyTensor(slope), out.shape)))
        for start, slope in ((0, slope_of_a), (full // 2, slope_of_b))
    ]


@unary_rule("prelu _prelu_kernel")
def prelu(call: UnaryCall) -> Steps:
    """y = x where x > 0, else w x: diag(1 or w)."""
    value, weight = call.value, call.args["weight"]

    def slope() -> Tensor:
        slopes = weight.tensor
        if slopes.dim() < 2 and slopes.numel() > 1 and value.tensor.dim() > 1:
            slopes = slopes.reshape([1, -1] + [1] * (value.tensor.dim() - 2))
        return torch.where(value.tensor > 0, torch.ones_like(slopes), slopes)

    return (Mul(LazyTensor(slope), call.out.shape),)
