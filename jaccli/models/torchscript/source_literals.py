"""TorchScript source without its texts and comments, split as PyTorch's own lexer does.

What a network says in an error is no code, and may name any operator. A text that this lexer sees and PyTorch's does
not would hide code from a search, so whatever is not plainly a whole text is not taken for one.
"""

from __future__ import annotations

import re
from typing import Final

# One or three quotes of either kind; a backslash takes the next character with it, a line end included, and there are
# no prefixes: r"\" is open. A line ends at "\n" alone, for comments too. "# type:" is a token, and what follows is code.
_PARTS: Final = re.compile(
    r'''
    (?P<text>"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""|\'\'\'[^\'\\]*(?:(?:\\.|\'(?!\'\'))[^\'\\]*)*\'\'\'
        |(?!""")"[^"\\\n]*(?:\\.[^"\\\n]*)*"|(?!\'\'\')\'[^\'\\\n]*(?:\\.[^\'\\\n]*)*\')
    |(?P<comment>\#(?!\ type:)[^\n]*)
    |(?P<joined>\\\r?\n)
    |(?P<odd>["\'\\])
    ''',
    re.VERBOSE | re.DOTALL,
)
_STANDS_FOR: Final = {"text": '""', "comment": "", "joined": " "}


def without_literals(source: str) -> str | None:
    """The code of a source on one line: texts empty, comments gone; None where a text or a line does not end."""
    parts: list[str] = []
    start = 0
    for match in _PARTS.finditer(source):
        kind = str(match.lastgroup)
        if kind == "odd":
            return None
        parts += (source[start : match.start()], _STANDS_FOR[kind])
        start = match.end()
    parts.append(source[start:])
    text = re.sub(r"\s+", " ", "".join(parts))  # first, or the next line takes quadratic time on a run of spaces
    return re.sub(r" ?\. ?", ".", text)
