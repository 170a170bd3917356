"""A progress bar on a terminal's standard error, and nowhere else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaccli.cli.console import live_console
from jaccli.methods import METHODS
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization
from jaccli.sinks.charset import is_unicode
from jaccli.sinks.standard import results

# Seconds; shorter work shows no bar.
_DELAY = 1.0


class Bar:
    """A progress bar that counts rows or columns of J, of all pairs and samples. Without a display it draws nothing."""

    def __init__(self, display: Any = None, task: Any = None) -> None:
        self._display, self._task = display, task
        self._batch = 1
        self._block = 1
        # The timer's thread and the command's both start and stop the display. Under the lock, a bar that is hidden
        # just before the timer fires stays hidden.
        self._lock = threading.Lock()
        self._wanted = False
        self._since = time.perf_counter()

    def expect(self, batch: int, decisions: Sequence[Decision], linearizations: Sequence[Linearization]) -> None:
        """Set the total: samples times rows or columns, of all pairs."""
        self._batch, self._block = batch, linearizations[0].linear.batch
        counts = [
            (p.linear.f.n_out if d.method is None or METHODS[d.method].by == "row" else p.linear.f.n_in)
            for d, p in zip(decisions, linearizations, strict=True)
        ]
        if self._display is not None:
            self._display.update(self._task, total=float(sum(counts) * batch))

    def tick(self, done: int) -> None:
        """Some rows or columns of the present block are computed."""
        if self._display is not None:
            self._display.advance(self._task, done * self._block)

    def finished(self, piece: Any) -> None:
        """A block is done; the next may be of another size."""
        stop = piece.start + piece.outcome.matrix.shape[0]
        self._block = min(max(piece.decision.block, 1), max(self._batch - stop, 1))

    @contextlib.contextmanager
    def shown(self) -> Iterator[Bar]:
        """Show the bar ``_DELAY`` seconds after the start of the block, and hide it at its end."""
        timer = threading.Timer(_DELAY, self._show)
        timer.daemon = True
        self._wanted = True
        timer.start()
        try:
            yield self
        finally:
            timer.cancel()
            self._hide()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while results go to the same terminal."""
        if self._display is None or not results().isatty():
            yield
            return
        self._hide()
        yield
        self._wanted = True
        if time.perf_counter() - self._since > _DELAY:
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._display is not None and self._wanted:
                self._display.start()

    def _hide(self) -> None:
        with self._lock:
            self._wanted = False
            if self._display is not None:
                self._display.stop()


@contextlib.contextmanager
def progress(quiet: bool, no_color: bool = False) -> Iterator[Bar]:
    """A bar with elapsed and remaining time; silent where ``live_console`` says so."""
    console = live_console(quiet, no_color)
    if console is None:
        yield Bar()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("Jacobian"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Results do not go through sys.stdout, and the bar is put aside for them; what a model prints stands above it.
    display = Progress(*columns, console=console, transient=True)
    with Bar(display, display.add_task("", total=None)).shown() as bar:
        yield bar


@contextlib.contextmanager
def status(quiet: bool, no_color: bool = False) -> Iterator[Callable[[str], None]]:
    """One line on a terminal's standard error that says what is going on; silent elsewhere."""
    console = live_console(quiet, no_color)
    if console is None:
        yield lambda text: None
        return
    from rich.markup import escape

    with console.status("", spinner="dots" if is_unicode(console.encoding) else "line") as line:
        yield lambda text: line.update(escape(text))
