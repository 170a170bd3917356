"""Where rules register, and what they read: a node's arguments, and derivatives by autograd through its operator.

A rule takes a node and returns its ``Map``s. Factors are ``LazyTensor``s: they read the tensors of the graph's values
when J is computed, never while a rule runs. A rule itself may read constants only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.rules.steps import Steps, from_front
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap


@dataclass(frozen=True)
class Map:
    """∂(an output of a node) / ∂(one of its inputs): primitives, applied from left to right to tangents."""

    source: Value
    target: Value
    steps: Steps


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
            return [Map(value, out, function(UnaryCall(node, args, value, out))) for out in outputs]

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
        # Of the sum, as above. Elements of ``row`` read different parts of the value, so that their gradients stand
        # side by side.
        return [torch.autograd.grad(row(result, i).sum(), leaf, retain_graph=True)[0] for i in range(count)]


def _run_on_leaf(node: Node, value: Value) -> tuple[Tensor, Sequence[Tensor]]:
    """The operator run again with a leaf in the place of one value: the leaf, of its shape, and the results."""
    # A leaf of its own: other uses of the value in the network get no part of the gradient.
    leaf = value.tensor.detach().requires_grad_()

    def tensor(other: Value) -> Tensor:
        return leaf if other is value else other.tensor

    with torch.enable_grad():
        result = node.op(*swap(node.args, tensor), **swap(node.kwargs, tensor))
    return leaf, result if isinstance(result, list | tuple) else (result,)
