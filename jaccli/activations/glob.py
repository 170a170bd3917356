"""Globs over module paths, and the names nearest to a mistyped one. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from jaccli.errors import UsageError
from jaccli.text import escape

_GLOB = re.compile(r"[*?{]")


def has_glob(text: str) -> bool:
    """Whether a text has a character of a glob."""
    return bool(_GLOB.search(text))


def matches(pattern: str, paths: Collection[str]) -> list[str]:
    """The paths that a glob means, in their order.

    ``*`` and ``?`` stay within one part of a dotted path, ``**`` crosses the dots, ``{a,b}`` are choices. A path that
    is spelled exactly as the pattern is the only match: ``{*}`` is the glob where a module is named ``*``.
    """
    if pattern in paths:
        return [pattern]
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


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like a mistyped one."""
    return escape.nearest(name, names, count, cutoff=0.4)
