"""Which value each tensor object of a run stands for, while operators write in place and through views.

The problem. A model may write ``y[:, 0] = …`` and read ``y``, or another view of it, later on. In the graph a value
never changes, so that a write makes a *new* value, and from then on every tensor object whose memory was written must
stand for the new content, while nodes recorded before keep the old one.

The way. Every tensor object has an *entry*: the value that it stands for, and, if it came by a view operator, the
entry of its base and the view. Entries without a base are *roots*. Let a root r, views a = r[0] and b = r[1], and a
view c = a.t(). A write to c with the new content v is done in three steps:

    1. values whose tensors lie in the memory of r are given a copy of their tensor, so that they keep the old content
    2. going up from c, each base gets a new value by the inverse of the view:
       c ← v, a ← v.t(), r ← select_scatter(r, a)
    3. r's count of writes goes up by one; c, a and r are noted to have seen it

b did not see the write: its value is stale. It is not renewed until it is read; then its view is taken again, of the
current value of its base, as one more node. A view that nobody reads costs no node.

Dictionaries and what keeps their keys valid. Both ``id(tensor)`` and the number of a storage are used again once
the tensor is dead, so that whatever is a key is kept alive by the value beside it, for as long as the table lives:

    _entries           id(tensor object)  → its entry, which holds the tensor
    _roots             storage            → the entry of the root that lies in it, which holds a tensor in that storage
    _values_in         storage            → the values whose ``tensor`` lies in it: they hold tensors in that storage
    _of_several_constants   storages      in which several roots lie that are constants, kept alive by their entries

Invariants, each with a test of its own in ``tests/graph/trace/test_recorder.py``:

    I1  A tensor object has one entry, for good: ``_entries[id(t)].tensor is t``.
    I2  The content of a value never changes: ``value.tensor`` is what it was when recorded, whatever is written later.
    I3  After any operator, ``value_of(t).tensor`` has the shape and content of ``t``, for every tensor t of the run.
    I4  An entry is current if and only if it has seen all writes of its root; reading it makes it current.
    I5  No node writes in place, and every input of a node is an input of the graph, a constant, or made before.
    I6  Memory that is shared with a tensor that the table does not know is never assumed constant once it was
        written to, or varies: reading it is a gap. Memory of several constants is never written to: that is a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from jaccli.graph.trace.functionalize import Emit, View, written_into
from jaccli.graph.trace.ir import CaptureGap, Value, storage_of


@dataclass(eq=False, slots=True)
class Entry:
    """What one tensor object stands for.

    Args:
        tensor: the object, kept alive.
        value: its content when ``writes`` writes had been made to its root.
        base: the entry that it is a view of; None for a root.
        view: how it was taken of the base.
        writes: of a root, how many writes its memory had, through whichever view; of a view, how many it has seen.
    """

    tensor: Tensor
    value: Value
    base: Entry | None = None
    view: View | None = None
    writes: int = 0

    def chain(self) -> list[Entry]:
        """Itself, its base, … up to the root."""
        return [self, *(self.base.chain() if self.base is not None else ())]

    @property
    def root(self) -> Entry:
        """The end of the chain."""
        return self if self.base is None else self.base.root


class TensorTable:
    """The values of all tensor objects of a run; see the module's docstring.

    Args:
        emit: runs an operator on values and records it.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._entries: dict[int, Entry] = {}
        self._roots: dict[int, Entry] = {}
        self._values_in: dict[int, list[Value]] = {}
        self._of_several_constants: set[int] = set()

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor of any shape has an entry."""
        return id(tensor) in self._entries

    def entry(self, tensor: Tensor) -> Entry:
        """Of a tensor, of any shape, that has one."""
        return self._entries[id(tensor)]

    def enter(self, tensor: Tensor, value: Value, base: Entry | None = None, view: View | None = None) -> None:
        """A tensor object without an entry stands for a value of its shape, perhaps as a view of ``base``."""
        entry = Entry(tensor, value, base, view, base.root.writes if base is not None else 0)
        self._entries[id(tensor)] = entry
        if base is None:
            self._roots[storage_of(tensor)] = entry

    def add_value(self, value: Value) -> None:
        """A value whose tensor lies in memory that may be written to (I2)."""
        self._values_in.setdefault(storage_of(value.tensor), []).append(value)

    def varies_beside(self, tensor: Tensor) -> bool:
        """Whether a value that varies lies in the memory of a tensor, whatever its shape."""
        return any(v.varies for v in self._values_in.get(storage_of(tensor), ()))

    def value_of(self, tensor: Tensor) -> Value:
        """What a tensor stands for now, a value of its shape; one that was never seen is a constant.

        Raises:
            CaptureGap: its memory belongs to another tensor, and is not constant (I6).
        """
        entry = self._entries.get(id(tensor))
        if entry is not None:
            return self._current(entry)
        # A tensor of its own may lie in memory of another one (tied weights). As long as nothing writes there, each can
        # be a constant by itself.
        neighbour = self._roots.get(storage_of(tensor))
        if neighbour is not None and (neighbour.writes or neighbour.value.origin != "constant"):
            raise CaptureGap("a tensor is shared with another one behind the recording's back")
        if neighbour is not None:
            self._of_several_constants.add(storage_of(tensor))
        value = Value(tensor, "constant")
        self.enter(tensor, value)
        self.add_value(value)
        return value

    def _current(self, entry: Entry) -> Value:
        """The entry's value, its view taken again where its root was written to since (I4)."""
        # The base first: it may be a view that did not see the write either.
        if entry.base is not None and entry.view is not None and entry.writes != (writes := entry.root.writes):
            base, view = self._current(entry.base), entry.view
            entry.value = self._emit(view.op, (base, *view.args), view.kwargs)[view.out]
            entry.writes = writes
        return entry.value

    def write(self, tensor: Tensor, new: Value) -> None:
        """A tensor's memory is about to be overwritten, and it stands for ``new``, of its shape, from then on.

        Raises:
            CaptureGap: it is a view by an operator without an inverse, or its memory is that of several constants (I6).
        """
        if storage_of(tensor) in self._of_several_constants:
            raise CaptureGap("a write to memory that is shared behind the recording's back")
        # A write through a view is one write of the root, whatever the length of the chain: all entries of the chain
        # get the same count, and every other view of the root is stale.
        chain = self.entry(tensor).chain()
        self._keep_contents(tensor)
        # The base is read before it is renewed: the new part is put into its content before the write.
        for entry, base in pairwise(chain):
            entry.value = new
            assert entry.view is not None
            new = written_into(self._emit, self._current(base), new, entry.view)
        chain[-1].value = new
        writes = chain[-1].writes + 1
        for entry in chain:
            entry.writes = writes

    def _keep_contents(self, tensor: Tensor) -> None:
        """Copies for the values that lie in the memory of a tensor of any shape (I2)."""
        # The copies lie in memory that no tensor of the run can reach, so that they are not entered again.
        for value in self._values_in.pop(storage_of(tensor), ()):
            value.tensor = value.tensor.clone()

    def relabel(self, tensor: Tensor) -> Entry:
        """``tensor.transpose_()`` is about to change the object's shape, not its memory: an entry for what it was.

        Another object, which looks at the same memory as before, takes its place: as a root, and as base of the views.
        """
        old = self.entry(tensor)
        before = Entry(tensor.view_as(tensor), self._current(old), old.base, old.view, old.writes)
        for value in self._values_in.get(storage_of(tensor), ()):
            if value.tensor is tensor:
                value.tensor = before.tensor
        for entry in self._entries.values():
            if entry.base is old:
                entry.base = before
        if old.base is None:
            self._roots[storage_of(tensor)] = before
        return before
