"""An exported program as data: a graph of named values, and what its inputs and outputs stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from jaccli.models.exported.container_trees import ContainerTree
from jaccli.models.interpretation.last_use import last_uses
from jaccli.models.interpretation.nested import leaves


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the graph, by name."""

    name: str


class _ModelDevice:
    """Stands for the device that the model is on, whatever device it was exported on."""

    __slots__ = ()


MODEL_DEVICE: Final = _ModelDevice()


@dataclass(frozen=True, slots=True)
class StackEntry:
    """One module call that a node is inside of: ``key`` is unique to the call, ``path`` to the module."""

    key: str
    path: str
    type: str


Output = str | None | tuple[str | None, ...]
"""Where a result goes: a name, nowhere, or the names of the elements of a list."""


@dataclass(slots=True)
class ExportedNode:
    """One operator.

    ``args`` and ``kwargs`` hold constants, ``Ref``, ``MODEL_DEVICE``, ``ExportedGraph`` and containers of them.
    ``stack`` is None where the export recorded nothing; the root module is not in it.
    """

    target: str
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Output, ...]
    stack: tuple[StackEntry, ...] | None

    @property
    def schema(self) -> Any:
        """Of its operator; None for arithmetic on numbers and for control flow."""
        return getattr(self.op, "_schema", None)

    def defined(self) -> Iterator[str]:
        """Names of the values that the node computes."""
        for output in self.outputs:
            if isinstance(output, tuple):
                yield from (name for name in output if name is not None)
            elif output is not None:
                yield output

    def used(self) -> Iterator[str]:
        """Names of the values that the node reads, in order, repeats included."""
        yield from refs(self.args)
        yield from refs(self.kwargs)


@dataclass(slots=True)
class ExportedGraph:
    """Operators in order of execution.

    Attributes:
        inputs: names, None where an input is a constant.
        nodes: the operators.
        outputs: what the graph returns, as arguments of a node.
        analysis: the ``GraphAnalysis`` of ``interpreter.analyse``; set once.
    """

    inputs: tuple[str | None, ...]
    nodes: list[ExportedNode]
    outputs: tuple[Any, ...]
    analysis: Any = None


@dataclass(frozen=True, slots=True)
class Extent:
    """One dimension as exported: a fixed ``size``, or a free one with its ``symbol`` and bounds."""

    size: int | None
    symbol: str | None = None
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class InputLeaf:
    """One leaf of the user's arguments: a tensor or number by ``name``, or a constant fixed by the export."""

    name: str | None
    constant: Any = None
    shape: tuple[Extent, ...] | None = None


StateKind = Literal["parameter", "buffer", "constant"]


@dataclass(slots=True)
class ExportedCode:
    """A graph with its calling convention.

    Attributes:
        state: graph input → kind and qualified name of the tensor that goes in there.
        leaves: the user's arguments, flattened, in the order of ``in_tree``.
        results: what ``out_tree`` is filled with.
        mutations: qualified buffer name → the value that the program leaves in it.
        modules: module path → short type name, "" where the archive does not know it.
        argument_names: names of the positional and keyword arguments, if recorded.
    """

    graph: ExportedGraph
    state: dict[str, tuple[StateKind, str]]
    leaves: tuple[InputLeaf, ...]
    in_tree: ContainerTree
    out_tree: ContainerTree
    results: tuple[Any, ...]
    mutations: dict[str, Any]
    modules: dict[str, str]
    argument_names: tuple[str, ...] | None = None


def refs(value: Any) -> Iterator[str]:
    """Names of all values that an argument refers to, in order."""
    return (leaf.name for leaf in leaves(value) if isinstance(leaf, Ref))


def last_reads(graph: ExportedGraph) -> dict[str, int]:
    """Value → the last node that reads it; what the graph returns is read after its last node."""
    return last_uses([*(node.used() for node in graph.nodes), refs(graph.outputs)])


def graphs(node: ExportedNode) -> list[ExportedGraph]:
    """The graphs that a control-flow operator may run."""
    return [arg for arg in node.args if isinstance(arg, ExportedGraph)]


def walk(graph: ExportedGraph) -> Iterator[ExportedNode]:
    """All nodes, those of inner graphs included."""
    for node in graph.nodes:
        yield node
        for inner in graphs(node):
            yield from walk(inner)
