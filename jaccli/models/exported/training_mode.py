"""Operators that were exported in training mode: they mix samples or draw random numbers."""

from __future__ import annotations

from jaccli.models.exported.code import ExportedGraph, ExportedNode, walk
from jaccli.models.exported.inplace_writes import named_arguments
from jaccli.models.interpretation.training_flags import draws_numbers, has_running_statistics, training_flag
from jaccli.text.escape import quote


def training_mode_warnings(graph: ExportedGraph) -> list[str]:
    """Short messages, one for each operator that was exported in training mode."""
    return list(dict.fromkeys(_message(node) for node in walk(graph) if _in_training(node)))


def draws_by_mode(graph: ExportedGraph) -> bool:
    """Whether an operator draws that was exported in training mode; ``training_mode_warnings`` names it."""
    return any(_in_training(node) and not has_running_statistics(node.schema) for node in walk(graph))


def draws_random_numbers(graph: ExportedGraph) -> bool:
    """Whether a run moves a random generator."""
    return any(_in_training(node) or draws_numbers(node.op) for node in walk(graph))


def _in_training(node: ExportedNode) -> bool:
    flag = None if node.schema is None else training_flag(node.schema)
    if flag is None:
        return False
    args = named_arguments(node)
    # Dropout with probability 0, and recurrent layers without dropout between them, do the same in both modes.
    return args.get("p") != 0 and args.get("dropout") != 0 and bool(args.get(node.schema.arguments[flag].name))


def _message(node: ExportedNode) -> str:
    where = f" in {quote(node.stack[-1].path)}" if node.stack else ""
    if has_running_statistics(node.schema):
        return f"BatchNorm{where} was exported in training mode: samples of a batch depend on each other"
    return f"{node.schema.name.split('::')[1]}{where} was exported in training mode: it draws random numbers"
