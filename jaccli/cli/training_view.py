"""Shows a training run as it goes: a live table on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jaccli.cli.console import live_console
from jaccli.cli.messages import say
from jaccli.text.escape import inert
from jaccli.training.loop import Evaluation, TrainingStep

_ROWS = 10
_REDRAW = 0.1  # seconds
# Where there is no terminal: seconds to the first line; to each further one twice as many, up to this.
_FIRST_LINE = 5.0
_LAST_LINE = 60.0


@dataclass
class _Seen:
    number: int
    task: float
    relative: float
    evaluation: Evaluation
    seconds: float


@dataclass
class View:
    """The steps so far, as a table.

    Args:
        title: above it.
        steps: how many there are to be.
        watched: what the samples are that the best parameters are chosen by.
    """

    title: str
    steps: int
    watched: str = "held out"
    seen: list[_Seen] = field(default_factory=list)
    best: int = 0
    now: TrainingStep | None = None
    started: float = field(default_factory=time.perf_counter)

    def take(self, step: TrainingStep) -> None:
        """One step more."""
        self.now, self.best = step, step.best
        if step.evaluation is not None:
            self.seen.append(_Seen(step.number, step.task, step.relative, step.evaluation, self.seconds))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def drawing(self) -> Any:
        """The first look at the samples watched, the last ones, and the present step."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("step", "task loss", "deviation", self.watched, "", "seconds"):
            table.add_column(name, justify="left" if not name else "right")
        for one in [*self.seen[:1], *self.seen[1:][-_ROWS:]]:
            mark = "*" if one.number == self.best else ""
            held = f"{one.evaluation.relative:.4g}"
            table.add_row(str(one.number), f"{one.task:.3g}", f"{one.relative:.4g}", held, mark, f"{one.seconds:.1f}")
        if self.now is not None and self.now.evaluation is None:
            row = (f"{self.now.number}", f"{self.now.task:.3g}", f"{self.now.relative:.4g}", "", "")
            table.add_row(*row, f"{self.seconds:.1f}", style="dim")
        return Group(Text(inert(self.title), style="bold"), table, Text("* the best so far; Ctrl-C stops and keeps it"))

    def line(self) -> str:
        """The last look, as a line."""
        one = self.seen[-1]
        return (
            f"step {one.number} of {self.steps}: task loss {one.task:.3g}, deviation {one.relative:.4g}, "
            f"{self.watched} {one.evaluation.relative:.4g}, {one.seconds:.0f} s"
        )


@contextlib.contextmanager
def watched(view: View, quiet: bool, no_color: bool) -> Iterator[Callable[[TrainingStep], None]]:
    """Called with each step. The table is wiped off in the end: the report follows."""
    if quiet:
        yield lambda step: None
    elif (console := live_console(quiet, no_color)) is not None:
        with _table(view, console) as show:
            yield show
    else:
        yield _Lines(view)


@contextlib.contextmanager
def _table(view: View, console: Any) -> Iterator[Callable[[TrainingStep], None]]:
    from rich.live import Live

    with Live(console=console, transient=True, auto_refresh=False) as live:
        drawn = 0.0

        def show(step: TrainingStep) -> None:
            nonlocal drawn
            view.take(step)
            if view.seconds - drawn > _REDRAW or not drawn:
                drawn = view.seconds
                live.update(view.drawing(), refresh=True)

        yield show


class _Lines:
    """A line now and then: nothing of a short run, little of a long one."""

    def __init__(self, view: View) -> None:
        self.view, self.next, self.pause = view, _FIRST_LINE, _FIRST_LINE

    def __call__(self, step: TrainingStep) -> None:
        self.view.take(step)
        if step.evaluation is not None and self.view.seconds > self.next:
            self.pause = min(2 * self.pause, _LAST_LINE)
            self.next = self.view.seconds + self.pause
            say(self.view.line())
