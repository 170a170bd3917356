"""What a bad file is, and the networks and files that the good ones are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["model", "input", "jacobian"]

ARCH = f"{Path(__file__).with_name('networks.py')}:Plain"


@dataclass(frozen=True)
class Bad:
    """A file that is refused.

    Args:
        name: says what is wrong with it.
        role: what it is given as.
        write: makes it at a path.
        codes: exit codes that are right; 0 where reading it harms nobody.
        slow: counts up to a bound, which takes seconds: not for every run of the tests.
    """

    name: str
    role: Role
    write: Callable[[Path], object]
    codes: tuple[int, ...] = (3, 5)
    slow: bool = False


def bytes_of(data: bytes) -> Callable[[Path], object]:
    """Writes these bytes."""
    return lambda path: path.write_bytes(data)
