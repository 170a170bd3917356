"""Generators that a pass makes for itself without a seed: the system would seed them otherwise in every pass.

Within a pass, and in its thread alone, such generators of NumPy and Python get their seeds from one stream, which
stands where it is put. What asks the system itself (``os.urandom``, ``secrets``) is never touched: keys are made of it.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PYTHON_BITS = 128
_IMPORT = "importlib._bootstrap"
_SYSTEM = random.SystemRandom()


class SeedStream(threading.local):
    """Seeds, each a hash of where the stream begins and of how many were given; each thread has its own place.

    What a module seeds while it is imported leaves the place as it was, since that happens in the first pass alone: it
    is counted by module, and from the beginning in each pass.

    Args:
        start: the same in all threads until ``begin`` is called.
    """

    given = 0
    holders = 0

    def __init__(self, start: int) -> None:
        self.start = start
        self.imports: Counter[str] = Counter()

    def begin(self, seed: int) -> None:
        """Give the seeds of this seed from now on."""
        self.start, self.given = seed, 0

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands."""
        return self.start, self.given

    def put(self, place: tuple[int, int]) -> None:
        """Stand there."""
        self.start, self.given = place

    def bits(self, count: int) -> int:
        """So many random bits: the next seed, or the system's where this thread is in no pass."""
        if not self.holders:
            return _SYSTEM.getrandbits(count)
        if module := _imported_now():
            self.imports[module] += 1
            number = f"{module} {self.imports[module]}"
        else:
            self.given += 1
            number = f"{self.given}"
        digest = hashlib.shake_256(f"{self.start}:{number}".encode()).digest((count + 7) // 8)
        return int.from_bytes(digest, "little") % (1 << count)


def _imported_now() -> str | None:
    """The module that this thread imports within its pass."""
    frame, inner = sys._getframe(1).f_back, ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(_IMPORT):
            return inner
        if name.startswith("jaccli.") and name != __name__:
            return None
        frame, inner = frame.f_back, name
    return None


SEEDS = SeedStream(_SYSTEM.getrandbits(_PYTHON_BITS))


def _python_seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
    _seed(generator, SEEDS.bits(_PYTHON_BITS) if a is None and SEEDS.holders else a, version)


_seed = random.Random.seed
_lock = threading.Lock()
_replaced: list[Callable[[], None]] = []
_sessions = 0


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Within, in this thread, generators without a seed are seeded by ``SEEDS``. Cost: some microseconds."""
    global _sessions
    with _lock:
        _sessions += 1
        if _sessions == 1:
            _replace(random.Random, "seed", _python_seed)
            numpy = sys.modules.get("numpy.random.bit_generator")
            if hasattr(numpy, "randbits"):  # what ``SeedSequence`` asks
                _replace(numpy, "randbits", SEEDS.bits)
    if not SEEDS.holders:
        SEEDS.imports.clear()
    SEEDS.holders += 1
    try:
        yield
    finally:
        SEEDS.holders -= 1
        with _lock:
            _sessions -= 1
            while not _sessions and _replaced:
                _replaced.pop()()


def _replace(owner: Any, name: str, new: Any) -> None:
    old = getattr(owner, name)
    setattr(owner, name, new)
    _replaced.append(lambda: setattr(owner, name, old))
