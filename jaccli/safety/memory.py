"""Limits on memory: what is available, what the user allows, and how much larger content may be than its file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from jaccli.errors import RefusedError, ResourceError
from jaccli.text.quantities import human

# Content of this size is read with any limit: the limit is meant for results, and a reader needs some memory.
_ALWAYS_ALLOWED: Final = 1 << 24
# Content of at most this size may be in a file of any size; larger content may be larger by this factor.
_ANY_RATIO: Final = 1 << 30
_MOST_RATIO: Final = 200

_limit: ContextVar[int | None] = ContextVar("memory_limit", default=None)


@contextlib.contextmanager
def limited_memory(n_bytes: int | None) -> Iterator[None]:
    """Inside, unpacked content of a file may take ``n_bytes`` (the option ``max_memory``); None: what is available."""
    token = _limit.set(n_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


def memory_limit() -> int | None:
    """The limit in bytes that ``limited_memory`` has set, if any."""
    return _limit.get()


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, on the machine and in its control group; None: unknown."""
    sizes = [size for size in (_machine(), _control_group()) if size is not None]
    return min(sizes) if sizes else None


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse to allocate ``n_bytes`` for ``what`` if they are not available.

    Raises:
        ResourceError: ``what`` needs more than is available.
    """
    available = available_memory()
    if available is not None and n_bytes > available:
        raise ResourceError(
            f"{what} needs {human(n_bytes)} of memory",
            f"available: {human(available)}",
            "take fewer samples, or use a larger machine",
        )


def require_unpacked(n_bytes: int, stored: int, what: str, most: int = _MOST_RATIO) -> None:
    """Refuse content that is too large unpacked, or far larger than in its file: a small file may unpack to any size.

    Args:
        n_bytes: size of the content in memory.
        stored: its size in the file.
        what: the content, for the message.
        most: the largest ratio of the two, beyond a GiB.

    Raises:
        ResourceError: it is more than ``limited_memory`` allows, or than is available.
        RefusedError: it is more than a GiB, and more than ``most`` times its size in the file.
    """
    limit = _limit.get()
    if limit is not None and n_bytes > max(limit, stored, _ALWAYS_ALLOWED):
        raise ResourceError(
            f"{what} unfolds to {human(n_bytes)} from {human(stored)}",
            f"allowed: {human(limit)}",
            "allow more memory, or take fewer samples",
        )
    require_memory(n_bytes, what)
    if n_bytes > _ANY_RATIO and n_bytes > most * stored:
        raise RefusedError(
            f"{what} unfolds to {human(n_bytes)} from {human(stored)}",
            f"expected at most {most} times its size in the file",
            "take fewer samples, or save it without compression",
        )


def _machine() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _control_group() -> int | None:
    """Limit minus use of cgroup v2, at the root that a container sees; file pages that can be dropped do not count."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            most = int(limit.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as current:
            used = int(current.read())
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as lines:
            counts = dict(line.split() for line in lines)
        return max(most - used + int(counts.get("inactive_file", 0)), 0)
    except (OSError, ValueError):  # "max", which is no number, stands for no limit
        return None
