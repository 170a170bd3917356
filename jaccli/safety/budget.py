"""What the pickles of one file may take: opcodes, copies and names, counted while they are read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Final

from jaccli.safety.memory import memory_limit

# Opcodes of a pickle without tensors, for each tensor beside, and in all: some seconds' work.
_OPCODES: Final = 2_000_000
_FOR_EACH_STORAGE: Final = 100
_MOST_OPCODES: Final = 12_000_000
# Bytes of Python objects that an opcode makes, about.
_BYTES_OF_AN_OPCODE: Final = 48
_COPIED_FREELY: Final = 1 << 20
_MOST_NAMES: Final = 10_000


class BudgetError(pickle.UnpicklingError):
    """A pickle takes more than any file of weights does."""


@dataclass
class Budget:
    """Counts what the pickles of a file of ``size`` bytes take, nested ones included.

    A file with more tensors may have more opcodes; what builders copy is at most what the file holds. With a
    limit of memory, fewer opcodes are allowed.

    Raises:
        BudgetError: from each method, once a bound is passed.
    """

    size: int
    opcodes: int = 0
    copied: int = 0
    storages: set[str] = field(default_factory=set)
    names: int = 0

    def spend(self, opcodes: int) -> None:
        """Count opcodes that were run."""
        self.opcodes += opcodes
        stated = memory_limit()
        base = _OPCODES if stated is None else min(_OPCODES, max(stated // _BYTES_OF_AN_OPCODE, 1 << 16))
        if self.opcodes > min(base + _FOR_EACH_STORAGE * len(self.storages), _MOST_OPCODES):
            raise BudgetError(f"more than {self.opcodes} operations for {len(self.storages)} tensors")

    def copy(self, items: int) -> None:
        """Count bytes, or elements, that a builder copies."""
        self.copied += items
        if self.copied > self.size + _COPIED_FREELY:
            raise BudgetError("copies of more than the file holds")

    def name(self) -> None:
        """Count a name of a class or function that was not met before."""
        self.names += 1
        if self.names > _MOST_NAMES:
            raise BudgetError(f"more than {_MOST_NAMES} classes and functions")
