"""Module calls in a graph, restored from the module stack that the export left on every node.

An export keeps operators, not calls. A call is a run of consecutive nodes that were traced inside it.
Its input are the tensors that come from outside, in order of first use, without the model's own
parameters, buffers and constants; its output are the tensors made inside and used outside, in the order
in which they are made. So an argument that a module does not use is missing, one used twice occurs
once, and a module that left no node (``Identity``) is never called. Recurrent and attention modules of
torch are known, and give the tuples that they give outside of an export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from jaccli.models.exported.code import ExportedGraph, ExportedNode, StackEntry, graphs, last_reads
from jaccli.models.interpretation.nested import Nesting, leaves

_RECURRENT: Final = ("torch.nn.modules.rnn.LSTM", "torch.nn.modules.rnn.GRU", "torch.nn.modules.rnn.RNN")
_RECURRENT_OPERATORS: Final = (["lstm"], ["gru"], ["rnn_tanh"], ["rnn_relu"])
_ATTENTION: Final = "torch.nn.modules.activation.MultiheadAttention"

ModuleStack = tuple[StackEntry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCall:
    """One call: its nodes are ``first`` to ``last``, inclusive."""

    path: str
    first: int
    last: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layout: Nesting = None
    """Of the output, for modules whose output is known to be nested; otherwise None."""


def find_calls(graph: ExportedGraph, outer: ModuleStack, state: frozenset[str]) -> list[ModuleCall]:
    """All module calls of one graph, outer ones before inner ones.

    Args:
        graph: the graph; control-flow graphs inside it are looked at on their own.
        outer: the calls that the whole graph is inside of.
        state: names that hold parameters, buffers, constants, or values made of nothing else.
    """
    chains = [_strip(chain, outer) for chain in _chains(graph.nodes)]
    last_read = last_reads(graph)
    deepest = max((len(chain) for chain in chains), default=0)
    return [
        _call(graph.nodes, chains[run[0]][depth - 1], run, last_read, state)
        for depth in range(1, deepest + 1)
        for run in _runs(chains, depth)
    ]


def _chains(nodes: list[ExportedNode]) -> list[ModuleStack]:
    """The stack of every node. One without a record belongs to what its neighbours have in common."""
    stacks = [node.stack for node in nodes]
    # ``following[i]`` is the next recorded stack from node i on: passes of the export insert nodes without one.
    following: list[ModuleStack] = [()] * len(nodes)
    upcoming: ModuleStack = ()
    for index in range(len(nodes) - 1, -1, -1):
        upcoming = following[index] = stacks[index] if stacks[index] is not None else upcoming  # type: ignore[assignment]
    chains: list[ModuleStack] = []
    previous: ModuleStack = ()
    for stack, coming in zip(stacks, following, strict=True):
        previous_or_common = stack if stack is not None else _common(previous, coming)
        chains.append(previous_or_common)
        previous = previous_or_common
    return chains


def _common(left: ModuleStack, right: ModuleStack) -> ModuleStack:
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    return left[:shared]


def _strip(chain: ModuleStack, outer: ModuleStack) -> ModuleStack:
    """The part of a stack that lies inside this graph."""
    keys = {entry.key for entry in outer}
    return tuple(entry for entry in chain if entry.key not in keys)


def _runs(chains: list[ModuleStack], depth: int) -> list[tuple[int, int]]:
    """First and last index of the nodes that share the same ``depth`` outermost calls."""
    runs: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(chains) + 1):
        ended = index == len(chains) or _keys(chains[index], depth) != _keys(chains[start], depth)
        if ended:
            if len(chains[start]) >= depth:
                runs.append((start, index - 1))
            start = index
    return runs


def _keys(chain: ModuleStack, depth: int) -> tuple[str, ...]:
    return tuple(entry.key for entry in chain[:depth])


def _call(
    nodes: list[ExportedNode],
    entry: StackEntry,
    run: tuple[int, int],
    last_read: dict[str, int],
    state: frozenset[str],
) -> ModuleCall:
    first, last = run
    inside = nodes[first : last + 1]
    defined = list(dict.fromkeys(name for node in inside for name in node.defined()))
    inner = set(defined)
    used = dict.fromkeys(name for node in inside for name in node.used())
    inputs = tuple(name for name in used if name not in inner and name not in state)
    outputs = tuple(name for name in defined if last_read.get(name, -1) > last)
    layout = _known_layout(entry.type, inside, outputs)
    if layout is not None:
        in_layout = [name for name in leaves(layout) if name is not None]
        outputs = (*(name for name in outputs if name not in in_layout), *dict.fromkeys(in_layout))
    return ModuleCall(entry.path, first, last, inputs, outputs or tuple(inside[-1].defined()), layout)


def _known_layout(kind: str, inside: list[ExportedNode], outputs: tuple[str, ...]) -> Any:
    """What ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and attention return: an export drops what nobody uses."""
    if kind in _RECURRENT and (defined := _recurrent(inside)) is not None and set(outputs) <= set(defined):
        return (defined[0], tuple(defined[1:])) if kind.endswith("LSTM") else defined
    if kind == _ATTENTION and len(outputs) in (1, 2):
        return (*outputs, None)[:2]
    return None


def _recurrent(inside: list[ExportedNode]) -> tuple[str, ...] | None:
    """The results of the one recurrent operator in a module, if they leave the module as they are."""
    operators = [node for node in inside if node.target.split(".")[1:2] in _RECURRENT_OPERATORS]
    if len(operators) != 1:
        return None
    defined = tuple(operators[0].defined())
    read = {name for node in inside for name in node.used()}
    return defined if len(defined) == len(operators[0].outputs) > 1 and not read & set(defined) else None


def state_names(graph: ExportedGraph, state: frozenset[str]) -> frozenset[str]:
    """``state`` and every value that is made of nothing else."""
    names = set(state)
    for node in graph.nodes:
        used = list(node.used())
        if used and all(name in names for name in used) and not graphs(node):
            names.update(node.defined())
    return frozenset(names)
