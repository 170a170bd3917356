"""Structural zeros: elements of a value that are zero at every point, or -inf (a mask before a softmax).

Derived from constants and operators only, never from the content of a value that depends on the inputs.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.rules.registry import arguments
from jaccli.graph.rules.steps import number_or_one
from jaccli.graph.trace.ir import Node, Value, swap
from jaccli.graph.trace.tracer import Tracer

Fact = Literal["zero", "-inf"]

# Masks of finite numbers: exp of such a number is zero beside exp of any score that a network computes.
_AS_GOOD_AS_INFINITE = -1e30
# A scaling of scores by a number in this range leaves that so.
_MILD = (1e-3, 1e3)
# Facts are followed back through at most this number of operators.
_DEEPEST = 60

_IDENTITIES = {"clone", "alias", "detach", "contiguous", "_to_copy", "to", "dropout", "lift_fresh"}
_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute", "t", "transpose", "expand",
    "repeat", "slice", "narrow", "select", "unbind", "split", "split_with_sizes", "chunk", "cat", "stack", "flip",
    "roll", "index_select", "index", "diagonal", "unfold",
}  # fmt: skip
_ZERO_TO_ZERO = {"neg", "relu", "tanh", "sin", "abs", "gelu", "silu", "sqrt", "square", "leaky_relu", "elu"}
_SOFTMAX = {"_softmax", "_safe_softmax", "softmax"}


class StructuralZeros:
    """Of the values of a graph, computed on demand and kept."""

    def __init__(self) -> None:
        self._facts: dict[tuple[Value, Fact], Tensor | None] = {}

    def where(self, value: Value, fact: Fact, depth: int = 0) -> Tensor | None:
        """The elements that are ``fact`` at every point: a mask of the value's shape, or None where there are none."""
        key = (value, fact)
        if key not in self._facts:
            self._facts[key] = self._where(value, fact, depth) if depth < _DEEPEST else None
        return self._facts[key]

    def _where(self, value: Value, fact: Fact, depth: int) -> Tensor | None:
        """As ``where``, of the value's shape, not remembered."""
        if not value.varies:
            if value.tensor.is_meta or (fact == "-inf" and not value.tensor.is_floating_point()):
                return None
            mask = value.tensor == 0 if fact == "zero" else value.tensor <= _AS_GOOD_AS_INFINITE
            return mask if bool(mask.any()) else None
        if value.node is None or not value.tensor.is_floating_point():
            return None
        return self._by_operator(value.node, value, fact, depth + 1)

    def _by_operator(self, node: Node, value: Value, fact: Fact, depth: int) -> Tensor | None:
        """From what holds of the operator's arguments; a mask of the value's shape."""
        name = node.short_name
        if name in _IDENTITIES or (fact == "zero" and name in _ZERO_TO_ZERO):
            return self.where(node.inputs()[0], fact, depth)
        if name in _MOVES:
            return self._moved(node, value, fact, depth)
        args = arguments(node)
        if name in ("masked_fill", "where"):
            return self._by_condition(args, value, fact, depth)
        if name in _SOFTMAX and fact == "zero":
            mask = self.where(args["self"], "-inf", depth)
            # A softmax of -inf alone is not zero: it is nan, or, of large finite numbers, uniform.
            return None if mask is None else mask & ~torch.all(mask, int(args["dim"]), keepdim=True)
        if name in ("addmm", "baddbmm") and fact == "-inf" and args["beta"] == 1:
            mask = self.where(args["self"], "-inf", depth)
            return None if mask is None else mask.expand(value.shape)
        if name == "exp" and fact == "zero":
            return self.where(args["self"], "-inf", depth)
        return self._arithmetic(name, args, value, fact, depth)

    def _arithmetic(self, name: str, args: dict[str, Any], value: Value, fact: Fact, depth: int) -> Tensor | None:
        """Of sums, products and quotients: a mask of any shape that broadcasts to the value's."""
        if name not in ("add", "mul", "div", "sub"):
            return None
        masks = [self._operand(args[key], fact, depth) for key in ("self", "other")]
        if fact == "zero":
            if name == "mul":
                return _either(masks, value)
            if name == "div":
                return None if masks[0] is None else masks[0].expand(value.shape)
            return None if masks[0] is None or masks[1] is None else masks[0] & masks[1]
        if name == "add" and number_or_one(args.get("alpha")) > 0:
            return _either(masks, value)
        scale = 0.0 if isinstance(args["other"], Value) else float(args["other"])
        if name == "sub" or (name in ("mul", "div") and _MILD[0] <= scale <= _MILD[1]):
            return None if masks[0] is None else masks[0].expand(value.shape)
        return None

    def _operand(self, operand: Any, fact: Fact, depth: int) -> Tensor | None:
        """Of a value, a mask of its shape; of a number, a scalar."""
        if isinstance(operand, Value):
            return self.where(operand, fact, depth)
        is_so = operand == 0 if fact == "zero" else operand <= _AS_GOOD_AS_INFINITE
        return torch.ones((), dtype=torch.bool) if is_so else None

    def _by_condition(self, args: dict[str, Any], value: Value, fact: Fact, depth: int) -> Tensor | None:
        """``masked_fill`` and ``where`` with a constant condition: of either argument, of the value's shape."""
        condition = args["mask"] if "mask" in args else args["condition"]
        if condition.varies:
            return None
        yes, no = (args["value"], args["self"]) if "mask" in args else (args["self"], args["other"])
        none = torch.zeros((), dtype=torch.bool, device=condition.tensor.device)
        masks = [self._operand(x, fact, depth) for x in (yes, no)]
        if masks == [None, None]:
            return None
        first, second = (none if m is None else m.to(none.device) for m in masks)
        return torch.where(condition.tensor.bool(), first, second).expand(value.shape)

    def _moved(self, node: Node, value: Value, fact: Fact, depth: int) -> Tensor | None:
        """An operator that only moves elements moves the mask, to the value's shape."""
        masks: dict[Value, Tensor] = {}
        for v in node.inputs():
            if not v.tensor.is_floating_point():
                if v.varies:
                    return None
                masks[v] = v.tensor
            elif (mask := self.where(v, fact, depth)) is not None:
                masks[v] = mask
        if not any(v.tensor.is_floating_point() for v in masks):
            return None

        def mask_of(v: Value) -> Tensor:
            return masks[v] if v in masks else torch.zeros_like(v.tensor, dtype=torch.bool)

        result = node.op(*swap(node.args, mask_of), **swap(node.kwargs, mask_of))
        moved: Tensor = result[value.out] if isinstance(result, list | tuple) else result
        return moved


def _either(masks: list[Tensor | None], value: Value) -> Tensor | None:
    """Where any of the masks holds, of the value's shape."""
    where_any = [m.to(value.tensor.device).expand(value.shape) for m in masks if m is not None]
    return reduce(torch.logical_or, where_any) if where_any else None


def constant(factor: LazyTensor, node: Node) -> Tensor | None:
    """A factor of a node's derivative, of any shape, where it is the same at every point; else None.

    It is computed below a tracer, which says whether it varies, and not kept in the ``LazyTensor``: a program that is
    traced later would contain it as a constant.
    """
    tracer = Tracer()
    for value in (*node.inputs(), *node.outputs):
        tracer.adopt(value.tensor, value.varies)
    with torch.no_grad(), tracer:
        tensor = factor.make()
    return None if tracer.variable_of(tensor).memory.varies else tensor
