"""The names of activations: ``PATH[#CALL][:PORT[.ELEMENT…]][@DIM][[INDEX]]``.

Nothing in here needs torch, so that a mistyped name is answered at once.

    fc1            the output of module fc1             blocks.0:in     its input
    fc1#2          the output of its second call        lstm:out.1.0@1  element 1.0, samples in dimension 1
    fc1[:, 0]      an index into one sample's value     blocks.*        a glob, see ``matches``
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Literal

from jaccli.errors import UsageError
from jaccli.models.quote import nearest as nearest_of

Port = Literal["in", "out"]
IndexItem = int | slice | EllipsisType | None | tuple[int, ...]

INPUT, OUTPUT = "input", "output"
_PORT = re.compile(r"^(?P<path>.*?):(?P<port>in|out)(?P<elements>(?:\.[^.:#@\[\]]+)*)$", re.DOTALL)
_CALL = re.compile(r"^(?P<path>.*)#(?P<call>\d+)$", re.DOTALL)
_DIM = re.compile(r"^(?P<path>.*)@(?P<dim>\d+)$", re.DOTALL)
_GLOB = re.compile(r"[*?{]")


@dataclass(frozen=True)
class Address:
    """One activation, or with a glob in ``path`` a family of them.

    ``call`` None means the only call; ``port`` None means the output of a module, and what the word
    says for ``input`` and ``output``; ``dim`` None means that the samples are in dimension 0;
    ``globbed``: a glob gave it, so it may be left out where it does not fit.
    """

    path: str
    call: int | None = None
    port: Port | None = None
    elements: tuple[str, ...] = ()
    dim: int | None = None
    index: tuple[IndexItem, ...] | None = field(default=None, compare=False)  # a slice has no hash
    suffix: str = ""
    globbed: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.path + self.suffix

    @property
    def is_glob(self) -> bool:
        """Whether the path stands for several layers."""
        return bool(_GLOB.search(self.path))

    @property
    def is_model_input(self) -> bool:
        """The model's own input."""
        return self.path == INPUT

    @property
    def is_model_output(self) -> bool:
        """The model's own output."""
        return self.path == OUTPUT

    def at(self, path: str) -> Address:
        """The same ending on another path."""
        return replace(self, path=path, globbed=True)


def parse_address(text: str, known: Iterable[str] = ()) -> Address:
    """Read a layer name; a name in ``known`` is taken as it is, whatever characters it has.

    Raises:
        UsageError: for an ending that is not of the grammar.
    """
    if text in set(known):
        return Address(text)
    rest, dim, index = _tail(text)
    port: Port | None = None
    elements: tuple[str, ...] = ()
    if match := _PORT.match(rest):
        rest, port = match["path"], "in" if match["port"] == "in" else "out"
        elements = tuple(match["elements"].split(".")[1:])
    call = None
    if match := _CALL.match(rest):
        rest, call = match["path"], int(match["call"])
    _check(text, rest, call, port)
    return Address(rest, call, port, elements, dim, index, suffix=text[len(rest) :])


def _tail(text: str) -> tuple[str, int | None, tuple[IndexItem, ...] | None]:
    """Take ``[INDEX]`` and ``@DIM`` off the end, in either order, each at most once."""
    rest, dim, index = text, None, None
    while True:
        if index is None and rest.endswith("]"):
            start = _opening(rest)
            if start < 0:
                raise UsageError(f"layer {text!r}: a ']' without its '['", _GRAMMAR)
            index = _parse_index(text, rest[start + 1 : -1])
            rest = rest[:start]
        elif dim is None and (match := _DIM.match(rest)):
            rest, dim = match["path"], int(match["dim"])
        else:
            return rest, dim, index


def _opening(text: str) -> int:
    depth = 0
    for position in range(len(text) - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return -1


_GRAMMAR = "expected PATH[#CALL][:in|:out[.ELEMENT…]][@DIM][[INDEX]], as fc1, fc1#2, lstm:out.1.0@1, fc1[:, 0]"


def _check(text: str, path: str, call: int | None, port: Port | None) -> None:
    if not path:
        raise UsageError(f"layer {text!r}: no name before the ending", _GRAMMAR)
    if call == 0:
        raise UsageError(f"layer {text!r}: calls are counted from 1", _GRAMMAR)
    if "[" in path or "]" in path or ":" in path or "#" in path:
        raise UsageError(f"layer {text!r}: not understood after {path.split('[')[0]!r}", _GRAMMAR)
    if path == OUTPUT and port == "in":
        raise UsageError(f"layer {text!r}: the model's output has no :in", "expected output or output:out.ELEMENT")
    if path in (INPUT, OUTPUT) and call is not None:
        raise UsageError(f"layer {text!r}: {path} is there once", "expected it without '#'")


def _parse_index(text: str, inside: str) -> tuple[IndexItem, ...]:
    """Read a NumPy-style index without evaluating anything: ints, slices, lists of ints, ``...``, None."""
    try:
        node = ast.parse(f"x[{inside}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Subscript):
        raise UsageError(
            f"layer {text!r}: [{inside}] is not an index", "expected a NumPy-style index, as [-1] or [:, 0]"
        )
    items: Sequence[ast.expr] = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(_index_item(text, item) for item in items)


def _index_item(text: str, node: ast.expr) -> IndexItem:
    if isinstance(node, ast.Slice):
        return slice(*(None if part is None else _integer(text, part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_integer(text, part) for part in node.elts)
    if isinstance(node, ast.Constant) and (node.value is Ellipsis or node.value is None):
        return node.value
    return _integer(text, node)


def _integer(text: str, node: ast.expr) -> int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return sign * node.value
    raise UsageError(f"layer {text!r}: an index holds integers only", "expected ints, slices, lists of ints or '...'")


def matches(pattern: str, paths: Iterable[str]) -> list[str]:
    """The paths that a glob means, in their order.

    ``*`` and ``?`` stay within one part of a dotted path, ``**`` crosses the dots, ``{a,b}`` are choices.
    """
    expression = re.compile(_translate(pattern), re.DOTALL)
    return [path for path in paths if expression.fullmatch(path)]


def _translate(pattern: str) -> str:
    out, position, depth = [], 0, 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            crosses = pattern.startswith("*", position)
            position += crosses
            out.append(".*" if crosses else "[^.]*")
        elif char == "?":
            out.append("[^.]")
        elif char == "{":
            depth += 1
            out.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
        else:
            out.append("|" if char == "," and depth else re.escape(char))
    if depth:
        raise UsageError(f"layer {pattern!r}: a '{{' without its '}}'", "expected choices as {a,b}")
    return "".join(out)


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names most like a mistyped one."""
    return nearest_of(name, known, count, cutoff=0.4)
