"""A matrix sink by the name of its format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from jaccli.sinks.choose import Format
from jaccli.sinks.matrix import MatrixSink, Target
from jaccli.sinks.matrix_binary import CollectedSink, NpySink, ZarrSink, write_npz, write_pt, write_safetensors
from jaccli.sinks.matrix_text import CsvSink, JsonLinesSink, JsonSink, TableSink
from jaccli.sinks.sparse import SparseSink
from jaccli.sinks.terminal import PLAIN, Style

_SINKS: dict[Format, Callable[[Target], MatrixSink]] = {
    "npy": NpySink,
    "npz": partial(CollectedSink, writer=write_npz),
    "safetensors": partial(CollectedSink, writer=write_safetensors),
    "pt": partial(CollectedSink, writer=write_pt),
    "zarr": ZarrSink,
    "jsonl": JsonLinesSink,
    "csv": CsvSink,
    "json": JsonSink,
    "table": TableSink,
}
_SPARSE: dict[Format, Callable[[Target], MatrixSink]] = {
    "npz": partial(SparseSink, writer=write_npz),
    "safetensors": partial(SparseSink, writer=write_safetensors),
}


def matrix_sink(
    chosen: Format,
    out: str | None = None,
    *,
    force: bool = False,
    stdout: BinaryIO | None = None,
    style: Style = PLAIN,
    sparse: bool = False,
) -> MatrixSink:
    """The sink for a format. Nothing is opened until its ``open``.

    Args:
        chosen: one of ``choose.MATRIX``, or of ``choose.SPARSE`` where the sink is sparse.
        out: a path, or None or ``-`` for standard output.
        force: replace what exists.
        stdout: stands for standard output.
        style: how the table is drawn.
        sparse: only the nonzero entries are stored, and where they are; see ``SparseSink``.
    """
    return (_SPARSE if sparse else _SINKS)[chosen](Target(out, force, stdout, style))
