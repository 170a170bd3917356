"""NumPy-style indices in the names of activations, parsed and not evaluated. Needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import EllipsisType

from jaccli.errors import UsageError

IndexItem = int | slice | EllipsisType | None | tuple[int, ...]


def opening(text: str) -> int:
    """The position of the ``[`` that belongs to the ``]`` at the end of a text; -1 if there is none."""
    depth = 0
    for position in range(len(text) - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return -1


def parse_index(name: str, inside: str) -> tuple[IndexItem, ...]:
    """The index in the brackets of a layer's name: ints, slices, lists of ints, ``...``, None.

    Raises:
        UsageError: anything else.
    """
    try:
        node = ast.parse(f"x[{inside}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Subscript):
        raise UsageError(
            f"layer {name!r}: [{inside}] is not an index", "expected a NumPy-style index, as [-1] or [:, 0]"
        )
    items: Sequence[ast.expr] = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(_item(name, item) for item in items)


def _item(name: str, node: ast.expr) -> IndexItem:
    if isinstance(node, ast.Slice):
        return slice(*(None if part is None else _integer(name, part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_integer(name, part) for part in node.elts)
    if isinstance(node, ast.Constant) and (node.value is Ellipsis or node.value is None):
        return node.value
    return _integer(name, node)


def _integer(name: str, node: ast.expr) -> int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return sign * node.value
    raise UsageError(f"layer {name!r}: an index holds integers only", "expected ints, slices, lists of ints or '...'")
