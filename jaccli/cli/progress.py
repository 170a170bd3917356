"""A progress bar on a terminal's standard error, and nowhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaccli.methods import METHODS
from jaccli.planning import Decision
from jaccli.prepare import Prepared


class Bar:
    """Counts rows and columns of all pairs and samples."""

    def __init__(self, display: Any = None, task: Any = None) -> None:
        self._display, self._task = display, task
        self._batch = 1
        self._block = 1
        self._total = 0.0

    def expect(self, batch: int, decisions: Sequence[Decision], ready: Sequence[Prepared]) -> None:
        """How much there is to do: samples times rows or columns."""
        self._batch, self._block = batch, ready[0].linear.batch
        counts = [
            (p.linear.f.n_out if d.method is None or METHODS[d.method].by == "row" else p.linear.f.n_in)
            for d, p in zip(decisions, ready, strict=True)
        ]
        self._total = float(sum(counts) * batch)
        if self._display is not None:
            self._display.update(self._task, total=self._total)

    def tick(self, done: int) -> None:
        """Some rows or columns of the present block are there."""
        if self._display is not None:
            self._display.advance(self._task, done * self._block)

    def finished(self, piece: Any) -> None:
        """A block is done; the next may be of another size."""
        done = piece.start + piece.outcome.matrix.shape[0]
        self._block = min(max(piece.decision.block, 1), max(self._batch - done, 1))


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Bar]:
    """A bar with elapsed and remaining time; silent in a pipe and with ``--quiet``."""
    if quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("Jacobian"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Bar(display, display.add_task("", total=None))


@contextlib.contextmanager
def status(quiet: bool) -> Iterator[Callable[[str], None]]:
    """One line on a terminal's standard error that says what is going on; silent elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("") as line:
        yield lambda text: line.update(escape(text))
