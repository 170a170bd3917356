"""What the output can show: width, colours, and which characters."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from rich.console import Console, RenderableType
from rich.text import Text

from jaccli.sinks.charset import charset_of, encode, is_unicode, shown
from jaccli.sinks.choose import is_stdout
from jaccli.sinks.standard import results, results_charset
from jaccli.text.escape import inert

_USUAL, _LEAST = os.terminal_size((80, 24)), os.terminal_size((20, 10))


@dataclass(frozen=True)
class Style:
    """How to draw; ``width`` and ``height`` in characters. ``fixed``: the width is a real limit."""

    width: int = 80
    height: int = 24
    color: bool = False
    charset: str = "utf-8"
    fixed: bool = True

    @property
    def unicode(self) -> bool:
        """Boxes and arrows may be drawn as such."""
        return is_unicode(self.charset)

    def shown(self, text: str) -> str:
        """``text`` with readable substitutes for what the charset lacks: before widths are counted."""
        return shown(text, self.charset)

    def encode(self, text: str) -> bytes:
        """``text`` as it is written, likewise."""
        return encode(text, self.charset)


# Of a pipe, and of a file.
PLAIN = Style()


def style_for(path: str | None, no_color: bool = False) -> Style:
    """The style for an output: standard output's own; a file is like a pipe, and holds UTF-8."""
    if is_stdout(path):
        return style_of(results(), no_color, results_charset())
    return style_of(io.BytesIO(), no_color, "utf-8")


def style_of(out: BinaryIO, no_color: bool = False, charset: str | None = None) -> Style:
    """The style for a stream that shows ``charset``; unless given, what the locale says.

    Colours only on a terminal, and not with ``NO_COLOR`` or ``TERM=dumb``.
    ``FORCE_COLOR`` asks for them in a pipe too; ``no_color`` (the flag) wins over it. A pipe has no
    width of its own: 80 columns, or ``COLUMNS``; tables there are as wide as they need.
    """
    terminal = out.isatty()
    size = size_of(out)
    by_default = terminal and not is_dumb() and not os.environ.get("NO_COLOR")
    color = (by_default or bool(os.environ.get("FORCE_COLOR"))) and not no_color
    charset = charset if charset is not None else charset_of(None, terminal)
    fixed = terminal or _environment_size("COLUMNS") > 0
    return Style(max(size.columns, _LEAST.columns), max(size.lines, _LEAST.lines), color, charset, fixed)


def size_of(stream: Any) -> os.terminal_size:
    """Columns and lines: what ``COLUMNS`` and ``LINES`` say, else the terminal, else 80 x 24. 0 says nothing."""
    size = os.terminal_size((0, 0))
    with contextlib.suppress(OSError, ValueError):  # no terminal, or no descriptor
        size = os.get_terminal_size(stream.fileno())
    columns, lines = _environment_size("COLUMNS") or size.columns, _environment_size("LINES") or size.lines
    return os.terminal_size((columns or _USUAL.columns, lines or _USUAL.lines))


def is_dumb() -> bool:
    """A terminal that only prints: escape codes would be seen, and nothing can be drawn again."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def _environment_size(name: str) -> int:
    """A size by an environment variable; 0 where it is no number above 0."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def heading(text: str, style: Style) -> str:
    """A line above something, in bold where there are colours; lines, where the terminal is narrower."""
    title = Text(style.shown(inert(text)), style="bold", no_wrap=not style.fixed)
    return to_text(title, style if style.fixed else replace(style, width=max(title.cell_len, 1)))


def to_text(drawing: RenderableType, style: Style) -> str:
    """A Rich drawing as text, with escape codes only where the style has colour."""
    text = io.StringIO()
    console = Console(
        file=text,
        width=style.width,
        force_terminal=style.color,
        color_system="auto" if style.color else None,
        no_color=not style.color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(drawing)
    drawn = text.getvalue()
    if not style.color:
        drawn = "".join(line.rstrip() + "\n" for line in drawn.splitlines())
    return style.shown(drawn)
