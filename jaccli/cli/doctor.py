"""``jaccli doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any

from jaccli.cli.request import OutputRequest

_PACKAGES = ("torch", "numpy", "scipy", "typer", "rich", "safetensors")
_EXTRAS = {"pillow": "PIL", "zarr": "zarr"}


def run(out: OutputRequest) -> None:
    """Say what this installation is made of."""
    import torch

    from jaccli import __version__
    from jaccli.memory import available
    from jaccli.planning import human
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_of

    facts: dict[str, Any] = {
        "jaccli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
        "cpu cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "memory for J": human(available(torch.device("cpu"))),
        "devices": ", ".join(_devices()),
        **{f"extra {name}": _extra(name, module) for name, module in _EXTRAS.items()},
    }
    document = {"schema_version": 1, "command": "doctor", "facts": facts}
    # Text, so that a table sets all of them to the left.
    records = [{"what": name, "found": str(value) if out.format == "table" else value} for name, value in facts.items()]
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=records,
            style=style_of(sys.stdout.buffer, out.no_color),
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


def _devices() -> list[str]:
    """Devices that can be named with ``--device``."""
    import torch

    found = ["cpu"]
    for kind in ("cuda", "mps", "xpu"):
        backend = torch.get_device_module(kind)
        if backend.is_available():
            found += (
                [kind]
                if kind == "mps"
                else [f"{kind}:{n} ({backend.get_device_name(n)})" for n in range(backend.device_count())]
            )
    return found
