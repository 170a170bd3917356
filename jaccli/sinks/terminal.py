"""What the output can show: width, colours, and whether more than ASCII."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from dataclasses import dataclass
from typing import BinaryIO

from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Style:
    """How to draw; ``width`` and ``height`` in characters. ``fixed``: the width is a real limit."""

    width: int = 80
    height: int = 24
    color: bool = False
    unicode: bool = True
    fixed: bool = True


def style_of(out: BinaryIO, no_color: bool = False) -> Style:
    """The style for a stream. Colours only on a terminal, and not with ``NO_COLOR`` or ``TERM=dumb``.

    ``FORCE_COLOR`` asks for them in a pipe too; ``no_color`` (the flag) wins over it. A pipe has no
    width of its own: 80 columns, or ``COLUMNS``; tables there are as wide as they need.
    """
    terminal = out.isatty()
    size = shutil.get_terminal_size((80, 24))
    if terminal and "COLUMNS" not in os.environ:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(out.fileno())
    wanted = terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    color = (wanted or bool(os.environ.get("FORCE_COLOR"))) and not no_color
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    unicode = not terminal or locale.upper().replace("-", "").endswith("UTF8")
    return Style(max(size.columns, 20), max(size.lines, 10), color, unicode, terminal or "COLUMNS" in os.environ)


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
    shown = text.getvalue()
    if not style.color:
        shown = "".join(line.rstrip() + "\n" for line in shown.splitlines())
    return shown if style.unicode else shown.encode("ascii", "backslashreplace").decode("ascii")
