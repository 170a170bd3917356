"""``jaccli deviation``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaccli.cli.request import (
    Gate,
    InputRequest,
    ModelRequest,
    OutputRequest,
    PairRequest,
    RunRequest,
    SavedRequest,
)
from jaccli.errors import GateError, UsageError, note

if TYPE_CHECKING:
    from jaccli.prepare import Prepared
    from jaccli.sinks.terminal import Style
    from jaccli.stream import Piece

_DIGITS_WIDE = 8  # of -0.01234
COLUMNS = (
    "sample",
    "frobenius",
    "relative",
    "spectral",
    "max_abs",
    "alpha",
    "identity_share",
)


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest],
    names: PairRequest,
    how: RunRequest,
    out: OutputRequest,
    gates: Sequence[Gate],
) -> None:
    """Figures for every pair and sample of a model."""
    asked, samples = model(), given()
    from jaccli.cli import work

    with work.deadline(how.timeout):
        loaded = work.load(asked, samples, names)
        pairs = loaded.pairs
        found: dict[str, dict[str, Any]] = {}
        for piece in work.pieces(loaded, pairs, how, accept=_is_square):
            record = found.setdefault(str(piece.pair[0]), _record(piece))
            record["samples"] += _figures(piece.outcome.matrix, loaded.numbers[piece.start :])
        if not found:
            raise UsageError(
                "none of the layers that the glob matches has a square J",
                "expected source and target of one size",
            )
        _finish(list(found.values()), loaded.timing.document(), out, gates)


def _record(piece: Piece) -> dict[str, Any]:
    record = _empty(str(piece.pair[0]), str(piece.pair[1]))
    record["source"]["shape"], record["target"]["shape"] = [*piece.source_shape], [*piece.target_shape]
    record["method"] = piece.outcome.method
    if piece.outcome.error_estimate is not None:
        record["error_estimate"] = piece.outcome.error_estimate
    return record


def run_saved(saved: SavedRequest, how: RunRequest, out: OutputRequest, gates: Sequence[Gate]) -> None:
    """Figures for a saved Jacobian."""
    from jaccli.cli import work
    from jaccli.sinks.read import read_jacobian

    timing = work.Timing()
    with work.deadline(how.timeout):
        found = []
        for jacobian in read_jacobian(saved.path):
            record = _empty(jacobian.source, jacobian.target)
            batch = jacobian.array.shape[0]
            picked = saved.samples.indices(batch) if saved.samples else list(range(batch))
            record["source"]["shape"], record["target"]["shape"] = (
                [jacobian.array.shape[2]],
                [jacobian.array.shape[1]],
            )
            record["method"] = jacobian.provenance.get("method", "saved")
            record["samples"] = _figures(jacobian.array[picked], [jacobian.numbers[p] for p in picked])
            found.append(record)
        _finish(found, timing.document(), out, gates)


def _empty(source: str, target: str) -> dict[str, Any]:
    return {
        "source": {"layer": source},
        "target": {"layer": target},
        "method": "",
        "samples": [],
        "summary": {},
    }


def _is_square(prepared: Prepared) -> bool:
    """A pair that was named must have a square J; one that a glob gave is left out with a note.

    Raises:
        UsageError: a J that is not square.
    """
    f = prepared.linear.f
    if f.n_out == f.n_in:
        return True
    if prepared.pair[0].globbed:
        note(f"left out: J of {prepared.name} is {f.n_out} x {f.n_in}, not square")
        return False
    raise UsageError(
        f"J of {prepared.name} is {f.n_out} x {f.n_in}, and only a square J can be held against the identity",
        "expected a source and a target of the same size",
        "'jaccli layers MODEL -i INPUT' shows sizes",
    )


def _figures(matrix: Any, numbers: Sequence[int]) -> list[dict[str, Any]]:
    from jaccli.statistics.deviation import deviation

    return [{"sample": number, **deviation(one)} for number, one in zip(numbers, matrix, strict=False)]


def _finish(found: list[dict[str, Any]], timing: dict[str, float], out: OutputRequest, gates: Sequence[Gate]) -> None:
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_of
    from jaccli.statistics.deviation import NORMS, summary

    for record in found:
        record["summary"] = summary(record["samples"], NORMS)
    rows = [
        {"source": r["source"]["layer"], "target": r["target"]["layer"], **sample}
        for r in found
        for sample in r["samples"]
    ]
    document = {"schema_version": 1, "command": "deviation", "pairs": found, "timing": timing}
    style = style_of(sys.stdout.buffer, out.no_color)
    people = out.format in ("table", "markdown")
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=[_readable(row) for row in rows] if people else rows,
            columns=_columns(found, style) if people else None,
            title=_title(found) if out.format == "table" else "",
            style=style,
        )
    _gate(rows, gates)


def _columns(found: Sequence[dict[str, Any]], style: Style) -> list[str]:
    """A layer that is the same in all rows is in the title; a terminal too narrow gets fewer norms."""
    longest = {end: max(len(r[end]["layer"]) for r in found) for end in ("source", "target")}
    named = [end for end in ("source", "target") if len({r[end]["layer"] for r in found}) > 1]
    columns = [*named, *COLUMNS]
    for name in ("max_abs", "frobenius"):
        width = sum(max(longest.get(c, 0), len(c), _DIGITS_WIDE) + 2 for c in columns)
        if named and style.fixed and width > style.width:
            columns.remove(name)
    return columns


def _title(found: Sequence[dict[str, Any]]) -> str:
    source, target = (found[0][end]["layer"] for end in ("source", "target"))
    if len(found) == 1:
        size = math.prod(found[0]["source"]["shape"])
        return f"J - I of {source} -> {target}, {size} x {size}, method {found[0]['method']}"
    same = len({r["target"]["layer"] for r in found}) == 1
    return f"J - I of {len(found)} layers" + f" -> {target}" * same


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Four digits: enough to look at, and nine columns fit."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def _gate(rows: Sequence[dict[str, Any]], gates: Sequence[Gate]) -> None:
    """``--fail-above``: a figure that is not a number fails too.

    Raises:
        GateError: a sample is above.
    """
    for gate in gates:
        above = [row for row in rows if math.isnan(row[gate.norm]) or row[gate.norm] > gate.limit]
        if above:
            worst = max(above, key=lambda row: math.inf if math.isnan(row[gate.norm]) else row[gate.norm])
            raise GateError(
                f"{gate.norm} is above {gate.limit:g} for {len(above)} of {len(rows)} samples",
                f"largest: {worst[gate.norm]:.6g}, sample {worst['sample']} of {worst['source']} -> {worst['target']}",
            )
