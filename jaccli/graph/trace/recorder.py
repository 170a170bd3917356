"""Operators as they are dispatched, in single-assignment form.

A ``Recorder`` is a dispatch mode: while it is entered, every operator below autograd comes to ``see``, which runs it
and records a ``Node`` whose tensors are ``Value``s.

    operator ─→ effect ─┬─ none, view   run, recorded as a node
                        ├─ write        recorded without the write (``functionalize``), then run; tensors that share
                        │               the memory stand for new values from then on (``aliasing``)
                        ├─ read         of a value that varies: a guard, whose content is checked in every later run
                        └─ shape, random   a gap where the values steer the result

Which value a tensor object stands for, after writes and through views, is kept by ``aliasing.TensorTable``; its
docstring explains how, and lists the invariants I1 to I6. Those of the recorder itself:

    R1  What was dispatched is recorded as nodes, is a guard, or is a gap: nothing runs unseen.
    R2  Nodes stand in order of execution, also those that ``emit`` adds for a write or for a stale view.
    R3  A value that ``varies`` depends on an input of the graph. All others are the same in every run, and so are the
        nodes that compute them.
    R4  A value is ``active`` where it depends on the source through floating-point or complex results alone, with
        gradients switched on. Where they are switched off, an active operand is a gap; ``detach`` ends activity.
    R5  The model gets what its operator returned, never a value's tensor: it runs as it would without the recorder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jaccli.graph.trace.aliasing import TensorTable
from jaccli.graph.trace.effects import BLIND, RELABELLING, effect_of
from jaccli.graph.trace.functionalize import View, functional
from jaccli.graph.trace.ir import CaptureGap, Node, Value, share_memory, swap, tensors_in
from jaccli.graph.trace.recurrent_cells import CELLS
from jaccli.runtime.dispatch import Mode, passed
from jaccli.runtime.kernels import FUSED_OPERATORS

aten = torch.ops.aten


class Recorder(Mode):
    """Records while it is entered.

    Args:
        whole: gradients are wanted by every input, not by the source alone.

    Attributes:
        nodes: in order of execution.
        guards: values whose content steered the run (a branch), with the Python number that was read.
        derived: whether derivatives are recorded now, which autograd computes without gradients of its own.
    """

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole, self.derived = whole, False
        self.nodes: list[Node] = []
        self.guards: list[tuple[Value, Any]] = []
        self.table = TensorTable(self.emit)

    def declare(self, tensor: Tensor, *, active: bool = False) -> Value:
        """An input of the graph, of any shape."""
        value = Value(tensor, "input", varies=True, active=active)
        self.table.enter(tensor, value)
        self.table.add_value(value)
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """What a tensor of the run stands for now: a value of its shape."""
        if self.derived and tensor not in self.table and self.table.varies_beside(tensor):
            raise CaptureGap("a derivative rests on a tensor that lies in another's memory")
        return self.table.value_of(tensor)

    def derive(self) -> None:
        """What is recorded from now on are derivatives, of values that the network may have written over since."""
        self.derived = True
        for value in [v for node in self.nodes for v in (*node.inputs(), *node.outputs)]:
            if value.tensor not in self.table:
                self.table.enter(value.tensor, value)

    def emit(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Value]:
        """Run an operator on values and record it."""
        tensors, named = swap(args, lambda v: v.tensor), swap(kwargs or {}, lambda v: v.tensor)
        return self._record(op, args, kwargs or {}, op(*tensors, **named), (tensors, named))

    def _record(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, tensors: tuple[Any, ...]
    ) -> list[Value]:
        """A node for an operator that was run; the values of its results.

        Args:
            op: the operator.
            args: its arguments, values in the place of tensors.
            kwargs: likewise.
            result: what it gave.
            tensors: the arguments that it ran with, args and kwargs; of a value that was written over since, ``args``
                hold a copy.
        """
        node = Node(op, args, kwargs)
        varies, active = self._dependence(op, node.inputs())
        for position, tensor in enumerate(result if isinstance(result, list | tuple) else (result,)):
            if isinstance(tensor, Tensor):
                # Indices and masks depend on the source, and have no derivative by it.
                floating = tensor.is_floating_point() or tensor.is_complex()
                value = Value(tensor, "node", node, position, varies, active and floating)
                node.outputs.append(value)
                self.table.add_value(value)
        node.view = share_memory(tensors_in(tensors), (v.tensor for v in node.outputs))
        self.nodes.append(node)
        return node.outputs

    def _dependence(self, op: Any, inputs: list[Value]) -> tuple[bool, bool]:
        """Whether results vary, and whether they are active.

        Raises:
            CaptureGap: gradients would have to flow through an operator that runs without them.
        """
        varies, active = any(v.varies for v in inputs), any(v.active for v in inputs)
        if op.overloadpacket in BLIND:
            return False, False
        # What the model detaches is a constant to the derivative, and changes with the input all the same.
        if op.overloadpacket is aten.detach:
            return varies, False
        if (active or (self.whole and varies)) and not (self.derived or torch.is_grad_enabled()):
            raise CaptureGap("the model computes without gradients, or by an autograd function of its own")
        return varies, active

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One dispatched operator, run and recorded; its result."""
        if op is aten.rrelu_with_noise.default and not (*args, *[0.125, 1 / 3, False][len(args) - 2 :])[4]:
            # In eval mode it is a leaky ReLU, though its schema says that it writes noise.
            low, high = (*args, 0.125, 1 / 3)[2:4]
            return self.see(aten.leaky_relu.default, (args[0], (low + high) / 2), {})
        if op in CELLS:
            with self:  # the mode is off within ``see``; entered again, it records what the cell consists of
                return CELLS[op](*args, **kwargs)
        effect = effect_of(op)
        values, named = swap(args, self.value_of, Tensor), swap(kwargs, self.value_of, Tensor)
        # The form without a write is recorded first, while its operands hold the old content.
        if effect == "write":
            self._write(op, args, values, named)
            op(*args, **kwargs)
            return args[0]
        result = passed(op, args, kwargs)
        if effect == "read":
            self._guard(values[0], result)
            return result
        if effect == "shape" and any(v.varies for v in _steering(op, values, named)):
            raise CaptureGap(f"the shape of {op.overloadpacket}'s result depends on the values")
        if effect == "random" and str(op.overloadpacket) not in FUSED_OPERATORS:  # these draw for dropout alone
            raise CaptureGap(f"{op.overloadpacket} draws random numbers")
        is_view = effect == "view" and isinstance(values[0], Value)
        base = self.table.entry(args[0]) if is_view else None
        for value in self._record(op, values, named, result, (args, kwargs)):
            view = View(op, values[1:], named, value.out) if is_view else None
            # An operator may return its argument itself (``lift_fresh``), which has its entry already (I1).
            if value.tensor not in self.table:
                self.table.enter(value.tensor, value, base, view)
        return result

    def _guard(self, value: Value, number: Any) -> None:
        """A number that was read out of a tensor.

        Raises:
            CaptureGap: it may be computed with: a floating-point number that varies.
        """
        if not value.varies:
            return
        if value.tensor.is_floating_point() or value.tensor.is_complex():
            raise CaptureGap("the model reads a number out of a tensor (.item()) and computes with it")
        self.guards.append((value, number))

    def _write(self, op: Any, args: Any, values: Any, named: Any) -> None:
        """An operator that is about to write into its first argument, or to relabel it."""
        pure = functional(op)
        if op.overloadpacket in RELABELLING:
            pure = pure or aten.transpose.int
            before = self.table.relabel(args[0])
            (new,) = self.emit(pure, (before.value, *args[1:]), named)
            self.table.enter(args[0], new, before, View(pure, args[1:], named, 0))
            return
        if pure is None:
            raise CaptureGap(f"{op.overloadpacket} writes in place, and no form of it does not")
        (new,) = self.emit(pure, values, named)
        self.table.write(args[0], new)


def _steering(op: Any, values: Any, named: Any) -> list[Value]:
    """The values that the shape of the result depends on: of an index its masks, else all."""
    node = Node(op, values, named)
    if op.overloadpacket in (aten.index, aten._unsafe_index):
        return [v for v in node.inputs()[1:] if v.tensor.dtype in (torch.bool, torch.uint8)]
    return node.inputs()
