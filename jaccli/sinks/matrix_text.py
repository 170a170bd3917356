"""Matrix sinks that write text: jsonl, csv, json, and the table for people."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.sinks.matrix import MatrixSink, PairMeta
from jaccli.sinks.render import render_matrix
from jaccli.sinks.terminal import heading
from jaccli.sinks.values import dumps
from jaccli.text.escape import inert

if TYPE_CHECKING:
    from jaxtyping import Shaped

_TABLE_SAMPLES = 4


class JsonLinesSink(MatrixSink):
    """One sample a line, flushed: ``{"sample", "source", "target", "shape", "dtype", "method", "jacobian"}``."""

    binary = False

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        for offset, matrix in enumerate(block):
            head = {
                "sample": self.samples[start + offset],
                "source": pair.source,
                "target": pair.target,
                "shape": list(pair.shape[1:]),
                "dtype": pair.dtype,
                "method": self._methods[pair.key],
            }
            self._out.write(f'{dumps(head)[:-1]}, "jacobian": {_nested(matrix)}}}\n'.encode())
            self._out.flush()


class CsvSink(MatrixSink):
    """One row of J a line: ``sample,source,target,row,v0,v1,...,method``, blanks after a narrow pair's values."""

    binary = False

    def _open(self) -> None:
        super()._open()
        self._columns = max(pair.shape[2] for pair in self.pairs.values())

    def _begin(self) -> None:
        self._emit([["sample", "source", "target", "row", *(f"v{i}" for i in range(self._columns)), "method"]])

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        rest = [*[""] * (self._columns - pair.shape[2]), self._methods[pair.key]]
        names = [inert(pair.source), inert(pair.target)]
        for offset, matrix in enumerate(block):
            sample = self.samples[start + offset]
            self._emit([[sample, *names, row, *values, *rest] for row, values in enumerate(matrix.double().tolist())])

    def _emit(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._out.write(text.getvalue().encode())
        self._out.flush()


class JsonSink(MatrixSink):
    """One document: every pair with its J nested ``(batch, n_out, n_in)``, and the provenance."""

    binary = False

    def _open(self) -> None:
        super()._open()
        self._parts: dict[str, list[str]] = {key: [] for key in self.pairs}

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        del start
        self._parts[pair.key] += [_nested(matrix) for matrix in block]

    def _close(self, provenance: dict[str, str]) -> None:
        self._out.write(b'{"schema_version": 1, "command": "compute", "jacobians": [')
        for index, (key, parts) in enumerate(self._parts.items()):
            pair = self.pairs[key]
            head = {"source": pair.source, "target": pair.target, "shape": pair.shape, "dtype": pair.dtype}
            head["method"] = self._methods[key]
            matrices = ",\n".join(parts)
            text = f'{dumps(head)[:-1]}, "samples": {dumps(self.samples)}, "jacobian": [\n{matrices}]}}'
            self._out.write((",\n" if index else "\n").encode() + text.encode())
        self._out.write(f'\n], "provenance": {dumps(provenance)}}}\n'.encode())


class TableSink(MatrixSink):
    """The first samples of each pair, drawn."""

    binary = False

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        (batch, n_out, n_in), style = pair.shape, self.target.style
        for position in range(start, min(start + len(block), _TABLE_SAMPLES)):
            names = f"{pair.source} -> {pair.target}"
            about = f"J of {names}, sample {self.samples[position]}, {n_out} x {n_in}, {pair.dtype}"
            body = render_matrix(block[position - start], source=pair.source, target=pair.target, style=style)
            self._out.write(style.encode(heading(about, style) + body))
        if start + len(block) == batch > _TABLE_SAMPLES:
            left = batch - _TABLE_SAMPLES
            rest = f"{left} more sample{'s' * (left > 1)}: --samples picks, -o FILE saves them all\n"
            self._out.write(style.encode(rest))
        self._out.flush()


def _nested(matrix: Shaped[Tensor, "n_out n_in"]) -> str:
    """A matrix as JSON lists; each number is the exact value of the dtype."""
    values = matrix.double().tolist()
    # The checked way costs several times as much, and is seldom needed.
    return json.dumps(values, allow_nan=False) if bool(torch.isfinite(matrix).all()) else dumps(values)
