"""How much memory there is, so that a small file cannot ask for all of it."""

from __future__ import annotations

from jaccli.errors import ResourceError


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
        raise ResourceError(f"{what} needs {format_bytes(n_bytes)} of memory", f"available: {format_bytes(available)}")


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
