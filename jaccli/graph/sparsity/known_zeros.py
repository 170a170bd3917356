"""What is known of a value at every point: where it is zero, and where it is -inf (a mask before a softmax).

Found from constants and operators only, never from a value that hangs on the inputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.rules.registry import arguments, number_or_one
from jaccli.graph.trace.ir import Node, Value, swap
from jaccli.graph.trace.tracer import Tracer

Fact = Literal["zero", "-inf"]

# Masks of finite numbers: below this, exp is zero next to any score that a network works with.
_AS_GOOD_AS_INFINITE = -1e30
# Scores are scaled by such numbers, which leave that so.
_MILD = (1e-3, 1e3)
# Facts are followed back through so many operators.
_DEEPEST = 60

_SAME = {"clone", "alias", "detach", "contiguous", "_to_copy", "to", "dropout", "lift_fresh"}
_MOVED = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute", "t", "transpose", "expand",
    "repeat", "slice", "narrow", "select", "unbind", "split", "split_with_sizes", "chunk", "cat", "stack", "flip",
    "roll", "index_select", "index", "diagonal", "unfold",
}  # fmt: skip
_ZERO_TO_ZERO = {"neg", "relu", "tanh", "sin", "abs", "gelu", "silu", "sqrt", "square", "leaky_relu", "elu"}
_SOFTMAX = {"_softmax", "_safe_softmax", "softmax"}


class Known:
    """Facts of the values of a graph, found when they are asked for."""

    def __init__(self) -> None:
        self._facts: dict[tuple[Value, Fact], Tensor | None] = {}

    def where(self, value: Value, fact: Fact, depth: int = 0) -> Tensor | None:
        """The elements of which the fact is known: a mask of the value's shape, or None where there are none."""
        key = (value, fact)
        if key not in self._facts:
            self._facts[key] = self._found(value, fact, depth) if depth < _DEEPEST else None
        return self._facts[key]

    def _found(self, value: Value, fact: Fact, depth: int) -> Tensor | None:
        if not value.varies:
            if value.tensor.is_meta or (fact == "-inf" and not value.tensor.is_floating_point()):
                return None
            mask = value.tensor == 0 if fact == "zero" else value.tensor <= _AS_GOOD_AS_INFINITE
            return mask if bool(mask.any()) else None
        if value.node is None or not value.tensor.is_floating_point():
            return None
        return self._computed(value.node, value, fact, depth + 1)

    def _computed(self, node: Node, value: Value, fact: Fact, depth: int) -> Tensor | None:
        name = node.name.removeprefix("aten.")
        if name in _SAME or (fact == "zero" and name in _ZERO_TO_ZERO):
            return self.where(node.inputs()[0], fact, depth)
        if name in _MOVED:
            return self._moved(node, value, fact, depth)
        found = arguments(node)
        if name in ("masked_fill", "where"):
            return self._chosen(found, value, fact, depth)
        if name in _SOFTMAX and fact == "zero":
            mask = self.where(found["self"], "-inf", depth)
            # A row with nothing else in it is not zero, but undefined or even.
            return None if mask is None else mask & ~torch.all(mask, int(found["dim"]), keepdim=True)
        if name in ("addmm", "baddbmm") and fact == "-inf" and found["beta"] == 1:
            mask = self.where(found["self"], "-inf", depth)
            return None if mask is None else mask.expand(value.shape)
        if name == "exp" and fact == "zero":
            return self.where(found["self"], "-inf", depth)
        return self._arithmetic(name, found, value, fact, depth)

    def _arithmetic(self, name: str, found: dict[str, Any], value: Value, fact: Fact, depth: int) -> Tensor | None:
        if name not in ("add", "mul", "div", "sub"):
            return None
        masks = [self._operand(found[key], fact, depth) for key in ("self", "other")]
        if fact == "zero":
            if name == "mul":
                return _either(masks, value)
            if name == "div":
                return None if masks[0] is None else masks[0].expand(value.shape)
            return None if masks[0] is None or masks[1] is None else masks[0] & masks[1]
        if name == "add" and number_or_one(found.get("alpha")) > 0:
            return _either(masks, value)
        scale = 0.0 if isinstance(found["other"], Value) else float(found["other"])
        if name == "sub" or (name in ("mul", "div") and _MILD[0] <= scale <= _MILD[1]):
            return None if masks[0] is None else masks[0].expand(value.shape)
        return None

    def _operand(self, operand: Any, fact: Fact, depth: int) -> Tensor | None:
        if isinstance(operand, Value):
            return self.where(operand, fact, depth)
        is_so = operand == 0 if fact == "zero" else operand <= _AS_GOOD_AS_INFINITE
        return torch.ones((), dtype=torch.bool) if is_so else None

    def _chosen(self, found: dict[str, Any], value: Value, fact: Fact, depth: int) -> Tensor | None:
        """``masked_fill`` and ``where``: by a constant condition, one or the other."""
        condition = found["mask"] if "mask" in found else found["condition"]
        if condition.varies:
            return None
        yes, no = (found["value"], found["self"]) if "mask" in found else (found["self"], found["other"])
        none = torch.zeros((), dtype=torch.bool, device=condition.tensor.device)
        masks = [self._operand(x, fact, depth) for x in (yes, no)]
        if masks == [None, None]:
            return None
        first, second = (none if m is None else m.to(none.device) for m in masks)
        return torch.where(condition.tensor.bool(), first, second).expand(value.shape)

    def _moved(self, node: Node, value: Value, fact: Fact, depth: int) -> Tensor | None:
        """An operator that only moves elements moves the mask."""
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
    found = [m.to(value.tensor.device).expand(value.shape) for m in masks if m is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else found[0] | found[1]


def constant(late: LazyTensor, node: Node) -> Tensor | None:
    """A factor of a node's derivative, if it is the same at every point.

    It is made under a tracer and not kept: a plan that had looked at a factor before would be arguments to it.
    """
    tracer = Tracer()
    for value in (*node.inputs(), *node.outputs):
        tracer.adopt(value.tensor, value.varies)
    with torch.no_grad(), tracer:
        tensor = late.make()
    return None if tracer.slot_of(tensor).memory.varies else tensor
