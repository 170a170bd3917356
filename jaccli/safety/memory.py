"""How much memory there is, so that a small file cannot ask for all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from jaccli.errors import RefusedError, ResourceError

# So much is read whatever is allowed: the limit is about results, and a reader needs some room.
_LITTLE: Final = 1 << 24
# Content may unfold to so many bytes whatever its file's size, and further by this factor.
_FREELY: Final = 1 << 30
_MOST_FOLDED: Final = 200

_limit: ContextVar[int | None] = ContextVar("limited_memory", default=None)


@contextlib.contextmanager
def limited_memory(n_bytes: int | None) -> Iterator[None]:
    """Inside, content that unfolds from a file may take so many bytes (``max_memory``); None: what is available."""
    token = _limit.set(n_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


def memory_limit() -> int | None:
    """The limit of ``limited_memory``, if there is one."""
    return _limit.get()


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; the control group's where that is less. None: unknown."""
    found = [size for size in (_machine(), _control_group()) if size is not None]
    return min(found) if found else None


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse what cannot fit.

    Raises:
        ResourceError: ``what`` needs more than is available.
    """
    available = available_memory()
    if available is not None and n_bytes > available:
        raise ResourceError(
            f"{what} needs {format_bytes(n_bytes)} of memory",
            f"available: {format_bytes(available)}",
            "take fewer samples, or use a larger machine",
        )


def require_unpacked(n_bytes: int, stored: int, what: str, most: int = _MOST_FOLDED) -> None:
    """Refuse content that takes far more memory than its file has bytes: a few of those ask for any amount.

    Args:
        n_bytes: what the content takes in memory.
        stored: bytes of it in the file.
        what: for the message.
        most: how many times the bytes in the file, beyond a GiB.

    Raises:
        ResourceError: more than ``limited_memory`` allows, or than is available.
        RefusedError: more than a GiB, and more than ``most`` times the bytes in the file.
    """
    stated = _limit.get()
    if stated is not None and n_bytes > max(stated, stored, _LITTLE):
        raise ResourceError(
            f"{what} unfolds to {format_bytes(n_bytes)} from {format_bytes(stored)}",
            f"allowed: {format_bytes(stated)}",
            "allow more memory, or take fewer samples",
        )
    require_memory(n_bytes, what)
    if n_bytes > _FREELY and n_bytes > most * stored:
        raise RefusedError(
            f"{what} unfolds to {format_bytes(n_bytes)} from {format_bytes(stored)}",
            f"expected at most {most} times its size in the file",
            "take fewer samples, or save it without compression",
        )


def format_bytes(n_bytes: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} PiB"


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
    """Limit less use of cgroup v2, at the root that a container sees; file pages that can go are no use."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            most = int(limit.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as current:
            used = int(current.read())
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as lines:
            found = dict(line.split() for line in lines)
        return max(most - used + int(found.get("inactive_file", 0)), 0)
    except (OSError, ValueError):  # "max" is no number: no limit
        return None
