"""What the output can show: width, colours, and which characters."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from dataclasses import dataclass
from typing import BinaryIO

from rich.console import Console, RenderableType

from jaccli.sinks.charset import charset_of, encode, is_unicode, shown
from jaccli.sinks.choose import is_stdout
from jaccli.sinks.standard import results, results_charset


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
    size = os.terminal_size((80, 24))
    if "COLUMNS" in os.environ:
        size = shutil.get_terminal_size(size)
    elif terminal:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(out.fileno())
    wanted = terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    color = (wanted or bool(os.environ.get("FORCE_COLOR"))) and not no_color
    charset = charset if charset is not None else charset_of(None, terminal)
    return Style(max(size.columns, 20), max(size.lines, 10), color, charset, terminal or "COLUMNS" in os.environ)


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
