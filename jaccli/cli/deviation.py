"""``jaccli deviation``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import deadline
from jaccli.cli.figures import Figures, of_model, of_saved, readable, rows_of
from jaccli.cli.request import (
    EstimateRequest,
    Gate,
    InputRequest,
    ModelRequest,
    OutputRequest,
    PairRequest,
    RunRequest,
    SavedRequest,
)
from jaccli.errors import GateError, UsageError, warn
from jaccli.safety.memory import memory_limit

if TYPE_CHECKING:
    from jaccli.sinks.terminal import Style

_DIGITS_WIDE = 8  # of -0.01234
_ERROR_WIDE = 8  # of " ± 0.0012"
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
    effort: EstimateRequest,
) -> None:
    """Figures for every pair and sample of a model."""
    asked, samples = model(), given()
    from jaccli.cli import work

    with deadline(how.timeout), memory_limit(how.max_memory):
        loaded = work.load(asked, samples, names)
        found = of_model(loaded, loaded.pairs, how, effort, _figures())
        _finish(found, loaded.timing.document(), out, gates)


def run_saved(saved: SavedRequest, how: RunRequest, out: OutputRequest, gates: Sequence[Gate]) -> None:
    """Figures for a saved Jacobian."""
    from jaccli.cli import work

    timing = work.Timing()
    with deadline(how.timeout), memory_limit(how.max_memory):
        _finish(of_saved(saved, _figures()), timing.document(), out, gates)


def _figures() -> Figures:
    from jaccli.names import NORMS
    from jaccli.statistics.deviation import deviation
    from jaccli.statistics.of_products import estimated_deviation
    from jaccli.statistics.probing import PROBES

    return Figures(deviation, estimated_deviation, square=True, summed=NORMS, probes=PROBES)


def _finish(found: list[dict[str, Any]], timing: dict[str, float], out: OutputRequest, gates: Sequence[Gate]) -> None:
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_for

    rows = rows_of(found)
    if gates:
        _check_gated(rows)
    document = {"schema_version": 1, "command": "deviation", "pairs": found, "timing": timing}
    style = style_for(out.path, out.no_color)
    people = out.format in ("table", "markdown")
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=[readable(row) for row in rows] if people else rows,
            columns=_columns(found, style) if people else None,
            title=_title(found) if out.format == "table" else "",
            style=style,
        )
    _gate(rows, gates)


def _columns(found: Sequence[dict[str, Any]], style: Style) -> list[str]:
    """A layer that is the same in all rows is in the title; a terminal too narrow gets fewer norms."""
    longest = {end: max(len(r[end]["layer"]) for r in found) for end in ("source", "target")}
    named = [end for end in ("source", "target") if len({r[end]["layer"] for r in found}) > 1]
    fields = {name for record in found for sample in record["samples"] for name in sample}
    columns = [*named, *(c for c in COLUMNS if c in fields)]
    for name in ("max_abs", "frobenius", "identity_share"):
        width = sum(
            max(longest.get(c, 0), len(c), _DIGITS_WIDE + _ERROR_WIDE * (f"{c}_stderr" in fields)) + 2 for c in columns
        )
        may_go = f"{name}_stderr" in fields or (named and name != "identity_share")
        if style.fixed and width > style.width and name in columns and may_go:
            columns.remove(name)
    return columns


def _title(found: Sequence[dict[str, Any]]) -> str:
    source, target = (found[0][end]["layer"] for end in ("source", "target"))
    if len(found) == 1:
        size = math.prod(found[0]["source"]["shape"])
        return f"J - I of {source} -> {target}, {size} x {size}, method {found[0]['method']}"
    same = len({r["target"]["layer"] for r in found}) == 1
    return f"J - I of {len(found)} layers" + f" -> {target}" * same


def _check_gated(rows: Sequence[dict[str, Any]]) -> None:
    """A gate over nothing would pass whatever the network does.

    Raises:
        UsageError: there is no pair but such whose J is I in any case.
    """
    if rows and all("trivial" in row for row in rows):
        pairs = dict.fromkeys(f"{row['source']} -> {row['target']}" for row in rows)
        raise UsageError(
            f"--fail-above: of {', '.join(pairs)} source and target are the same activation, and J is I in any case",
            "expected a pair with something between its ends",
            "choose another --layer or --to",
        )


def _gate(every: Sequence[dict[str, Any]], gates: Sequence[Gate]) -> None:
    """``--fail-above``: a figure that is not a number fails too; pairs whose J is I in any case do not count.

    Raises:
        UsageError: an estimate does not have this figure.
        GateError: a sample is above.
    """
    rows = [row for row in every if "trivial" not in row]
    for gate in gates:
        if any(gate.norm not in row for row in rows):
            raise UsageError(
                f"--fail-above {gate.norm}: it needs the entries of J, and this J was estimated from products",
                "expected a norm that products give, as relative or spectral",
            )
        near = [row for row in rows if abs(row[gate.norm] - gate.limit) <= 1.96 * row.get(f"{gate.norm}_stderr", -1.0)]
        if near:
            warn(f"{gate.norm}: the limit lies within the 95 % interval of {len(near)} of {len(rows)} samples")
        above = [row for row in rows if math.isnan(row[gate.norm]) or row[gate.norm] > gate.limit]
        if above:
            worst = max(above, key=lambda row: math.inf if math.isnan(row[gate.norm]) else row[gate.norm])
            raise GateError(
                f"{gate.norm} is above {gate.limit:g} for {len(above)} of {len(rows)} samples",
                f"largest: {worst[gate.norm]:.6g}, sample {worst['sample']} of {worst['source']} -> {worst['target']}",
            )
