"""Values of options, from the text that was typed. Each function gets the text and the flag, which errors name.

They need neither torch nor NumPy.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import TypeVar

from jaccli.errors import UsageError
from jaccli.names import check_one_of, check_share
from jaccli.text.escape import quote

T = TypeVar("T", bound=str)


def seconds(text: str, flag: str) -> float:
    """``60s``, ``5m``, ``500ms``, ``1.5h``, ``60`` → seconds.

    Raises:
        UsageError: not a time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(ms|s|m|min|h)?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(
            f"{flag} {text!r} is not a time", "expected a number with a unit, as 60s, 5m or 1h", f"as {flag} 60s"
        )
    return float(match[1]) * {"ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def whole_number(least: int) -> Callable[[str, str], int]:
    """A whole number from ``least`` on; ``UsageError`` for anything else."""

    def parse(text: str, flag: str) -> int:
        if not _is_count(text, least):
            raise UsageError(
                f"{flag} {text!r} is not understood", f"expected a whole number from {least}", f"as {flag} {least + 1}"
            )
        return int(text)

    return parse


def chunk(text: str, flag: str) -> int | None:
    """``auto``, which is None, or a whole number from 1.

    Raises:
        UsageError: neither.
    """
    if text == "auto":
        return None
    if not _is_count(text, 1):
        raise UsageError(
            f"{flag} {text!r} is not understood", "expected auto or a whole number from 1", f"leave {flag} out for auto"
        )
    return int(text)


def _is_count(text: str, least: int) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None and int(text) >= least


def share(text: str, flag: str) -> float:
    """``1%`` or ``0.01`` → 0.01.

    Raises:
        UsageError: not a share above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(%?)\s*", text.lower())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    check_share(value, f"{flag} {text!r} is not understood", "expected a share, as 1% or 0.01", f"as {flag} 1%")
    return value


def number(least: str = "above 0") -> Callable[[str, str], float]:
    """A finite number ``above 0`` or ``from 0``; ``UsageError`` for anything else."""

    def parse(text: str, flag: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
            raise UsageError(
                f"{flag} {text!r} is not understood", f"expected a number {least}, as 0.5 or 1e-3", f"as {flag} 0.5"
            )
        return value

    return parse


def one_of(known: tuple[T, ...]) -> Callable[[str, str], T]:
    """One of the names; ``UsageError`` for any other."""

    def parse(text: str, flag: str) -> T:
        return check_one_of(flag, text, known)

    return parse


def device(text: str, flag: str) -> str:
    """The name of a device; whether this machine has it is found out when it is used.

    Raises:
        UsageError: not the name of a device.
    """
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", text):
        raise UsageError(
            f"{flag} {text!r} is not known",
            "expected cpu, cuda, cuda:N, mps, xpu or auto",
            "leave --device out for the CPU",
        )
    return text


def check_arch(spec: str) -> None:
    """Refuse an ``--arch`` that names no callable, or a file that does not exist.

    Raises:
        UsageError: it does.
    """
    form = "expected package.module:callable or path/file.py:callable"
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UsageError(f"--arch {quote(spec)} is not the name of a callable", form, "as --arch nets.py:Net")
    if place.endswith(".py") and not os.path.isfile(place):
        raise UsageError(f"--arch {quote(spec)}: no such file {quote(place)}", form, "check the path")
