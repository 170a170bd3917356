"""How deep TorchScript source is nested, and how much of it there is.

Torch's compiler calls itself once a level, until the stack is full, and takes some 30 µs a token.
"""

from __future__ import annotations

import re
from typing import Final

_MAX_BRACKETS: Final = 1000
_MAX_CHAIN: Final = 3000
_MAX_INDENT: Final = 1000
_MAX_ELIFS: Final = 1000
_MAX_EMPTY: Final = 1000  # lines without code in a row: torch's lexer calls itself for each

_INDENT: Final = re.compile(rf"^[ \t]{{{_MAX_INDENT}}}", re.MULTILINE)
_TOKEN: Final = re.compile(
    r"""
    (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<comment>\#[^\n]*)
    |(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<comma>,)|(?P<line>\n)
    |(?P<chain>[-+*/%&|^~@<>=!.:]|\b(?:if|else|and|or|not|in|is|lambda)\b)
    """,
    re.VERBOSE,
)


def too_nested(source: str) -> bool:
    """Whether brackets, operators in one expression, blocks or ``elif`` go deeper than any compiler's output.

    Linear; some 0.3 µs a token.
    """
    if _empty_lines(source) > _MAX_EMPTY or _INDENT.search(source) or len(re.findall(r"\belif\b", source)) > _MAX_ELIFS:
        return True
    chains = [0]  # operators since the last comma, at each level of brackets
    for match in _TOKEN.finditer(source):
        kind = match.lastgroup
        if kind in ("chain", "open"):
            chains[-1] += 1
            if chains[-1] > _MAX_CHAIN:
                return True
        if kind == "open":
            chains.append(0)
            if len(chains) > _MAX_BRACKETS:
                return True
        elif kind == "close" and len(chains) > 1:
            chains.pop()
        elif kind == "comma" or (kind == "line" and len(chains) == 1):
            chains[-1] = 0
    return False


def size_of(source: str) -> int:
    """Tokens in it, about: those that separate others."""
    return sum(map(source.count, ",\n([{=:"))


def _empty_lines(source: str) -> int:
    """The longest run of lines that hold nothing, or a comment."""
    longest = run = 0
    for line in source.split("\n"):
        code = line.strip(" \t\r\f\v\\")
        run = run + 1 if not code or code[0] == "#" else 0
        longest = max(longest, run)
    return longest
