"""Whether standard error is a terminal on which a bar or a changing line can be drawn."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from jaccli.sinks.terminal import is_dumb, size_of

if TYPE_CHECKING:
    from rich.console import Console


def live_console(quiet: bool, no_color: bool) -> Console | None:
    """A console for a bar or a line that changes; None in a pipe, with ``--quiet``, ``TERM=dumb`` or ``CI``.

    Rich moves the cursor also where it has no codes to do so with, and leaves blank lines behind.
    """
    if quiet or not sys.stderr.isatty() or is_dumb() or os.environ.get("CI", "") not in ("", "0", "false"):
        return None
    from rich.console import Console

    size = size_of(sys.stderr)
    return Console(stderr=True, no_color=no_color or None, width=size.columns, height=size.lines)
