"""A bound on the memory that loading a stranger's file may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_SPARE = 2 << 30  # for the code and the reader's own needs
_COPIES = 4  # of the file's bytes


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Inside, the process may take some copies of a file of ``size`` bytes, and 2 GiB, more than it has.

    For torch's compiler, which computes constants while it loads source: a few lines that double a text
    fill the memory. More than that then fails as an allocation. Linux only; elsewhere nothing happens.
    The limit holds for the whole process, and is put back.
    """
    try:
        import resource

        with open("/proc/self/status", encoding="ascii") as status:
            used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, ValueError, StopIteration):
        yield
        return
    # RLIMIT_DATA counts private writable memory; RLIMIT_AS would count mapped files and reserved addresses as well.
    limit = used + _COPIES * size + _SPARE
    if soft != resource.RLIM_INFINITY and soft <= limit:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
