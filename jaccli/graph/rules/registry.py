"""Where rules register, and what they are made of.

A rule takes a node and returns its ``Map``s. Factors are ``LazyTensor``s: they read the tensors of the graph's values
when J is computed, never while a rule runs. A rule itself may read constants only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.layout.layout import exchanged
from jaccli.graph.maps.base import LazyTensor, Primitive, Shape
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.maps.gather import Pick
from jaccli.graph.maps.reshape import Expand, Reshape
from jaccli.graph.maps.slice import Slice
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap

Steps = Sequence[Primitive]


@dataclass(frozen=True)
class Map:
    """∂(an output of a node) / ∂(one of its inputs): primitives, applied from left to right to tangents."""

    source: Value
    target: Value
    steps: tuple[Primitive, ...]


@dataclass(frozen=True)
class UnaryCall:
    """A call of an operator of which one argument alone may be active.

    Args:
        node: the call.
        args: all arguments by name.
        value: the active argument, x.
        out: the output to derive, y.
    """

    node: Node
    args: dict[str, Any]
    value: Value
    out: Value

    @property
    def dim(self) -> int:
        """The argument ``dim``, counted from the front."""
        return from_front(self.args["dim"], len(self.value.shape))


Rule = Callable[[Node], list[Map]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators; a string may hold several names with blanks between them."""

    def register(function: Rule) -> Rule:
        RULES.update({f"aten.{name}": function for name in " ".join(names).split()})
        return function

    return register


def unary_rule(
    names: str, argument: str = "self", all_outputs: bool = False
) -> Callable[[Callable[[UnaryCall], Steps]], Rule]:
    """Register a function that gives the primitives from x to y, for operators with one argument that may be active.

    Args:
        names: of the operators, with blanks between them.
        argument: what x is called; several names where operators differ.
        all_outputs: the function is called for each output; else for the first one, and others have no derivative.
    """

    def register(function: Callable[[UnaryCall], Steps]) -> Rule:
        def maps(node: Node) -> list[Map]:
            args = only_active(node, *argument.split())
            value = next(args[name] for name in argument.split() if args.get(name) is not None)
            outputs = node.outputs if all_outputs else node.outputs[:1]
            return [Map(value, out, tuple(function(UnaryCall(node, args, value, out)))) for out in outputs]

        return rule(names)(maps)

    return register


def arguments(node: Node) -> dict[str, Any]:
    """Arguments by name, defaults filled in."""
    args: dict[str, Any] = {}
    for position, argument in enumerate(node.op._schema.arguments):
        if argument.name in node.kwargs:
            args[argument.name] = node.kwargs[argument.name]
        elif position < len(node.args) and not argument.kwarg_only:
            args[argument.name] = node.args[position]
        else:
            args[argument.name] = argument.default_value if argument.has_default_value() else None
    return args


def active(value: Any) -> bool:
    """Whether an argument is a value that depends on the source."""
    return isinstance(value, Value) and value.active


def only_active(node: Node, *names: str) -> dict[str, Any]:
    """The arguments by name, when no others than these are active.

    Raises:
        CaptureGap: another one is.
    """
    args = arguments(node)
    for name, value in args.items():
        items = value if isinstance(value, list | tuple) else (value,)
        if name not in names and any(active(item) for item in items):
            raise CaptureGap(f"{node.name} with a {name} that depends on the source")
    return args


def local_gradient(node: Node, value: Value, out: int = 0) -> Tensor:
    """∂(sum of an output) / ∂value, in the shape of the value, by autograd through this one operator."""
    leaf, results = _run_on_leaf(node, value)
    if not results[out].requires_grad:
        return torch.zeros_like(leaf)
    # Of the sum: a cotangent handed over would import sympy (0.4 s) the first time.
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(results[out].sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def local_rows(node: Node, value: Value, row: Callable[[Tensor, int], Tensor], count: int) -> list[Tensor]:
    """∂(sum of ``row(result, i)``) / ∂value for i < count, each in the shape of the value, by autograd as above."""
    leaf, (result, *_) = _run_on_leaf(node, value)
    with torch.enable_grad():
        return [torch.autograd.grad(row(result, i).sum(), leaf, retain_graph=True)[0] for i in range(count)]


def _run_on_leaf(node: Node, value: Value) -> tuple[Tensor, Sequence[Tensor]]:
    """The operator run again with a leaf in the place of one value: the leaf and the results."""
    leaf = value.tensor.detach().requires_grad_()

    def tensor(other: Value) -> Tensor:
        return leaf if other is value else other.tensor

    with torch.enable_grad():
        result = node.op(*swap(node.args, tensor), **swap(node.kwargs, tensor))
    return leaf, result if isinstance(result, list | tuple) else (result,)


def from_front(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim % max(ndim, 1)


def per_dimension(argument: Any, n: int, default: Sequence[int] = ()) -> tuple[int, ...]:
    """An argument with one number for each of ``n`` directions, or one for all; the default where it is empty."""
    numbers = tuple(argument or default)
    return numbers * n if len(numbers) == 1 else numbers


def number_or_one(argument: Any) -> float:
    """A factor among the arguments; 1 where it is left out."""
    return 1.0 if argument is None else float(argument)


def on_one_dim(ndim: int, dim: int, size: int) -> Shape:
    """``(1, …, size, …, 1)``."""
    return tuple(size if d == dim else 1 for d in range(ndim))


def sliced(dim: int, full: int, start: int, count: int, step: int = 1) -> tuple[Primitive, ...]:
    """A slice; nothing where it is all of the dimension."""
    return () if count == full and step == 1 else (Slice(dim, full, start, count, step),)


def reshaped(old: Shape, new: Shape) -> tuple[Primitive, ...]:
    """A reshape; nothing where the shapes are equal."""
    return () if old == new else (Reshape(old, new),)


def expanded(old: Shape, new: Shape) -> tuple[Primitive, ...]:
    """Copies along dimensions of size 1; nothing where the shapes are equal."""
    return () if old == new else (Expand(old, new),)


def broadcast(old: Shape, new: Shape) -> tuple[Primitive, ...]:
    """From a shape to one that it broadcasts to, perhaps with more dimensions in front."""
    padded = (1,) * (len(new) - len(old)) + old
    return (*reshaped(old, padded), *expanded(padded, new))


def scaled(factor: float) -> tuple[Primitive, ...]:
    """A multiplication by a number; nothing where it is 1."""
    return () if factor == 1 else (Scale(factor),)


def picked(shape: Shape, dim: int, index: Tensor) -> tuple[Primitive, ...]:
    """The positions ``index (n,)`` of one dimension, ``shape`` → the same with n there."""
    if shape[dim] == 1:
        return expanded(shape, exchanged(shape, dim, index.numel()))
    return (Pick(dim, shape[dim], index),)


def zeroed(out: Value, dim: int, shape: Shape, index: Tensor) -> Primitive:
    """The identity but for the positions ``index (n,)`` of one dimension of ``shape``, which become zero."""
    mask_shape = on_one_dim(len(shape), dim, shape[dim])

    def mask() -> Tensor:
        keep = torch.ones(shape[dim], dtype=out.tensor.dtype, device=out.tensor.device)
        return keep.index_fill(0, index, 0).reshape(mask_shape)

    return Mul(LazyTensor(mask), mask_shape)
