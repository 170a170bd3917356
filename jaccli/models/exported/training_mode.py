"""Operators that were exported in training mode: they mix samples or draw random numbers."""

from __future__ import annotations

from typing import Final

import torch

from jaccli.models.exported.code import ExportedGraph, ExportedNode, walk
from jaccli.models.exported.inplace_writes import named_arguments
from jaccli.models.interpretation.overloads import draws_numbers
from jaccli.text.escape import quote

_BATCH_NORMS: Final = (
    *("batch_norm", "native_batch_norm", "cudnn_batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_functional"),
)
_DROPOUTS: Final = (
    "dropout",
    "dropout_",
    "native_dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
)
# Operator → the argument that says whether it runs in training mode.
_TRAINING_FLAGS: Final = {
    **dict.fromkeys((*_BATCH_NORMS, "rrelu", "rrelu_with_noise"), "training"),
    **dict.fromkeys((*_DROPOUTS, "lstm", "gru"), "train"),
    "scaled_dot_product_attention": "dropout_p",
}
_RECURRENT: Final = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def training_mode_warnings(graph: ExportedGraph) -> list[str]:
    """Short messages, one for each operator that was exported in training mode."""
    return list(dict.fromkeys(_message(node) for node in walk(graph) if _in_training(node)))


def draws_by_mode(graph: ExportedGraph) -> bool:
    """Whether an operator draws that was exported in training mode; ``training_mode_warnings`` names it."""
    return any(_in_training(node) and "batch_norm" not in _name(node) for node in walk(graph))


def draws_random_numbers(graph: ExportedGraph) -> bool:
    """Whether a run moves a random generator."""
    return any(_in_training(node) or draws_numbers(node.op) for node in walk(graph))


def _name(node: ExportedNode) -> str:
    return node.op._schema.name.split("::")[1] if isinstance(node.op, torch._ops.OpOverload) else ""


def _in_training(node: ExportedNode) -> bool:
    name = _name(node)
    flag = _TRAINING_FLAGS.get(name)
    if flag is None:
        return False
    args = named_arguments(node)
    if args.get("p") == 0 or (name in _RECURRENT and not args.get("dropout")):
        return False
    return bool(args.get(flag))


def _message(node: ExportedNode) -> str:
    where = f" in {quote(node.stack[-1].path)}" if node.stack else ""
    if "batch_norm" in _name(node):
        return f"BatchNorm{where} was exported in training mode: samples of a batch depend on each other"
    return f"{_name(node)}{where} was exported in training mode: it draws random numbers"
