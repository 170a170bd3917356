"""Limits on the pickles of one file: opcodes, copies and names are counted while they are read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Final

from jaccli.safety.memory import memory_limit

# The most opcodes: of a pickle without tensors, more for each storage, and in all (some seconds' work).
_OPCODES: Final = 2_000_000
_FOR_EACH_STORAGE: Final = 100
_MOST_OPCODES: Final = 12_000_000
# Bytes of Python objects that an opcode makes, roughly.
_BYTES_OF_AN_OPCODE: Final = 48
# Bytes or elements that may be copied whatever the size of the file.
_FREE_COPIES: Final = 1 << 20
_MOST_NAMES: Final = 10_000


class BudgetError(pickle.UnpicklingError):
    """A pickle exceeds a limit that no file of weights comes near."""


@dataclass
class Budget:
    """Counts the work of the pickles in a file of ``size`` bytes, nested ones included.

    A file with more tensors may have more opcodes. Builders may copy about as much as the file holds. With a limit of
    memory, fewer opcodes are allowed.

    Raises:
        BudgetError: from each method, once its limit is exceeded.
    """

    size: int
    opcodes: int = 0
    copied: int = 0
    storages: set[str] = field(default_factory=set)
    names: int = 0

    def spend(self, opcodes: int) -> None:
        """Count opcodes that were run."""
        self.opcodes += opcodes
        limit = memory_limit()
        base = _OPCODES if limit is None else min(_OPCODES, max(limit // _BYTES_OF_AN_OPCODE, 1 << 16))
        if self.opcodes > min(base + _FOR_EACH_STORAGE * len(self.storages), _MOST_OPCODES):
            raise BudgetError(f"more than {self.opcodes} operations for {len(self.storages)} tensors")

    def copy(self, items: int) -> None:
        """Count bytes, or elements, that a builder copies."""
        self.copied += items
        if self.copied > self.size + _FREE_COPIES:
            raise BudgetError("copies of more than the file holds")

    def name(self) -> None:
        """Count the name of one more class or function."""
        self.names += 1
        if self.names > _MOST_NAMES:
            raise BudgetError(f"more than {_MOST_NAMES} classes and functions")
