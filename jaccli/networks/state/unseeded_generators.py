"""Generators that a pass makes without a seed get seeds from a stream that can be put back, so that passes repeat.

Without this the system would seed them anew in every pass. It holds for generators of NumPy and Python, within a pass
and in its thread only. Code that asks the system directly (``os.urandom``, ``secrets``) is left alone, as it may make
keys.
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
    """Seeds, each a hash of the stream's start and of the number of seeds before; each thread has its own count.

    A module that makes a generator while it is imported does not move the count, since it does so in the first pass
    only: its seeds are counted by module, from the beginning in each pass.

    Args:
        start: the same in all threads until ``begin`` is called.
    """

    count = 0
    depth = 0  # of ``fixed_seeds`` in this thread

    def __init__(self, start: int) -> None:
        self.start = start
        self.imports: Counter[str] = Counter()

    def begin(self, seed: int) -> None:
        """Start again, at this seed."""
        self.start, self.count = seed, 0

    @property
    def position(self) -> tuple[int, int]:
        """Start and count."""
        return self.start, self.count

    def put(self, position: tuple[int, int]) -> None:
        """Go on from this position."""
        self.start, self.count = position

    def bits(self, size: int) -> int:
        """The next seed, of ``size`` bits; from the system if this thread is in no pass."""
        if not self.depth:
            return _SYSTEM.getrandbits(size)
        if module := _importing_module():
            self.imports[module] += 1
            number = f"{module} {self.imports[module]}"
        else:
            self.count += 1
            number = f"{self.count}"
        # A hash of a counter, and not a generator: the stream has a position that is two numbers, put back at no cost.
        digest = hashlib.shake_256(f"{self.start}:{number}".encode()).digest((size + 7) // 8)
        return int.from_bytes(digest, "little") % (1 << size)


def _importing_module() -> str | None:
    """The module that this thread is importing within its pass, if any."""
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
    _seed(generator, SEEDS.bits(_PYTHON_BITS) if a is None and SEEDS.depth else a, version)


_seed = random.Random.seed
_lock = threading.Lock()
_replaced: list[Callable[[], None]] = []
_sessions = 0


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Inside, in this thread, generators without a seed are seeded by ``SEEDS``. Cost: some microseconds."""
    global _sessions
    with _lock:
        _sessions += 1
        if _sessions == 1:
            _replace(random.Random, "seed", _python_seed)
            numpy = sys.modules.get("numpy.random.bit_generator")
            if hasattr(numpy, "randbits"):  # ``SeedSequence`` calls it
                _replace(numpy, "randbits", SEEDS.bits)
    # A nested block belongs to the pass around it.
    if not SEEDS.depth:
        SEEDS.imports.clear()
    SEEDS.depth += 1
    try:
        yield
    finally:
        SEEDS.depth -= 1
        with _lock:
            _sessions -= 1
            while not _sessions and _replaced:
                _replaced.pop()()


def _replace(owner: Any, name: str, new: Any) -> None:
    old = getattr(owner, name)
    setattr(owner, name, new)
    _replaced.append(lambda: setattr(owner, name, old))
