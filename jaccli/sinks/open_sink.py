"""A matrix sink by the name of its format."""

from __future__ import annotations

from typing import BinaryIO

from jaccli.errors import InternalError
from jaccli.sinks.choose import Format
from jaccli.sinks.matrix import MatrixSink, Target
from jaccli.sinks.matrix_binary import NpySink, NpzSink, SafetensorsSink, TorchSink, ZarrSink
from jaccli.sinks.matrix_text import CsvSink, JsonLinesSink, JsonSink, TableSink
from jaccli.sinks.terminal import Style

_SINKS: dict[Format, type[MatrixSink]] = {
    "npy": NpySink,
    "npz": NpzSink,
    "safetensors": SafetensorsSink,
    "pt": TorchSink,
    "zarr": ZarrSink,
    "jsonl": JsonLinesSink,
    "csv": CsvSink,
    "json": JsonSink,
    "table": TableSink,
}


def matrix_sink(
    chosen: Format,
    out: str | None = None,
    *,
    force: bool = False,
    stdout: BinaryIO | None = None,
    style: Style | None = None,
) -> MatrixSink:
    """The sink for a format of ``choose.MATRIX``. Nothing is opened until its ``open``.

    Args:
        chosen: from ``choose_format``.
        out: a path, or None or ``-`` for standard output.
        force: replace what exists.
        stdout: stands for standard output.
        style: how the table is drawn.
    """
    if chosen not in _SINKS:
        raise InternalError(f"{chosen} does not hold matrices")
    return _SINKS[chosen](Target(out, force, stdout, style))
