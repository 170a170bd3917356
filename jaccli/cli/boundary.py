"""Where exceptions become exit codes, warnings become lines on standard error, and nothing else happens."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

from jaccli.errors import GateError, JaccliError, JaccliNote, JaccliWarning
from jaccli.sinks.text import inert

STARTED = time.perf_counter()

# Typer ships its own Click or uses the real one, by version; either way this is its root of usage errors.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

INTERRUPTED, PIPE_LEFT, BUG = 130, 141, 70


_command_line: list[str] = []


def command_line() -> str:
    """The command that is running, as one would type it."""
    return shlex.join(["jaccli", *_command_line])


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the contract for their meaning."""
    from jaccli.cli.app import app

    argv = argv or ["--help"]
    _command_line[:] = argv
    quiet = "-q" in argv or "--quiet" in argv
    try:
        with said_on_stderr(quiet):
            code = typer.main.get_command(app).main(args=list(argv), prog_name="jaccli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer makes it an exit code of 1
            return _answer(leaving.__context__)
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        return _answer(error)


def _answer(error: BaseException) -> int:
    if os.environ.get("JACCLI_TRACEBACK") == "1" and not isinstance(error, BrokenPipeError | KeyboardInterrupt):
        traceback.print_exception(error)
    match error:
        case JaccliError():
            _say(str(error))
            return error.exit_code
        case BrokenPipeError():
            # The interpreter flushes standard output once more at exit, and would complain.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_LEFT
        case KeyboardInterrupt():
            _say("interrupted")
            return INTERRUPTED
        case MemoryError():
            _say("out of memory\nset --max-memory, or take fewer samples (--samples 0:8)")
            return 5
        case _ if isinstance(error, _ClickException):
            _say(_usage(error))
            return 2
        case _ if type(error).__name__ == "Abort":
            _say("interrupted")
            return INTERRUPTED
        case _ if type(error).__name__ == "Exit":
            return int(getattr(error, "exit_code", 0))
        case _:
            first = (str(error).splitlines() or [""])[0][:300]
            _say(f"a bug in jaccli: {type(error).__name__}: {first}\nJACCLI_TRACEBACK=1 shows where; please report it")
            return BUG


def _usage(error: Any) -> str:
    text = " ".join(str(error.format_message()).split())
    context = getattr(error, "ctx", None)
    from jaccli.cli.app import app

    names = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
    known = next((word for word in _command_line[:1] if word in names), "")
    command = context.command_path if context is not None else f"jaccli {known}".strip()
    return f"{text}\n'{command} --help' shows how it is used"


def _say(message: str) -> None:
    lines = [inert(line) for line in message.splitlines() if line.strip()][:3]
    _print("error: " + "\n       ".join(lines))


@dataclass
class _Messages:
    """Notes and warnings, each once. Held back until results are near, so that an error stands alone."""

    quiet: bool
    held: list[str] | None = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def show(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        kind = "note" if issubclass(category, JaccliNote) else "warning"
        text = inert(" ".join(str(message).split()))
        if text in self.said or not issubclass(category, JaccliWarning) or (kind == "note" and self.quiet):
            return
        self.said.add(text)
        if self.held is None:
            _print(f"{kind}: {text}")
        else:
            self.held.append(f"{kind}: {text}")

    def release(self) -> None:
        for line in self.held or ():
            _print(line)
        self.held = None


_messages = _Messages(quiet=False)


def release_messages() -> None:
    """Print what was held back, and from now on everything as it comes: results follow."""
    _messages.release()


def _print(line: str) -> None:
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
