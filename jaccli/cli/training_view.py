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


@dataclass(frozen=True)
class _Validated:
    """A step with figures of the samples that the best parameters are chosen by; ``seconds`` since the start."""

    step: TrainingStep
    figures: Evaluation
    seconds: float


@dataclass
class View:
    """The steps so far, as a table.

    Args:
        title: above it.
        steps: how many there are to be.
        validated_on: what the samples are that the best parameters are chosen by.
    """

    title: str
    steps: int
    validated_on: str
    validated: list[_Validated] = field(default_factory=list)
    last: TrainingStep | None = None
    started: float = field(default_factory=time.perf_counter)

    def add(self, step: TrainingStep) -> None:
        """One step more."""
        self.last = step
        if step.evaluation is not None:
            self.validated.append(_Validated(step, step.evaluation, self.seconds))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def drawing(self) -> Any:
        """The first validated step, the latest ones, and the present step."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("step", "task loss", "deviation", self.validated_on, "", "seconds"):
            table.add_column(name, justify="left" if not name else "right")
        for one in [*self.validated[:1], *self.validated[1:][-_ROWS:]]:
            mark = "*" if self.last is not None and one.step.number == self.last.best else ""
            table.add_row(*_cells(one.step), f"{one.figures.relative:.4g}", mark, f"{one.seconds:.1f}")
        if self.last is not None and self.last.evaluation is None:
            table.add_row(*_cells(self.last), "", "", f"{self.seconds:.1f}", style="dim")
        return Group(Text(inert(self.title), style="bold"), table, Text("* the best so far; Ctrl-C stops and keeps it"))

    def line(self) -> str:
        """The last validated step, as a line."""
        one = self.validated[-1]
        number, task, deviation = _cells(one.step)
        return (
            f"step {number} of {self.steps}: task loss {task}, deviation {deviation}, "
            f"{self.validated_on} {one.figures.relative:.4g}, {one.seconds:.0f} s"
        )


def _cells(step: TrainingStep) -> tuple[str, str, str]:
    return str(step.number), f"{step.task:.3g}", f"{step.relative:.4g}"


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
            view.add(step)
            if view.seconds - drawn > _REDRAW or not drawn:
                drawn = view.seconds
                live.update(view.drawing(), refresh=True)

        yield show


class _Lines:
    """A line now and then: nothing of a short run, little of a long one."""

    def __init__(self, view: View) -> None:
        self.view, self.next, self.pause = view, _FIRST_LINE, _FIRST_LINE

    def __call__(self, step: TrainingStep) -> None:
        self.view.add(step)
        if step.evaluation is not None and self.view.seconds > self.next:
            self.pause = min(2 * self.pause, _LAST_LINE)
            self.next = self.view.seconds + self.pause
            say(self.view.line())
