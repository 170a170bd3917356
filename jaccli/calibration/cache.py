"""Calibrations as files, one for each machine, device, number of threads and version of torch."""

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

# To be raised when the figures, or the way to measure them, change: older files are then ignored.
_VERSION = 1
_LARGEST_FILE = 2**20
# No figure in SI units is below or above these.
_LEAST, _MOST = 1e-15, 1e21

# Calibrations that could not be written to a file, by key, so that this process does not measure twice.
_unsaved: dict[str, Calibration] = {}


def load(device: torch.device | str = "cpu") -> Calibration | None:
    """The stored calibration for a device and torch's present number of threads; None if there is none.

    A file that is damaged, or of another machine, does not count. Measures nothing.

    Cost: some 30 µs if the file was read before.
    """
    machine = _machine(torch.device(device))
    path = _path(machine)
    if path is not None:
        # The status is part of the key of the cache in ``_read``: a file that another process replaced is read anew.
        with contextlib.suppress(OSError):
            status = path.stat()
            stored = _read(path, (status.st_mtime_ns, status.st_size, status.st_ino), json.dumps(machine))
            if stored is not None:
                return stored
    return _unsaved.get(_key(machine))


def calibrate(device: torch.device | str = "cpu") -> Calibration:
    """Measure a device with torch's present number of threads, and store the figures for later processes.

    If the cache folder cannot be written, they are stored for this process only. If other work disturbs the
    measurement or the device cannot be measured, the result is the calibration of before, or typical figures, and a
    note says so.

    Cost: about half a second and 150 MiB.
    """
    device = torch.device(device)
    machine = _machine(device)
    try:
        calibration = measure(device)
    except Busy:
        return _as_before(device, machine, "the machine is busy with other work")
    except (RuntimeError, AssertionError) as error:
        return _as_before(device, machine, f"it failed ({type(error).__name__})")
    if not _write(_path(machine), machine, calibration):
        _unsaved[_key(machine)] = calibration
    return calibration


def _as_before(device: torch.device, machine: dict[str, Any], reason: str) -> Calibration:
    before = load(device)
    figures = "those of before" if before is not None and before.made else "typical ones"
    note(f"no calibration of {device}: {reason}; its figures are {figures}")
    # Kept, so that this process does not try to measure again at each plan.
    return before or _unsaved.setdefault(_key(machine), TYPICAL)


def stored_or_typical(device: torch.device | str = "cpu") -> Calibration:
    """The stored calibration for a device, or else typical figures. Measures nothing."""
    return load(device) or TYPICAL


def folder() -> Path | None:
    """The folder of calibrations: ``JACCLI_CACHE_DIR``, or the user's cache folder; None without a home folder."""
    if named := os.environ.get("JACCLI_CACHE_DIR"):
        return Path(named)
    # The XDG specification says that a relative path has to be ignored.
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
    """The properties of machine and process that a calibration is valid for."""
    return {
        "schema_version": _VERSION,
        "device": device.type,
        "name": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _device_name(device: torch.device) -> str:
    """The names of a device and of its CPU, on which the overhead of a call depends."""
    cpu = f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}"
    with contextlib.suppress(RuntimeError, AssertionError, AttributeError):  # no such device, or no name
        return f"{torch.get_device_module(device).get_device_name(device)}, {cpu}"
    return cpu


@lru_cache(maxsize=1)
def _cpu() -> str:
    """The processor; on Linux with family and stepping, since different virtual processors share a name."""
    names = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    values: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in names:
                values.setdefault(name.strip(), value.strip())
    return ", ".join(values.values()) or platform.processor() or platform.machine()


def _key(machine: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]


def _path(machine: dict[str, Any]) -> Path | None:
    parent = folder()
    return parent / f"calibration-{_key(machine)}.json" if parent is not None else None


@lru_cache(maxsize=8)
def _read(path: Path, status: tuple[int, int, int], machine: str) -> Calibration | None:
    """The calibration in a file with this time of change, size and inode: a changed file is read again."""
    if not path.is_file() or status[1] > _LARGEST_FILE:
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["machine"] != json.loads(machine):
            return None
        return _decode(content["figures"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _decode(content: dict[str, Any]) -> Calibration:
    """The calibration in a JSON object.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a figure is missing, of another form or not positive.
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


def _write(path: Path | None, machine: dict[str, Any], calibration: Calibration) -> bool:
    """Write a file in one step, so that no process reads a part of it; False if that is not possible."""
    if path is None:
        return False
    text = json.dumps({"machine": machine, "figures": asdict(calibration)}, indent=1) + "\n"
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
