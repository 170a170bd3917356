"""Runs a command line: exceptions become exit codes and messages, warnings become lines on standard error."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from jaccli.cli.flags import error_in_flags
from jaccli.cli.messages import said_on_stderr, say, start_command, words
from jaccli.errors import (
    INTERRUPTED,
    PIPE_LEFT,
    TERMINATED,
    InternalError,
    JaccliError,
    ResourceError,
    UsageError,
)
from jaccli.sinks.atomic import terminate_as_exception, write_error
from jaccli.sinks.standard import discard_results, flush_results, prepared_streams, release_stdout
from jaccli.text.escape import inert

# Typer ships its own Click or uses the real one, by version; either way this is its root of usage errors.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_NOT_WRITTEN = (errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the contract for their meaning."""
    try:
        return run_last(argv)
    finally:
        release_stdout()


def run_last(argv: Sequence[str]) -> int:
    """The same for a process that ends with it: what models print while it ends is kept off standard output, too."""
    with prepared_streams(), terminate_as_exception():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    from jaccli.cli.app import app

    argv = argv or ["--help"]
    start_command(argv)
    quiet = "-q" in argv or "--quiet" in argv
    try:
        with said_on_stderr(quiet):
            code = typer.main.get_command(app).main(args=list(argv), prog_name="jaccli", standalone_mode=False)
        flush_results()
        return code if isinstance(code, int) else 0
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer makes it an exit code of 1
            return _exit_code(leaving.__context__)
        if leaving.code == TERMINATED:
            _say("terminated")
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    """The exit code of an exception, and its message on standard error."""
    if os.environ.get("JACCLI_TRACEBACK") == "1" and not isinstance(error, BrokenPipeError | KeyboardInterrupt):
        traceback.print_exception(error)
    match error:
        case JaccliError():
            _say(error_in_flags(error))
            return error.exit_code
        case BrokenPipeError():
            discard_results()
            return PIPE_LEFT
        case OSError() if error.filename is None and error.errno in _NOT_WRITTEN:
            discard_results()
            return _exit_code(write_error(error, "-"))
        case KeyboardInterrupt() | typer.Abort():
            _say("interrupted")
            return INTERRUPTED
        case MemoryError():
            _say("out of memory\nset --max-memory, or take fewer samples (--samples 0:8)")
            return ResourceError.exit_code
        case _ if isinstance(error, _ClickException):
            _say(_usage(error))
            return UsageError.exit_code
        case typer.Exit():
            return int(error.exit_code)
        case _:
            first = (str(error).splitlines() or [""])[0][:300]
            _say(f"a bug in jaccli: {type(error).__name__}: {first}\nJACCLI_TRACEBACK=1 shows where; please report it")
            return InternalError.exit_code


def _usage(error: Any) -> str:
    text = " ".join(str(error.format_message()).split())
    context = getattr(error, "ctx", None)
    from jaccli.cli.app import app

    names = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
    name = next((word for word in words()[:1] if word in names), "")
    command = context.command_path if context is not None else f"jaccli {name}".strip()
    return f"{text}\n'{command} --help' shows how it is used"


def _say(message: str) -> None:
    lines = [inert(line) for line in message.splitlines() if line.strip()][:3]
    say("error: " + "\n       ".join(lines))
