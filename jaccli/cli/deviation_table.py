"""``jaccli deviation`` for people: a line a sample of one layer, a line a layer of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaccli.cli.figures import readable, record_name, rows_of
from jaccli.cli.results import Record
from jaccli.sinks.table import TableView

COLUMNS = ("frobenius", "relative", "spectral", "max_abs", "alpha", "identity_share")
# Of several samples of a layer: means and, of norms, the largest.
MEANS = ("relative", "relative max", "spectral", "spectral max", "alpha", "identity_share")
_HEADS = {"relative max": "max", "spectral max": "max"}
_SPARE = ("max_abs", "frobenius")
_SPARE_MEANS = ("identity_share", "spectral max", "relative max")


def view_of(pairs: Sequence[Record], per_sample: bool, saved: str = "") -> TableView:
    """The table of all pairs.

    Args:
        pairs: the records of the document.
        per_sample: a line a sample, also where there are several layers.
        saved: the file that J comes from, which stands for the layers' names where it does not tell them.
    """
    named = [end for end in ("source", "target") if len({r[end]["layer"] for r in pairs}) > 1]
    samples = {sample["sample"] for record in pairs for sample in record["samples"]}
    title, rows = _title(pairs, saved), rows_of(pairs)
    columns: Sequence[str] = COLUMNS
    spare: Sequence[str] = _SPARE
    if len(pairs) == 1 or per_sample:
        named = [*named, "sample"]
    elif len(samples) == 1:
        title += f", sample {samples.pop()}"
    else:
        rows, columns, spare = [_over_samples(record) for record in pairs], MEANS, _SPARE_MEANS
        title += f", means over {len(samples)} samples"
    present = [name for name in columns if any(name in row for row in rows)]
    return TableView([readable(row) for row in rows], [*named, *present], title, max(len(named), 1), spare, _HEADS)


def _over_samples(record: Record) -> Record:
    """One line of a layer: means over its samples, and the largest of each norm.

    A mean of estimates gets the mean of their standard errors: a bound on its own, also where estimates of samples are
    correlated.
    """
    line: Record = {end: record[end]["layer"] for end in ("source", "target")}
    for name, figures in record["summary"].items():
        line[name], line[f"{name} max"] = figures["mean"], figures["max"]
        errors = [sample.get(f"{name}_stderr") for sample in record["samples"]]
        if None not in errors:
            line[f"{name}_stderr"] = math.fsum(errors) / len(errors)
            values = [sample[name] for sample in record["samples"]]
            line[f"{name} max_stderr"] = errors[values.index(max(values))]
    return line


def _title(pairs: Sequence[Record], saved: str) -> str:
    if len(pairs) == 1:
        size = math.prod(pairs[0]["source"]["shape"])
        how = f", method {pairs[0]['method']}" if pairs[0]["method"] != "saved" else ""
        return f"J - I of {record_name(pairs[0], saved)}, {size} x {size}{how}"
    same = len({r["target"]["layer"] for r in pairs}) == 1
    return f"J - I of {len(pairs)} layers" + f" -> {pairs[0]['target']['layer']}" * same
