"""Notes and warnings of a command, on standard error, and the command line that is running."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

from jaccli.cli.flags import in_flags
from jaccli.cli.grouping import grouped
from jaccli.errors import GateError, JaccliNote, JaccliWarning
from jaccli.text.escape import inert

STARTED = time.perf_counter()

_command_line: list[str] = []


def start_command(argv: Sequence[str]) -> None:
    """Remember the words of the command that begins."""
    _command_line[:] = argv


def words() -> list[str]:
    """The words of the command that is running, without ``jaccli``."""
    return list(_command_line)


def command_line() -> str:
    """The command that is running, as one would type it."""
    return shlex.join(["jaccli", *_command_line])


@dataclass
class _Messages:
    """Notes and warnings, each once; those of several layer pairs together.

    Held back until results are near, so that an error stands alone. From then on what is about one of several pairs
    waits for the others, until ``release``.
    """

    quiet: bool
    results_near: bool = False
    pairs: tuple[str, ...] = ()
    postponed: list[str] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def show(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        kind = "note" if issubclass(category, JaccliNote) else "warning"
        text = inert(" ".join(in_flags(_text_of(message)).split()))
        if text in self.said or not issubclass(category, JaccliWarning) or (kind == "note" and self.quiet):
            return
        self.said.add(text)
        if self.results_near and not (len(self.pairs) > 1 and any(pair in text for pair in self.pairs)):
            say(f"{kind}: {text}")
        else:
            self.postponed.append(f"{kind}: {text}")

    def release(self) -> None:
        postponed, self.postponed, self.results_near = self.postponed, [], True
        for line in grouped(postponed, self.pairs):
            say(line)


def _text_of(message: Warning | str) -> str:
    """What the warning was made with: ``str`` of it has lost which words are parameters."""
    return str(message) if isinstance(message, str) or not message.args else message.args[0]


_messages = _Messages(quiet=False)


def expect_pairs(names: Sequence[str]) -> None:
    """The layer pairs of this command, as messages name them."""
    _messages.pairs = tuple(inert(" ".join(name.split())) for name in names)


def release_messages() -> None:
    """Print what was held back, and from now on everything as it comes: results follow.

    What is about one of several pairs is held still, for the others to join it: to be called again after them.
    """
    _messages.release()


def say(line: str) -> None:
    """One line on standard error, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def said_on_stderr(quiet: bool) -> Iterator[None]:
    """Warnings and notes of jaccli go to standard error; ``quiet`` leaves notes out, never warnings."""
    global _messages
    _messages = _Messages(quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", JaccliWarning)
        warnings.showwarning = _messages.show
        try:
            yield
        except (GateError, typer.Exit):
            release_messages()
            raise
        release_messages()
