"""``jaccli deviation``: how far J is from the identity, and whether that exceeds a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaccli.cli.endings import limits
from jaccli.cli.figures import Figures, of_model, of_saved, rows_of, saved_name
from jaccli.cli.figures_request import FiguresRequest, Gate
from jaccli.cli.messages import release_messages
from jaccli.cli.opening import loaded
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest, SavedRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import RunRequest
from jaccli.errors import GateError, UsageError, warn
from jaccli.names import UNKNOWN, pair_name


def run(
    model: ModelRequest,
    inputs: InputRequest,
    pair: PairRequest,
    figures: FiguresRequest,
    gates: Sequence[Gate],
    how: RunRequest,
    out: OutputRequest,
) -> None:
    """Figures of every pair and sample of a model."""
    with loaded(model, inputs, pair, how) as work:
        pairs = of_model(work, work.pairs, how, figures, _figures())
        _finish(pairs, work.timing.document(), out, gates, figures.per_sample)


def run_saved(
    saved: SavedRequest, figures: FiguresRequest, gates: Sequence[Gate], how: RunRequest, out: OutputRequest
) -> None:
    """Figures of a saved Jacobian."""
    saved.check()
    from jaccli.cli import work

    timing = work.Timing()
    with limits(how):
        pairs = of_saved(saved, _figures())
        _finish(pairs, timing.document(), out, gates, figures.per_sample, saved_name(saved.path))


def _figures() -> Figures:
    from jaccli.names import NORMS
    from jaccli.statistics.identity_distance import deviation
    from jaccli.statistics.probing import PROBES
    from jaccli.statistics.product_estimates import estimated_deviation

    return Figures(deviation, estimated_deviation, square=True, summed=NORMS, probes=PROBES)


def _finish(
    pairs: list[Record],
    timing: dict[str, float],
    out: OutputRequest,
    gates: Sequence[Gate],
    per_sample: bool,
    saved: str = "",
) -> None:
    from jaccli.cli.deviation_table import view_of

    rows = rows_of(pairs)
    if gates:
        _check_gated(rows)
    release_messages()
    write_result(
        out, document("deviation", {"pairs": pairs, "timing": timing}), rows, view_of(pairs, per_sample, saved)
    )
    _gate(rows, gates)


def _check_gated(rows: Sequence[Record]) -> None:
    """A gate over nothing would pass whatever the network does.

    Raises:
        UsageError: there is no pair but such whose J is I in any case.
    """
    if rows and all("trivial" in row for row in rows):
        pairs = dict.fromkeys(pair_name(row["source"], row["target"]) for row in rows)
        raise UsageError(
            f"--fail-above: of {', '.join(pairs)} source and target are the same activation, and J is I in any case",
            "expected a pair with something between its ends",
            "choose another --layer or --to",
        )


def _gate(records: Sequence[Record], gates: Sequence[Gate]) -> None:
    """``--fail-above``: a figure that is not a number fails too; pairs whose J is I in any case do not count.

    Raises:
        UsageError: an estimate does not have this figure.
        GateError: a sample is above.
    """
    rows = [row for row in records if "trivial" not in row]
    for gate in gates:
        if any(gate.norm not in row for row in rows):
            raise UsageError(
                f"--fail-above {gate.norm}: it needs the entries of J, and this J was estimated from products",
                "expected a norm that products give, as relative or spectral",
                "choose such a norm, or leave the estimate out",
            )
        # Exact figures have no standard error. The default of -1 makes the right side negative, so that none of them
        # counts as close to the limit.
        close = [row for row in rows if abs(row[gate.norm] - gate.limit) <= 1.96 * row.get(f"{gate.norm}_stderr", -1.0)]
        if close:
            warn(f"{gate.norm}: the limit lies within the 95 % interval of {len(close)} of {len(rows)} samples")
        above = [row for row in rows if math.isnan(row[gate.norm]) or row[gate.norm] > gate.limit]
        if above:
            worst = max(above, key=lambda row: math.inf if math.isnan(row[gate.norm]) else row[gate.norm])
            pair = f" of {pair_name(worst['source'], worst['target'])}" if worst["source"] != UNKNOWN else ""
            raise GateError(
                f"{gate.norm} is above {gate.limit:g} for {len(above)} of {len(rows)} samples",
                f"largest: {worst[gate.norm]:.6g}, sample {worst['sample']}{pair}",
            )
