"""``jaccli doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jaccli.cli.request import OutputRequest

if TYPE_CHECKING:
    from jaccli.calibration import Calibration

_PACKAGES = ("torch", "numpy", "scipy", "typer", "rich", "safetensors")
_EXTRAS = {"pillow": "PIL", "zarr": "zarr"}


def run(out: OutputRequest, calibrate: bool = False) -> None:
    """Say what this installation is made of and how fast it is; with ``calibrate`` measure that first."""
    import torch

    from jaccli import __version__
    from jaccli.planning.memory import available
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.table import TableView
    from jaccli.sinks.terminal import style_for
    from jaccli.text.quantities import human

    devices = _devices()
    measured = {name: _calibration(name, calibrate) for name in devices}
    facts: dict[str, Any] = {
        "jaccli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
        "cpu cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "memory for J": human(available(torch.device("cpu"))),
        "devices": ", ".join(f"{name} ({more})" if more else name for name, more in devices.items()),
        **{f"extra {name}": _extra(name, module) for name, module in _EXTRAS.items()},
    }
    for name, made in measured.items():
        facts |= _speed(name, made)
    document = {
        "schema_version": 1,
        "command": "doctor",
        "facts": facts,
        "calibration": {name: asdict(made) if made is not None else None for name, made in measured.items()},
    }
    # Text, so that a table sets all of them to the left.
    view = TableView([{"what": name, "found": str(value)} for name, value in facts.items()])
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=[{"what": name, "found": value} for name, value in facts.items()],
            view=view,
            style=style_for(out.path, out.no_color),
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _extra(package: str, module: str) -> str:
    extra = "images" if package == "pillow" else package
    if importlib.util.find_spec(module) is None:
        return f"missing: pip install 'jaccli[{extra}]'"
    return _version(package)


def _devices() -> dict[str, str]:
    """Devices that can be named with ``--device``, and what they are called."""
    import torch

    found = {"cpu": ""}
    for kind in ("cuda", "mps", "xpu"):
        backend = torch.get_device_module(kind)
        if backend.is_available():
            found |= (
                {kind: ""}
                if kind == "mps"
                else {f"{kind}:{n}": backend.get_device_name(n) for n in range(backend.device_count())}
            )
    return found


def _calibration(device: str, anew: bool) -> Calibration | None:
    from jaccli.calibration import calibrate, load

    return calibrate(device) if anew else load(device)


def _speed(device: str, made: Calibration | None) -> dict[str, str]:
    """The figures of a device for people; the document holds all of them."""
    if made is None:
        return {f"calibration {device}": "not calibrated; `jaccli doctor --calibrate` or the first plan measures it"}
    if not made.made:
        return {f"calibration {device}": "not calibrated; typical figures are used for now"}
    rows = {"overhead of a call": f"{made.overhead_s * 1e6:.2g} us"}
    rows |= {f"product {dtype}": _rates(table, "FLOP") for dtype, table in made.matmul.items()}
    rows |= {f"batched product {dtype}": _rates(table, "FLOP") for dtype, table in made.batched.items()}
    rows |= {
        "memory": _rates(made.memory, "B"),
        "new memory": f"{_giga(made.fresh)} GB/s",
        "permuted copy": f"{_giga(made.strided)} GB/s",
    }
    for name, table in made.conv.items():
        kind, channels = name.rsplit(" ", 1)
        shown = f"{channels} {_giga(table[-1][1])}"
        rows[kind] = f"{rows[kind]}, {shown}" if kind in rows else f"GFLOP/s by channels: {shown}"
    shown = ", ".join(f"{name} {_giga(table[-1][1])}" for name, table in made.functions.items())
    rows["functions"] = f"G/s: {shown}"
    return {f"calibration {device}": made.made, **{f"{device} {name}": text for name, text in rows.items()}}


def _rates(table: Sequence[tuple[float, float]], unit: str) -> str:
    rates = ", ".join(_giga(rate) for _, rate in table)
    sizes = ", ".join(f"{size:.0e}" for size, _ in table)
    return f"{rates} G{unit}/s at {sizes} {unit}"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.3g}"
