"""``jaccli bench``: methods raced on one layer pair, as rows of a table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jaccli.cli.flags import in_flags
from jaccli.cli.messages import release_messages
from jaccli.cli.opening import loaded
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import BenchRequest, BlocksRequest
from jaccli.names import pair_name

if TYPE_CHECKING:
    from jaccli.cli.work import Loaded
    from jaccli.planning.linearize import Pair
    from jaccli.run.benchmark import Contender, Race
    from jaccli.sinks.table import TableView
    from jaccli.sinks.terminal import Style

COLUMNS = ("method", "median", "predicted", "min..max", "relative", "peak", "planned", "error")
# What a terminal leaves out when it is too narrow, first to last.
_EXTRA = ("min..max", "planned", "predicted")
_LEGEND = {
    "median": "of the rounds",
    "predicted": "by the plan",
    "min..max": "in the same unit",
    "relative": "to the fastest, with a 95 % interval",
    "peak": "most memory held at once, J included",
    "planned": "the peak predicted",
    "error": "the largest of a sample's J",
}


def run(
    model: ModelRequest,
    inputs: InputRequest,
    pair: PairRequest,
    bench: BenchRequest,
    how: BlocksRequest,
    out: OutputRequest,
) -> None:
    """Race the methods on one pair and print the result."""
    from jaccli.sinks.table import TableView

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise
    with loaded(model, inputs, pair, how) as work:
        raced = bench.only(work.pairs)
        release_messages()
        result = _race(work, raced, bench, how)
        rows = _rows(result)
        content = document("bench", _body(rows, result, raced, work))
        view = TableView([_readable(row) for row in rows], COLUMNS, _title(result, raced), spare=_EXTRA)
        write_result(out, content, rows, view, lambda style: _below(rows, view, style, out.format))


def _race(work: Loaded, pair: Pair, bench: BenchRequest, how: BlocksRequest) -> Race:
    from jaccli.cli.progress import status
    from jaccli.run.benchmark import race

    with status(how.quiet, how.no_color) as say:
        return race(
            work.network,
            work.inputs,
            pair,
            bench.methods,
            rounds=bench.rounds,
            max_time=bench.max_time,
            max_memory=how.max_memory,
            chunk=how.chunk,
            compile=bench.compile,
            say=say,
        )


def _rows(result: Race) -> list[Record]:
    ran = [c for c in result.contenders if c.times_s]
    fastest = min(ran, key=lambda c: c.median_s, default=None)
    return [_row(contender, fastest) for contender in result.contenders]


def _row(contender: Contender, fastest: Contender | None) -> Record:
    """One method; without times where it failed, and ``fastest`` is None where all did."""
    row: Record = {
        "method": contender.method,
        "status": contender.status,
        "takes": contender.takes,
        "times_s": contender.times_s,
        "median_s": contender.median_s if contender.times_s else None,
        "relative": None,
        "peak_bytes": contender.peak_bytes,
        "max_error": contender.max_error,
    }
    if contender.times_s and fastest is not None:
        row |= _relative(contender, fastest) | _spread(contender)
    if contender.why:
        row["why"] = in_flags(contender.why)
    row |= {name: getattr(contender, name) for name in ("plan_s", "predicted_s", "predicted_bytes")}
    return row | ({"compile_s": contender.compile_s} if contender.compile_s is not None else {})


def _relative(contender: Contender, fastest: Contender) -> Record:
    from jaccli.run.benchmark import ratio_interval

    ratio, low, high = ratio_interval(contender.times_s, fastest.times_s)
    return {"relative": ratio, "relative_ci95": [low, high]}


def _spread(contender: Contender) -> dict[str, float]:
    import numpy as np

    low, high = np.quantile(contender.times_s, [0.25, 0.75])
    return {"min_s": min(contender.times_s), "max_s": max(contender.times_s), "iqr_s": float(high - low)}


def _body(rows: list[Record], result: Race, pair: Pair, work: Loaded) -> Record:
    """What json says beside the command's name."""
    import torch

    batch, n_out, n_in = result.shape
    return {
        "pair": {"source": {"layer": str(pair[0]), "size": n_in}, "target": {"layer": str(pair[1]), "size": n_out}},
        "samples": batch,
        "rounds": result.rounds,
        "threads": torch.get_num_threads(),
        "reference": result.reference.name,
        "methods": rows,
        "timing": work.timing.document(),
    }


def _title(result: Race, pair: Pair) -> str:
    batch, n_out, n_in = result.shape
    each = f"{'each of ' * (batch > 1)}{batch} sample" + "s" * (batch > 1)
    rounds = f"{result.rounds} round" + "s" * (result.rounds != 1)
    is_known = result.reference.matrix is not None
    against = f"errors against {result.reference.name}" if is_known else "no reference: no backward pass works"
    return f"{pair_name(*pair)}: J is {n_out} x {n_in} for {each}; {rounds}; {against}"


def _below(rows: list[Record], view: TableView, style: Style, format: str) -> str:
    """What follows the table: its legend (in markdown its title), and why methods failed."""
    from jaccli.text.escape import inert

    failed = [f"{row['method']} failed: {inert(row['why'])}\n" for row in rows if row["status"] != "ok"]
    if format == "table":
        return _legend(view, style) + "".join(failed)
    return f"\n{view.title}\n" + "".join("\n" + line for line in failed)


def _legend(view: TableView, style: Style) -> str:
    """What the columns that are shown mean."""
    from jaccli.sinks.table import columns_shown
    from jaccli.sinks.wrap import wrapped

    text = "; ".join(f"{name}: {_LEGEND[name]}" for name in columns_shown(view, style) if name in _LEGEND)
    return "\n".join(wrapped(text, style.width)) + "\n"


def _readable(row: Record) -> Record:
    from jaccli.text.quantities import human, seconds

    takes = f" ({row['takes']})" if row["takes"] not in ("", row["method"]) else ""
    shown = {"method": row["method"] + takes}
    if row["median_s"] is None:
        return shown | {"median": row["status"]}
    low, high = row["relative_ci95"]
    scale = 1e3 if row["median_s"] < 1 else 1  # the unit that ``seconds`` takes
    return shown | {
        "median": seconds(row["median_s"]),
        "predicted": seconds(row["predicted_s"]) if row["predicted_s"] is not None else "",
        "min..max": f"{row['min_s'] * scale:.3g}..{row['max_s'] * scale:.3g}",
        "relative": f"{row['relative']:.2f} [{low:.2f}, {high:.2f}]",
        "peak": human(row["peak_bytes"]),
        "planned": human(row["predicted_bytes"]) if row["predicted_bytes"] is not None else "",
        "error": f"{row['max_error']:.1e}" if row["max_error"] is not None else "",
    }
