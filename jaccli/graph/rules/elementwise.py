"""Derivatives of elementwise operators: diagonals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.rules.registry import RULES, Map, UnaryCall, active, arguments, local_gradient, rule, unary_rule
from jaccli.graph.rules.steps import Steps, broadcast, number_or_one, scaled
from jaccli.graph.trace.ir import Node, Value, swap

if TYPE_CHECKING:
    from jaxtyping import Shaped


def _active_inputs(node: Node) -> list[Value]:
    """Each once."""
    return list(dict.fromkeys(v for v in node.inputs() if v.active))


@rule("log_sigmoid_forward hardswish hardsigmoid hardtanh leaky_relu softplus softshrink hardshrink threshold mish")
@rule("silu elu celu selu gelu relu6 clamp clamp_min clamp_max lerp addcmul addcdiv maximum minimum fmod remainder")
@rule("frac erfinv")
def pointwise(node: Node) -> list[Map]:
    """y = f(x, …): diag(∂f/∂x), for any elementwise operator, by autograd through the operator alone in one pass."""
    out = node.outputs[0]

    def diagonal(value: Value) -> LazyTensor:
        def make() -> Tensor:
            # Expanded first: the gradient of a broadcast operand would be summed over the copies.
            wide = Value(value.tensor.expand(out.shape))

            def stand_in(other: Value) -> Value:
                return wide if other is value else other

            copy = Node(node.op, swap(node.args, stand_in), swap(node.kwargs, stand_in))
            return local_gradient(copy, wide).to(out.tensor.dtype)

        return LazyTensor(make)

    return [Map(v, out, (*broadcast(v.shape, out.shape), Mul(diagonal(v), out.shape))) for v in _active_inputs(node)]


# For all that torch tags as pointwise.
RULES["pointwise"] = pointwise


@rule("detach alias clone lift_fresh lift_fresh_copy contiguous _to_copy to dropout feature_dropout")
def same(node: Node) -> list[Map]:
    """y = x."""
    return [Map(v, node.outputs[0], ()) for v in _active_inputs(node)]


@rule("copy")
def copy(node: Node) -> list[Map]:
    """y = src, broadcast to the shape of the first argument, which is overwritten."""
    value, out = arguments(node)["src"], node.outputs[0]
    return [Map(value, out, broadcast(value.shape, out.shape))] if active(value) else []


@unary_rule("neg")
def neg(_: UnaryCall) -> Steps:
    """y = -x."""
    return (Scale(-1.0),)


@rule("add sub rsub")
def add(node: Node) -> list[Map]:
    """y = a ± α b; of ``rsub`` b - α a."""
    args, out = arguments(node), node.outputs[0]
    alpha = number_or_one(args.get("alpha"))
    signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[node.short_name]
    return [
        Map(v, out, (*broadcast(v.shape, out.shape), *scaled(sign)))
        for v, sign in zip((args["self"], args["other"]), signs, strict=True)
        if active(v)
    ]


@rule("mul")
def mul(node: Node) -> list[Map]:
    """y = a b: ∂y/∂a = diag(b), ∂y/∂b = diag(a)."""
    args, out = arguments(node), node.outputs[0]
    pair = (args["self"], args["other"])
    return [
        Map(value, out, (*broadcast(value.shape, out.shape), _times(other, out, lambda factor: factor)))
        for value, other in (pair, pair[::-1])
        if active(value)
    ]


@rule("div")
def div(node: Node) -> list[Map]:
    """y = a / b: ∂y/∂a = diag(1 / b). Where b is active, zero, or y is rounded, as ``pointwise``."""
    args, out = arguments(node), node.outputs[0]
    value, other = args["self"], args["other"]
    # By the number 0, 1 / b would raise in Python, where torch gives inf and nan.
    if args.get("rounding_mode") is not None or active(other) or (not isinstance(other, Value) and other == 0):
        return pointwise(node)
    inverse = Scale(1 / float(other)) if not isinstance(other, Value) else _times(other, out, Tensor.reciprocal)
    return [Map(value, out, (*broadcast(value.shape, out.shape), inverse))]


def _times(other: Any, out: Value, function: Callable[[Tensor], Tensor]) -> Primitive:
    """Multiplication by a number, or by a function of a value whose shape broadcasts to ``out``; it keeps its shape."""
    if not isinstance(other, Value):
        return Scale(float(other))
    shape = _padded(other.shape, out)
    return Mul(LazyTensor(lambda: function(other.tensor.to(out.tensor.dtype)).reshape(shape)), shape)


def _padded(shape: Shape, out: Value) -> Shape:
    return (1,) * (len(out.shape) - len(shape)) + shape


@rule("where")
def where(node: Node) -> list[Map]:
    """y = a where the condition holds, else b: diag(condition) and diag(not condition)."""
    return _by_mask(node, "condition", {"self": True, "other": False})


@rule("masked_fill")
def masked_fill(node: Node) -> list[Map]:
    """y = value where the mask is true, else x."""
    return _by_mask(node, "mask", {"self": False, "value": True})


def _by_mask(node: Node, mask: str, sides: dict[str, bool]) -> list[Map]:
    """Arguments that are read where a mask has their side."""
    args, out = arguments(node), node.outputs[0]
    condition = args[mask]
    shape = _padded(condition.shape, out)

    def factor(side: bool) -> LazyTensor:
        return LazyTensor(lambda: (condition.tensor == side).to(out.tensor.dtype).reshape(shape))

    return [
        Map(args[name], out, (*broadcast(args[name].shape, out.shape), Mul(factor(side), shape)))
        for name, side in sides.items()
        if active(args[name])
    ]


def _one_minus_square(y: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    return torch.addcmul(torch.ones((), dtype=y.dtype, device=y.device), y, y, value=-1)


# f'(x) as a function of x and y = f(x), where that is quicker than autograd.
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda _, y: _one_minus_square(y),
    "sigmoid": lambda _, y: torch.addcmul(y, y, y, value=-1),
    "relu": lambda _, y: (y > 0).to(y.dtype),
    "exp": lambda _, y: y,
    "sin": lambda x, _: torch.cos(x),
    "cos": lambda x, _: -torch.sin(x),
    "reciprocal": lambda _, y: -y * y,
}


@unary_rule(" ".join(SLOPES))
def slope(call: UnaryCall) -> Steps:
    """y = f(x): diag(f'(x)), by the formula in ``SLOPES``."""
    formula, value, out = SLOPES[call.node.short_name], call.value, call.out
    return (Mul(LazyTensor(lambda: formula(value.tensor, out.tensor)), out.shape),)
