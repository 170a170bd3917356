"""The single-assignment form of a recorded run: values, and the nodes that compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from jaccli.errors import JaccliError
from jaccli.runtime.torch_errors import is_out_of_memory, reason

Kind = Literal["input", "constant", "node"]


class CaptureGap(Exception):
    """The network does something that cannot be recorded as a graph; the message says what."""


@contextmanager
def gap_where_it_fails() -> Iterator[None]:
    """Whatever goes wrong in here is a ``CaptureGap``: an operator's own rule may raise, and other methods have J.

    The border of the engine: all that is called from outside of ``graph/`` and runs operators is within it.
    Out of memory, and errors that a user can act on, are let through.
    """
    try:
        yield
    except (CaptureGap, JaccliError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CaptureGap(f"{type(error).__name__}: {reason(error)}") from error


@dataclass(eq=False, slots=True)
class Value:
    """One tensor of the graph.

    Args:
        tensor: what it was when recorded.
        kind: handed in, found outside (a weight), or computed by ``node``.
        node: what computed it, as its output number ``out``.
        varies: hangs on an input of the graph.
        active: hangs on the source.
    """

    tensor: Tensor
    kind: Kind = "node"
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

    ``view``: its outputs were memory of its inputs, whatever its schema says.
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
        found: list[Value] = []
        each(self.args, found.append)
        each(tuple(self.kwargs.values()), found.append)
        return found


def each(tree: Any, see: Callable[[Value], Any]) -> None:
    """Call ``see`` on every value in nested lists and tuples."""
    for item in tree:
        if isinstance(item, Value):
            see(item)
        elif isinstance(item, list | tuple):
            each(item, see)


def swap(tree: Any, change: Callable[[Any], Any], kind: type = Value) -> Any:
    """The same nesting with every value, or whatever is of that kind, changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)([swap(item, change, kind) for item in tree])
    if isinstance(tree, dict):
        return {key: swap(item, change, kind) for key, item in tree.items()}
    return tree


def storage_of(tensor: Tensor) -> int:
    """The same for tensors that share memory."""
    return int(tensor.untyped_storage()._cdata)


def shares(given: Iterable[Tensor], made: Iterable[Tensor]) -> bool:
    """Whether any memory of the one is memory of the other."""
    return not {storage_of(t) for t in given}.isdisjoint(storage_of(t) for t in made)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))
