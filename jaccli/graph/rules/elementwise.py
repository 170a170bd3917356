"""Derivatives of elementwise operators: diagonals."""

from __future__ import annotations

from typing import Any

import torch

from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.reshape import Expand
from jaccli.graph.rules.registry import RULES, Map, active, bound, local_gradient, number, reshaped, rule, scaled
from jaccli.graph.trace.ir import Node, Value, swap


def broadcast(old: Shape, new: Shape) -> tuple[Primitive, ...]:
    """From a shape to one that it broadcasts to."""
    padded = (1,) * (len(new) - len(old)) + old
    return (*reshaped(old, padded), *((Expand(padded, new),) if padded != new else ()))


def _unique(values: list[Value]) -> list[Value]:
    return list(dict.fromkeys(v for v in values if v.active))


def pointwise(node: Node) -> list[Map]:
    """Any elementwise operator: its diagonal by autograd through the operator alone, in one pass."""
    out = node.outputs[0]
    inputs = _unique(node.inputs())

    def diagonal(value: Value) -> LazyTensor:
        def make() -> torch.Tensor:
            wide = value.tensor.expand(out.shape)
            twin = Value(wide)

            def stand_in(other: Value) -> Value:
                return twin if other is value else other

            copy = Node(node.op, swap(node.args, stand_in), swap(node.kwargs, stand_in))
            (gradient,) = local_gradient(copy, [twin])
            return torch.zeros_like(out.tensor) if gradient is None else gradient.to(out.tensor.dtype)

        return LazyTensor(make)

    return [Map(v, out, (*broadcast(v.shape, out.shape), Mul(diagonal(v), out.shape))) for v in inputs]


RULES["pointwise"] = pointwise
for _name in (
    "log_sigmoid_forward",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "softplus",
    "softshrink",
    "hardshrink",
    "threshold",
    "mish",
    "silu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "clamp",
    "clamp_min",
    "clamp_max",
    "relu6",
    "lerp",
    "addcmul",
    "addcdiv",
    "maximum",
    "minimum",
    "fmod",
    "remainder",
    "frac",
    "erfinv",
):
    RULES[f"aten.{_name}"] = pointwise


@rule(
    "detach",
    "alias",
    "clone",
    "lift_fresh",
    "lift_fresh_copy",
    "contiguous",
    "_to_copy",
    "to",
    "dropout",
    "feature_dropout",
)
def same(node: Node) -> list[Map]:
    """The identity."""
    return [Map(v, node.outputs[0], ()) for v in _unique(node.inputs())]


@rule("copy")
def copy(node: Node) -> list[Map]:
    """The second argument, in the shape of the first."""
    value = bound(node)["src"]
    return [Map(value, node.outputs[0], broadcast(value.shape, node.outputs[0].shape))] if active(value) else []


@rule("neg")
def neg(node: Node) -> list[Map]:
    """-x."""
    return [Map(node.inputs()[0], node.outputs[0], (Scale(-1.0),))]


@rule("add", "sub", "rsub")
def add(node: Node) -> list[Map]:
    """x ± α y."""
    found = bound(node)
    name = node.name.removeprefix("aten.")
    alpha = number(found.get("alpha"))
    signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[name]
    out = node.outputs[0]
    return [
        Map(v, out, (*broadcast(v.shape, out.shape), *scaled(sign)))
        for v, sign in zip((found["self"], found["other"]), signs, strict=True)
        if active(v)
    ]


@rule("mul")
def mul(node: Node) -> list[Map]:
    """x y."""
    found = bound(node)
    out = node.outputs[0]
    pair = (found["self"], found["other"])
    result = []
    for value, other in (pair, pair[::-1]):
        if active(value):
            result.append(Map(value, out, (*broadcast(value.shape, out.shape), *_by(other, out))))
    return result


@rule("div")
def div(node: Node) -> list[Map]:
    """x / y, without rounding; else the derivative is zero and autograd says so."""
    found = bound(node)
    out, other = node.outputs[0], found["other"]
    if found.get("rounding_mode") is not None or active(other) or (not isinstance(other, Value) and other == 0):
        return pointwise(node)
    steps = broadcast(found["self"].shape, out.shape)
    if not isinstance(other, Value):
        return [Map(found["self"], out, (*steps, Scale(1 / float(other))))]
    factor = LazyTensor(lambda: other.tensor.to(out.tensor.dtype).reciprocal().reshape(_padded(other.shape, out)))
    return [Map(found["self"], out, (*steps, Mul(factor, _padded(other.shape, out))))]


def _by(other: Any, out: Value) -> tuple[Primitive, ...]:
    if not isinstance(other, Value):
        return (Scale(float(other)),)
    shape = _padded(other.shape, out)
    return (Mul(LazyTensor(lambda: other.tensor.to(out.tensor.dtype).reshape(shape)), shape),)


def _padded(shape: Shape, out: Value) -> Shape:
    return (1,) * (len(out.shape) - len(shape)) + shape


@rule("where")
def where(node: Node) -> list[Map]:
    """Either by a condition."""
    return _by_mask(node, "condition", {"self": True, "other": False})


@rule("masked_fill")
def masked_fill(node: Node) -> list[Map]:
    """x where the mask is not; a number there."""
    return _by_mask(node, "mask", {"self": False, "value": True})


def _by_mask(node: Node, mask: str, sides: dict[str, bool]) -> list[Map]:
    """Arguments taken where a mask has their side."""
    found = bound(node)
    out, chosen = node.outputs[0], found[mask]
    shape = _padded(chosen.shape, out)

    def factor(side: bool) -> LazyTensor:
        return LazyTensor(lambda: (chosen.tensor == side).to(out.tensor.dtype).reshape(shape))

    return [
        Map(found[name], out, (*broadcast(found[name].shape, out.shape), Mul(factor(side), shape)))
        for name, side in sides.items()
        if active(found[name])
    ]


def _direct(name: str, formula: Any) -> None:
    """A function of one argument whose derivative is quickest from its own value, or from its argument."""

    @rule(name)
    def unary(node: Node) -> list[Map]:
        value, out = bound(node)["self"], node.outputs[0]
        return [Map(value, out, (Mul(LazyTensor(lambda: formula(value.tensor, out.tensor)), out.shape),))]


_direct("tanh", lambda x, y: torch.addcmul(torch.ones((), dtype=y.dtype, device=y.device), y, y, value=-1))
_direct("sigmoid", lambda x, y: torch.addcmul(y, y, y, value=-1))
_direct("relu", lambda x, y: (y > 0).to(y.dtype))
_direct("exp", lambda x, y: y)
_direct("sin", lambda x, y: torch.cos(x))
_direct("cos", lambda x, y: -torch.sin(x))
_direct("reciprocal", lambda x, y: -y * y)
