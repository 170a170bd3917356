"""``jaccli doctor``: facts about this installation, and how fast its devices are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jaccli.cli.output_request import OutputRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import DoctorRequest

if TYPE_CHECKING:
    from jaccli.calibration import Calibration

_PACKAGES = ("torch", "numpy", "scipy", "typer", "rich", "safetensors")
_EXTRAS = {"pillow": "PIL", "zarr": "zarr"}


def run(request: DoctorRequest, out: OutputRequest) -> None:
    """Print the facts; with ``--calibrate`` measure the devices first."""
    from jaccli.sinks.table import TableView

    devices = _devices()
    speeds = {name: _calibration(name, request.calibrate) for name in devices}
    facts = _facts(devices)
    for name, speed in speeds.items():
        facts |= _speed(name, speed)
    figures = {name: asdict(speed) if speed is not None else None for name, speed in speeds.items()}
    # Text, so that a table sets all of them to the left.
    view = TableView([{"what": name, "found": str(value)} for name, value in facts.items()])
    rows = [{"what": name, "found": value} for name, value in facts.items()]
    write_result(out, document("doctor", {"facts": facts, "calibration": figures}), rows, view)


def _facts(devices: dict[str, str]) -> Record:
    """Versions, processors, memory and devices."""
    import torch

    from jaccli import __version__
    from jaccli.planning.memory import available
    from jaccli.text.quantities import human

    return {
        "jaccli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
        "cpu cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "memory for J": human(available(torch.device("cpu"))),
        "devices": ", ".join(f"{name} ({model})" if model else name for name, model in devices.items()),
        **{f"extra {name}": _extra(name, module) for name, module in _EXTRAS.items()},
    }


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

    devices = {"cpu": ""}
    for kind in ("cuda", "mps", "xpu"):
        backend = torch.get_device_module(kind)
        if backend.is_available():
            devices |= (
                {kind: ""}
                if kind == "mps"
                else {f"{kind}:{n}": backend.get_device_name(n) for n in range(backend.device_count())}
            )
    return devices


def _calibration(device: str, anew: bool) -> Calibration | None:
    from jaccli.calibration import calibrate, load

    return calibrate(device) if anew else load(device)


def _speed(device: str, speed: Calibration | None) -> dict[str, str]:
    """The figures of a device for people; the document holds all of them."""
    if speed is None:
        return {f"calibration {device}": "not calibrated; `jaccli doctor --calibrate` or the first plan measures it"}
    if not speed.made:
        return {f"calibration {device}": "not calibrated; typical figures are used for now"}
    rows = {"overhead of a call": f"{speed.overhead_s * 1e6:.2g} us"}
    rows |= {f"product {dtype}": _rates(table, "FLOP") for dtype, table in speed.matmul.items()}
    rows |= {f"batched product {dtype}": _rates(table, "FLOP") for dtype, table in speed.batched.items()}
    rows |= {
        "memory": _rates(speed.memory, "B"),
        "new memory": f"{_giga(speed.fresh)} GB/s",
        "permuted copy": f"{_giga(speed.strided)} GB/s",
    }
    for name, table in speed.conv.items():
        kind, channels = name.rsplit(" ", 1)
        shown = f"{channels} {_giga(table[-1][1])}"
        rows[kind] = f"{rows[kind]}, {shown}" if kind in rows else f"GFLOP/s by channels: {shown}"
    shown = ", ".join(f"{name} {_giga(table[-1][1])}" for name, table in speed.functions.items())
    rows["functions"] = f"G/s: {shown}"
    return {f"calibration {device}": speed.made, **{f"{device} {name}": text for name, text in rows.items()}}


def _rates(table: Sequence[tuple[float, float]], unit: str) -> str:
    rates = ", ".join(_giga(rate) for _, rate in table)
    sizes = ", ".join(f"{size:.0e}" for size, _ in table)
    return f"{rates} G{unit}/s at {sizes} {unit}"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.3g}"
