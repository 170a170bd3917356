"""A calibration belongs to one machine, device, number of threads and torch: found again by a hash of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, fields, replace
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from jaccli.calibration.figures import Calibration, Table
from jaccli.calibration.measure import measure
from jaccli.calibration.timing import Busy
from jaccli.calibration.typical import TYPICAL
from jaccli.errors import note

# Raised whenever the figures or the way they are measured change: older files are then foreign.
_VERSION = 1
_LARGEST_FILE = 2**20
# What no figure in SI units can be below or above.
_LEAST, _MOST = 1e-15, 1e21

# Calibrations of this process that could not be kept, by key: no second measurement in the same process.
_unkept: dict[str, Calibration] = {}


def load(device: torch.device | str = "cpu") -> Calibration | None:
    """The calibration kept for a device and torch's present number of threads; None if there is none.

    Measures nothing: one look at a file, some 30 µs when it was read before. A file that is damaged, or of
    another machine, is none.
    """
    machine = _machine(torch.device(device))
    path = _path(machine)
    if path is not None:
        with contextlib.suppress(OSError):
            status = path.stat()
            found = _read(path, (status.st_mtime_ns, status.st_size, status.st_ino), json.dumps(machine))
            if found is not None:
                return found
    return _unkept.get(_key(machine))


def calibrate(device: torch.device | str = "cpu") -> Calibration:
    """Measure a device with torch's present number of threads, and keep the figures for later processes.

    Takes about half a second and 150 MiB. Where the cache folder cannot be written, the figures last as long
    as the process. Where other work gets in the way or the device cannot be measured, the answer is what
    was known before, for the rest of the process, and a note says so.
    """
    device = torch.device(device)
    machine = _machine(device)
    try:
        made = measure(device)
    except Busy:
        return _as_before(device, machine, "the machine is busy with other work")
    except (RuntimeError, AssertionError) as error:
        return _as_before(device, machine, f"it failed ({type(error).__name__})")
    if not _write(_path(machine), machine, made):
        _unkept[_key(machine)] = made
    return made


def _as_before(device: torch.device, machine: dict[str, Any], reason: str) -> Calibration:
    before = load(device)
    figures = "those of before" if before is not None and before.made else "typical ones"
    note(f"no calibration of {device}: {reason}; its figures are {figures}")
    return before or _unkept.setdefault(_key(machine), TYPICAL)


def known(device: torch.device | str = "cpu") -> Calibration:
    """What is kept for a device, else typical figures. Measures nothing."""
    return load(device) or TYPICAL


def folder() -> Path | None:
    """Where calibrations are kept: ``JACCLI_CACHE_DIR``, or the user's cache folder; None without a home."""
    if named := os.environ.get("JACCLI_CACHE_DIR"):
        return Path(named)
    # A relative path is to be ignored, says the XDG specification.
    if (base := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(base):
        return Path(base) / "jaccli"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "jaccli"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "jaccli" / "Cache"
    return home / ".cache" / "jaccli"


def _machine(device: torch.device) -> dict[str, Any]:
    """What a calibration holds for."""
    return {
        "schema_version": _VERSION,
        "device": device.type,
        "name": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _device_name(device: torch.device) -> str:
    """What a device is called, and the CPU that feeds it: the overhead of a call is its."""
    cpu = f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}"
    with contextlib.suppress(RuntimeError, AssertionError, AttributeError):  # it is not there, or has no name
        return f"{torch.get_device_module(device).get_device_name(device)}, {cpu}"
    return cpu


@lru_cache(maxsize=1)
def _cpu() -> str:
    """The processor; on Linux with its family and stepping, since virtual ones share names."""
    wanted = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    return ", ".join(found.values()) or platform.processor() or platform.machine()


def _key(machine: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]


def _path(machine: dict[str, Any]) -> Path | None:
    place = folder()
    return place / f"calibration-{_key(machine)}.json" if place is not None else None


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int, int], machine: str) -> Calibration | None:
    """A file as it was at its stamp."""
    if not path.is_file() or stamp[1] > _LARGEST_FILE:
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["machine"] != json.loads(machine):
            return None
        return _decode(content["figures"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _decode(content: dict[str, Any]) -> Calibration:
    """Figures from JSON, refused unless they have the form of a calibration, finite and positive.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    pattern = TYPICAL
    values: dict[str, Any] = {}
    for field in fields(Calibration):
        like, value = getattr(pattern, field.name), content[field.name]
        if isinstance(like, str):
            values[field.name] = datetime.fromisoformat(value).isoformat()
        elif isinstance(like, float):
            values[field.name] = _positive(value)
        elif isinstance(like, tuple):
            values[field.name] = _table(value)
        else:
            needed = {"float32"} if "float32" in like else set(like)
            if not needed <= set(value):
                raise KeyError(field.name)
            values[field.name] = {str(row): _table(points) for row, points in value.items()}
    return replace(pattern, **values)


def _table(points: list[list[float]]) -> Table:
    table = tuple((_positive(size), _positive(rate)) for size, rate in points)
    if not table or any(size >= after for (size, _), (after, _) in pairwise(table)):
        raise ValueError
    return table


def _positive(value: float) -> float:
    number = float(value)
    if isinstance(value, str | bool) or not _LEAST < number < _MOST:
        raise ValueError
    return number


def _write(path: Path | None, machine: dict[str, Any], made: Calibration) -> bool:
    """Put a file in place whole; False where that is not possible."""
    if path is None:
        return False
    text = json.dumps({"machine": machine, "figures": asdict(made)}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as handle:
                handle.write(text)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError:
        return False
    return True
