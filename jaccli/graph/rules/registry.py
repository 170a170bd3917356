"""The derivative of every operator, as linear maps from its active inputs to its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.maps.base import Primitive, Shape
from jaccli.graph.maps.elementwise import Scale
from jaccli.graph.maps.reshape import Reshape
from jaccli.graph.maps.slice import Slice
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap


@dataclass(frozen=True)
class Map:
    """∂(an output of a node) / ∂(one of its inputs): primitives, applied from left to right to tangents."""

    source: Value
    target: Value
    steps: tuple[Primitive, ...]


Rule = Callable[[Node], list[Map]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[f"aten.{name}"] = function
        return function

    return register


def bound(node: Node) -> dict[str, Any]:
    """Arguments by name, defaults filled in."""
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.op._schema.arguments):
        if argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif position < len(node.args) and not argument.kwarg_only:
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def active(value: Any) -> bool:
    """Whether an argument is a value that hangs on the source."""
    return isinstance(value, Value) and value.active


def only_active(node: Node, *names: str) -> dict[str, Any]:
    """The arguments, when no other than these is active.

    Raises:
        CaptureGap: another one is.
    """
    found = bound(node)
    for name, value in found.items():
        items = value if isinstance(value, list | tuple) else (value,)
        if name not in names and any(active(item) for item in items):
            raise CaptureGap(f"{node.name} with a {name} that hangs on the source")
    return found


def local_gradient(node: Node, inputs: list[Value], out: int = 0) -> list[Tensor | None]:
    """∂(sum of an output) / ∂(inputs), by autograd through this one operator."""
    leaves = {v: v.tensor.detach().requires_grad_() for v in inputs}

    def leaf(value: Value) -> Tensor:
        return leaves.get(value, value.tensor)

    with torch.enable_grad():
        result = node.op(*swap(node.args, leaf), **swap(node.kwargs, leaf))
        result = result[out] if isinstance(result, list | tuple) else result
        if not result.requires_grad:
            return [None] * len(inputs)
        # Of the sum: a cotangent handed over would import sympy (0.4 s) the first time.
        return list(torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True))


def normal(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim % max(ndim, 1)


def sliced(dim: int, full: int, start: int, count: int, step: int = 1) -> tuple[Primitive, ...]:
    """A slice; nothing where it is all."""
    return () if count == full and step == 1 else (Slice(dim, full, start, count, step),)


def reshaped(old: Shape, new: Shape) -> tuple[Primitive, ...]:
    """A reshape; nothing where the shapes are one."""
    return () if old == new else (Reshape(old, new),)


def number(given: Any, default: float = 1.0) -> float:
    """A factor among the arguments; 0 is one too."""
    return default if given is None else float(given)


def scaled(factor: float) -> tuple[Primitive, ...]:
    """A multiplication; nothing where it is by 1."""
    return () if factor == 1 else (Scale(factor),)
