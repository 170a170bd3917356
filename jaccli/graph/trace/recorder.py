"""Operators as they are dispatched, in single-assignment form.

A ``Recorder`` is a dispatch mode. Every operator below autograd becomes a ``Node`` whose tensors are
``Value``s. Writes in place are turned into new values (see ``aliases``), so that what a later step
needs is never overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.graph.trace.effects import BLIND, RELABELLED, kind_of
from jaccli.graph.trace.functionalize import functional, written_into
from jaccli.graph.trace.ir import CaptureGap, Node, Value, shares, storage_of, swap, tensors_in
from jaccli.graph.trace.recurrent_cells import CELLS
from jaccli.runtime.dispatch import Mode, passed
from jaccli.runtime.kernels import FUSED_OPERATORS

aten = torch.ops.aten


@dataclass(eq=False, slots=True)
class _Entry:
    """A tensor object of the run, what it stands for now, and the view it came by."""

    tensor: Tensor
    value: Value
    parent: _Entry | None = None
    view: tuple[Any, tuple[Any, ...], dict[str, Any], int] | None = None
    epoch: int = 0

    @property
    def root(self) -> _Entry:
        entry = self
        while entry.parent is not None:
            entry = entry.parent
        return entry


class Recorder(Mode):
    """Records while it is entered.

    Attributes:
        nodes: in order of execution.
        guards: values whose content steered the run (a branch), with what was read.
        whole: gradients are wanted by every input, not by the source alone.
        derived: what is recorded now are derivatives, which autograd computes without gradients of its own.
    """

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole, self.derived = whole, False
        self.nodes: list[Node] = []
        self.guards: list[tuple[Value, Any]] = []
        self.entries: dict[int, _Entry] = {}
        self.storages: dict[int, _Entry] = {}
        self.changes: dict[int, int] = {}
        self.lying: dict[int, list[Value]] = {}

    def declare(self, tensor: Tensor, *, active: bool = False) -> Value:
        """An input of the graph."""
        value = Value(tensor, "input", varies=True, active=active)
        self._enter(tensor, value)
        self.lying.setdefault(storage_of(tensor), []).append(value)
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """What a tensor of the run stands for now."""
        entry = self.entries.get(id(tensor))
        if entry is None:
            return self._foreign(tensor)
        return self._current(entry)

    def derive(self) -> None:
        """What is recorded from now on are derivatives, of values that the network may have written over since."""
        self.derived = True
        for value in [v for node in self.nodes for v in (*node.inputs(), *node.outputs)]:
            if id(value.tensor) not in self.entries:
                self._enter(value.tensor, value)

    def _foreign(self, tensor: Tensor) -> Value:
        if self.derived and any(v.varies for v in self.lying.get(storage_of(tensor), ())):
            raise CaptureGap("a derivative rests on a tensor that lies in another's memory")
        known = self.storages.get(storage_of(tensor))
        if known is not None and (self.changes.get(id(known.root)) or known.root.value.kind != "constant"):
            raise CaptureGap("a tensor is shared with another one behind the recording's back")
        value = Value(tensor, "constant")
        self._enter(tensor, value)
        self.lying.setdefault(storage_of(tensor), []).append(value)
        return value

    def _enter(self, tensor: Tensor, value: Value, parent: _Entry | None = None, view: Any = None) -> _Entry:
        entry = _Entry(tensor, value, parent, view)
        self.entries[id(tensor)] = entry
        if parent is None:
            self.storages[storage_of(tensor)] = entry
        else:
            entry.epoch = self.changes.get(id(entry.root), 0)
        return entry

    def _current(self, entry: _Entry) -> Value:
        if entry.parent is None:
            return entry.value
        epoch = self.changes.get(id(entry.root), 0)
        if entry.epoch != epoch:  # something that it is a view of was written to
            assert entry.view is not None
            op, args, kwargs, out = entry.view
            parent = self._current(entry.parent)
            entry.value = self.emit(op, (parent, *args), kwargs)[out]
            entry.epoch = epoch
        return entry.value

    def emit(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Value]:
        """Run an operator on values and record it."""
        tensors, named = swap(args, lambda v: v.tensor), swap(kwargs or {}, lambda v: v.tensor)
        return self._record(op, args, kwargs or {}, op(*tensors, **named), (tensors, named))

    def _record(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, given: tuple[Any, ...]
    ) -> list[Value]:
        """``result`` came of the operator with ``given``: of a value that was written since, ``args`` hold a copy."""
        node = Node(op, args, kwargs)
        inputs = node.inputs()
        varies, active = any(v.varies for v in inputs), any(v.active for v in inputs)
        if op.overloadpacket in BLIND:
            varies = active = False
        elif op.overloadpacket is aten.detach:
            active = False
        elif (active or (self.whole and varies)) and not (self.derived or torch.is_grad_enabled()):
            raise CaptureGap("the model computes without gradients, or by an autograd function of its own")
        outputs = result if isinstance(result, list | tuple) else (result,)
        for position, tensor in enumerate(outputs):
            if isinstance(tensor, Tensor):
                floating = tensor.is_floating_point() or tensor.is_complex()
                value = Value(tensor, "node", node, position, varies, active and floating)
                node.outputs.append(value)
                self.lying.setdefault(storage_of(tensor), []).append(value)
        node.view = shares(tensors_in(given), (v.tensor for v in node.outputs))
        self.nodes.append(node)
        return node.outputs

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = kind_of(op)
        if op is aten.rrelu_with_noise.default and not (*args, *[0.125, 1 / 3, False][len(args) - 2 :])[4]:
            # In eval mode it is a leaky ReLU, though its schema says that it writes noise.
            low, high = (*args, 0.125, 1 / 3)[2:4]
            return self.see(aten.leaky_relu.default, (args[0], (low + high) / 2), {})
        if op in CELLS:
            with self:
                return CELLS[op](*args, **kwargs)
        values, named = swap(args, self.value_of, Tensor), swap(kwargs, self.value_of, Tensor)
        if kind == "write":
            return self._write(op, args, values, kwargs, named)
        result = passed(op, args, kwargs)
        if kind == "read":
            self._guard(values[0], result)
            return result
        if kind == "shape" and any(v.varies for v in _steering(op, values, named)):
            raise CaptureGap(f"the shape of {op.overloadpacket}'s result hangs on the values")
        if kind == "random" and str(op.overloadpacket) not in FUSED_OPERATORS:  # these draw for dropout alone
            raise CaptureGap(f"{op.overloadpacket} draws random numbers")
        if kind == "view" and isinstance(values[0], Value):
            return self._view(op, args, kwargs, values, named, result)
        outputs = iter(self._record(op, values, named, result, (args, kwargs)))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor):
                value = next(outputs)
                if id(tensor) not in self.entries:
                    self._enter(tensor, value)
        return result

    def _view(self, op: Any, args: Any, kwargs: Any, values: Any, named: Any, result: Any) -> Any:
        parent = self.entries[id(args[0])]
        outputs = self._record(op, values, named, result, (args, kwargs))
        for value in outputs:
            view = (op, values[1:], named, value.out)
            if value.tensor is not args[0]:
                self._enter(value.tensor, value, parent, view)
        return result

    def _guard(self, value: Value, result: Any) -> None:
        if not value.varies:
            return
        if value.tensor.is_floating_point() or value.tensor.is_complex():
            raise CaptureGap("the model reads a number out of a tensor (.item()) and computes with it")
        self.guards.append((value, result))

    def _write(self, op: Any, args: Any, values: Any, kwargs: Any, named: Any) -> Any:

        if op.overloadpacket in RELABELLED:
            return self._relabel(op, args, kwargs, named)
        pure = functional(op)
        if pure is None:
            raise CaptureGap(f"{op.overloadpacket} writes in place, and no form of it does not")
        entry = self.entries[id(args[0])]
        (new,) = self.emit(pure, values, named)
        self._keep_old(entry)
        while True:
            root, parent = entry.root, entry.parent
            entry.value = new
            if parent is None:
                break
            assert entry.view is not None
            new = written_into(self.emit, self._current(parent), new, entry.view)
            self.changes[id(root)] = self.changes.get(id(root), 0) + 1
            entry.epoch = self.changes[id(root)]
            entry = parent
        self.changes[id(entry)] = self.changes.get(id(entry), 0) + 1
        below = self.entries[id(args[0])]
        while below.parent is not None:
            below.epoch = self.changes[id(entry)]
            below = below.parent
        op(*args, **kwargs)
        return args[0]

    def _relabel(self, op: Any, args: Any, kwargs: Any, named: Any) -> Any:
        """``transpose_`` and the like: the object becomes a view of what it was."""

        old = self.entries[id(args[0])]
        pure = functional(op) or aten.transpose.int
        before = _Entry(args[0].view_as(args[0]), self._current(old), old.parent, old.view, old.epoch)
        for value in self.lying.get(storage_of(args[0]), ()):
            if value.tensor is args[0]:
                value.tensor = before.tensor
        (new,) = self.emit(pure, (before.value, *args[1:]), named)
        op(*args, **kwargs)
        if old.parent is None:
            self.storages[storage_of(args[0])] = before
            self.changes[id(before)] = self.changes.pop(id(old), 0)
            for entry in self.entries.values():
                if entry.parent is old:
                    entry.parent = before
        view = (pure, args[1:], named, 0)
        self.entries[id(args[0])] = _Entry(args[0], new, before, view, self.changes.get(id(before.root), 0))
        return args[0]

    def _keep_old(self, entry: _Entry) -> None:
        """Values that lie in the memory about to be written get a copy of their own."""
        for value in self.lying.pop(storage_of(entry.tensor), ()):
            value.tensor = value.tensor.clone()


def _steering(op: Any, values: Any, named: Any) -> list[Value]:
    """The values that the result's shape hangs on: of an index its masks, else all."""
    node = Node(op, values, named)
    if op.overloadpacket in (aten.index, aten._unsafe_index):
        return [v for v in node.inputs()[1:] if v.tensor.dtype in (torch.bool, torch.uint8)]
    return node.inputs()
