"""``jaccli deviation``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaccli.cli.endings import limits
from jaccli.cli.figures import Figures, of_model, of_saved, rows_of, saved_name
from jaccli.cli.messages import release_messages
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
from jaccli.names import UNKNOWN


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest],
    names: PairRequest,
    how: RunRequest,
    out: OutputRequest,
    gates: Sequence[Gate],
    effort: EstimateRequest,
    per_sample: bool = False,
) -> None:
    """Figures for every pair and sample of a model."""
    asked, samples = model(), given()
    from jaccli.cli import work

    with limits(how):
        loaded = work.load(asked, samples, names)
        found = of_model(loaded, loaded.pairs, how, effort, _figures())
        _finish(found, loaded.timing.document(), out, gates, per_sample)


def run_saved(
    saved: SavedRequest, how: RunRequest, out: OutputRequest, gates: Sequence[Gate], per_sample: bool = False
) -> None:
    """Figures for a saved Jacobian."""
    from jaccli.cli import work

    timing = work.Timing()
    with limits(how):
        _finish(of_saved(saved, _figures()), timing.document(), out, gates, per_sample, saved_name(saved.path))


def _figures() -> Figures:
    from jaccli.names import NORMS
    from jaccli.statistics.identity_distance import deviation
    from jaccli.statistics.probing import PROBES
    from jaccli.statistics.product_estimates import estimated_deviation

    return Figures(deviation, estimated_deviation, square=True, summed=NORMS, probes=PROBES)


def _finish(
    found: list[dict[str, Any]],
    timing: dict[str, float],
    out: OutputRequest,
    gates: Sequence[Gate],
    per_sample: bool,
    saved: str = "",
) -> None:
    from jaccli.cli.deviation_table import view_of
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_for

    rows = rows_of(found)
    if gates:
        _check_gated(rows)
    document = {"schema_version": 1, "command": "deviation", "pairs": found, "timing": timing}
    style = style_for(out.path, out.no_color)
    release_messages()
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=rows,
            view=view_of(found, per_sample, saved),
            style=style,
        )
    _gate(rows, gates)


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
            pair = f" of {worst['source']} -> {worst['target']}" if worst["source"] != UNKNOWN else ""
            raise GateError(
                f"{gate.norm} is above {gate.limit:g} for {len(above)} of {len(rows)} samples",
                f"largest: {worst[gate.norm]:.6g}, sample {worst['sample']}{pair}",
            )
