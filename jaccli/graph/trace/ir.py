"""The single-assignment form of a recorded run: values, and the nodes that compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import Tensor

from jaccli.errors import JaccliError
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory

T = TypeVar("T")
Origin = Literal["input", "constant", "node"]


class CaptureGap(Exception):
    """The network does something that cannot be recorded as a graph; the message says what."""


@contextmanager
def gap_where_it_fails() -> Iterator[None]:
    """Turn every error in here into a ``CaptureGap``: an operator's own rule may raise, and other methods have J.

    All functions that are called from outside of ``graph/`` and run operators are within it. Out of memory, and
    errors that a user can act on, are let through.
    """
    try:
        yield
    except (CaptureGap, JaccliError):
        raise
    except Exception as error:
        reraise_out_of_memory(error)
        raise CaptureGap(f"{type(error).__name__}: {reason(error)}") from error


@dataclass(eq=False, slots=True)
class Value:
    """One tensor of the graph. Its content never changes: what writes in place makes a new value.

    Args:
        tensor: its content at the point of the capture.
        origin: an ``input`` of the graph, a ``constant`` that was found outside (a weight), or computed by a ``node``.
        node: what computed it, as its output number ``out``.
        varies: depends on an input of the graph.
        active: depends on the source, differentiably.
    """

    tensor: Tensor
    origin: Origin = "node"
    node: Node | None = None
    out: int = 0
    varies: bool = False
    active: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)


@dataclass(eq=False, slots=True)
class Node:
    """One operator call; ``Value`` stands in for tensors in its arguments, also inside lists.

    ``view``: its outputs shared memory with its inputs, whatever its schema says.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value] = field(default_factory=list)
    view: bool = False

    @property
    def name(self) -> str:
        """``aten.addmm``."""
        return str(self.op.overloadpacket)

    @property
    def short_name(self) -> str:
        """``addmm``: of torch's own operators, without the namespace."""
        return self.name.removeprefix("aten.")

    def inputs(self) -> list[Value]:
        """The values among the arguments, in order."""
        return items_in((self.args, self.kwargs), Value)


def items_in(tree: Any, kind: type[T]) -> list[T]:
    """All items of a kind in nested lists, tuples and dicts, in order."""
    items: list[T] = []
    _collect(tree, kind, items)
    return items


def _collect(tree: Any, kind: type[T], items: list[T]) -> None:
    if isinstance(tree, kind):
        items.append(tree)
    elif isinstance(tree, list | tuple):
        for item in tree:
            _collect(item, kind, items)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, kind, items)


def swap(tree: Any, change: Callable[[Any], Any], kind: type = Value) -> Any:
    """The same nesting of lists, tuples and dicts with every item of a kind changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)([swap(item, change, kind) for item in tree])
    if isinstance(tree, dict):
        return {key: swap(item, change, kind) for key, item in tree.items()}
    return tree


def storage_of(tensor: Tensor) -> int:
    """A number that tensors of any shape have in common when they share memory.

    It is the address of torch's storage object, not of the data: tensors without elements have one too. Once no tensor
    of the storage lives, another storage may get the number.
    """
    return int(tensor.untyped_storage()._cdata)


def share_memory(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether any tensor of the one, of any shape, shares memory with any of the other."""
    return not {storage_of(t) for t in some}.isdisjoint(storage_of(t) for t in others)


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, of any shape, in order."""
    return items_in(tree, Tensor)
