"""Where exceptions become exit codes, warnings become lines on standard error, and nothing else happens."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import typer

from jaccli.errors import JaccliError, JaccliNote, JaccliWarning
from jaccli.sinks.text import inert

STARTED = time.perf_counter()

# Typer ships its own Click or uses the real one, by version; either way this is its root of usage errors.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

INTERRUPTED, PIPE_LEFT, BUG = 130, 141, 70


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the contract for their meaning."""
    from jaccli.cli.app import app

    quiet = "-q" in argv or "--quiet" in argv
    try:
        with said_on_stderr(quiet):
            code = typer.main.get_command(app).main(args=list(argv), prog_name="jaccli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as leaving:
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
    command = context.command_path if context is not None else "jaccli"
    return f"{text}\n'{command} --help' shows how it is used"


def _say(message: str) -> None:
    lines = [inert(line) for line in message.splitlines() if line.strip()][:3]
    with contextlib.suppress(OSError, ValueError):
        print("error: " + "\n       ".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def said_on_stderr(quiet: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Print warnings and notes as they come, each once; ``quiet`` leaves notes out, never warnings."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        kind = "note" if issubclass(category, JaccliNote) else "warning"
        text = inert(" ".join(str(message).split()))
        if text in said or not issubclass(category, JaccliWarning) or (kind == "note" and quiet):
            return
        said.add(text)
        with contextlib.suppress(OSError, ValueError):
            print(f"{kind}: {text}", file=stream or sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", JaccliWarning)
        warnings.showwarning = show
        yield
