"""What can go wrong, one class for each exit code.

    JaccliError
    ├── GateError          1   a gate or a check failed
    ├── UsageError         2   wrong flags, names or shapes
    ├── RefusedError       3   model or input refused or unreadable
    ├── UnsupportedError   4   the operation is not supported for this model
    ├── ResourceError      5   not enough memory, disk or time
    ├── WorkerError        6   a worker process died; reserved, nothing starts workers
    └── InternalError     70   a bug in jaccli

Classes that tell callers inside the package more: ``TooLarge`` (a ``ResourceError``), ``MisplacedError``
(``UsageError``) and ``NowhereError`` (``UnsupportedError``).

What follows never leaves jaccli. A gap is what a method or the engine cannot do, so that another one takes over; the
others end a pass or a search early.

    Exception
    ├── MethodGap, CaptureGap, CompileGap      gaps
    ├── SamplesMixed, TooMuchWork              a search for zeros of J ends
    ├── LeftTorch, NoSecondDerivative          NotImplementedError: torch's own way to say so
    ├── NoGraph                                RuntimeError: a layer is called where nothing is recorded
    ├── DamagedError, BudgetError              ValueError, UnpicklingError: of a file that is read
    └── Busy                                   RuntimeError: a time that does not count
    BaseException
    └── StopRun, ParameterWritten, TimeIsUp    pass through a model's ``except Exception``

Two warnings accompany results: ``JaccliWarning`` says that a number is doubtful, its subclass
``JaccliNote`` only says what was done (a prefix stripped, a fallback taken).
"""

from __future__ import annotations

import sys
import warnings
from typing import ClassVar

# Exit codes that are no errors: 128 and the number of the signal that would have ended the process, as shells count.
INTERRUPTED, PIPE_LEFT, TERMINATED = 130, 141, 143


class JaccliError(Exception):
    """An error of at most three lines: what is wrong, what was expected, what to do.

    Args:
        given: what is wrong, naming the file, flag or parameter.
        expected: what would have been right; may be empty.
        remedy: what the user can do about it; may be empty.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, given: str, expected: str = "", remedy: str = "") -> None:
        self.given, self.expected, self.remedy = given, expected, remedy
        super().__init__("\n".join(part for part in (given, expected, remedy) if part))


class TimeIsUp(BaseException):
    """The time limit of a command is over.

    Not an ``Exception``: code that tries a method, and another one when it fails, must not catch it.
    """


class GateError(JaccliError):
    """A gate such as ``--fail-above`` or a check failed."""

    exit_code = 1


class UsageError(JaccliError):
    """A flag, name or shape that is not valid."""

    exit_code = 2


class RefusedError(JaccliError):
    """A model or an input that is unreadable, unsafe or does not fit."""

    exit_code = 3


class UnsupportedError(JaccliError):
    """Something this model, method or layer pair cannot do."""

    exit_code = 4


class ResourceError(JaccliError):
    """Not enough memory, disk or time."""

    exit_code = 5


class WorkerError(JaccliError):
    """A worker process died. Nothing starts any today: the class keeps its exit code for what may."""

    exit_code = 6


class InternalError(JaccliError):
    """A bug in jaccli."""

    exit_code = 70


class JaccliWarning(UserWarning):
    """A number that follows may not be what it seems."""


class JaccliNote(JaccliWarning):
    """Something jaccli did that a reader may want to know; numbers are not in doubt."""


def warn(message: str) -> None:
    """Say that a number is doubtful."""
    warnings.warn(message, JaccliWarning, stacklevel=_caller())


def note(message: str) -> None:
    """Say what was done."""
    warnings.warn(message, JaccliNote, stacklevel=_caller())


def _caller() -> int:
    """The ``stacklevel`` of the first frame outside of this package: the line of the user's own code."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level
