"""``jaccli spectrum`` for people: a line a sample of one layer, a line a layer of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaccli.cli.figures import readable, record_name, rows_of
from jaccli.cli.results import Record
from jaccli.sinks.table import TableView
from jaccli.statistics.isometry import smallest

_HEADS = {
    "spectral_norm": "σ max",
    "smallest": "σ min",
    "mean_squared_singular_value": "mean σ²",
    "effective_rank": "eff. rank",
    "stable_rank": "stable rank",
    "log_abs_det": "log|det|",
    "spectral_radius": "max|λ|",
    "non_normality": "non-normal",
    "relative_variance": "var σ²/mean²",
}
_EIGENVALUES = ("spectral_radius", "non_normality")
_FIGURES = (
    "spectral_norm",
    "smallest",
    "condition",
    "mean_squared_singular_value",
    "effective_rank",
    "stable_rank",
    "log_abs_det",
    *_EIGENVALUES,
)
_MEANS = ("spectral_norm", "smallest", "mean_squared_singular_value", "relative_variance", "gain")


def view_of(pairs: Sequence[Record], isometry: Sequence[Record], per_sample: bool, saved: str = "") -> TableView:
    """The table of all pairs.

    Args:
        pairs: the records of the document.
        isometry: of several layers: a line each, means over samples.
        per_sample: a line a sample, also where there are several layers.
        saved: the file that J comes from, which stands for the layers' names where it does not tell them.
    """
    title = _title(pairs, saved)
    if isometry and not per_sample:
        title += f", means over {len(pairs[0]['samples'])} samples"
        rows = [{**line, **_means(record)} for line, record in zip(isometry, pairs, strict=True)]
        names = [end for end in ("source", "target") if len({line[end] for line in isometry}) > 1] or ["source"]
        columns = [*names, *(n for n in (*_MEANS, *_EIGENVALUES) if any(row.get(n) is not None for row in rows))]
        return TableView([readable(row) for row in rows], columns, title, len(names), heads=_HEADS)
    rows = [{**row, "smallest": smallest(record, row)} for record in pairs for row in rows_of([record])]
    named = [end for end in ("source", "target") if len({row[end] for row in rows}) > 1] + ["sample"]
    columns = [*named, *(name for name in _FIGURES if any(row.get(name) is not None for row in rows))]
    return TableView([readable(row) for row in rows], columns, title, len(named), heads=_HEADS)


def _means(record: Record) -> Record:
    return {name: record["summary"][name]["mean"] for name in _EIGENVALUES if name in record["summary"]}


def chain_view(samples: Sequence[Record], layers: Sequence[str]) -> TableView:
    """The table of ``--lyapunov``."""
    rows = [
        {"sample": s["sample"], "largest": e[0], "least": e[-1], "sum": sum(e), "exponents": _few(e)}
        for s in samples
        if (e := s["lyapunov_exponents"])
    ]
    steps = "1 step" if len(layers) == 2 else f"{len(layers) - 1} steps"
    title = f"Lyapunov exponents of {steps}, {layers[0]} -> {layers[-1]}, per step"
    return TableView([readable(row) for row in rows], ["sample", "largest", "least", "sum", "exponents"], title)


def _title(pairs: Sequence[Record], saved: str) -> str:
    source, target = (pairs[0][end] for end in ("source", "target"))
    if len(pairs) > 1:
        same = len({record["target"]["layer"] for record in pairs}) == 1
        return f"spectra of J to {target['layer']}" if same else f"spectra of {len(pairs)} pairs"
    sizes = f"{math.prod(target['shape'])} x {math.prod(source['shape'])}"
    how = f", method {pairs[0]['method']}" if pairs[0]["method"] != "saved" else ""
    return f"spectrum of J, {record_name(pairs[0], saved)}, {sizes}{how}"


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{v:.3g}" for v in values[:4])
    return shown + (", …" if len(values) > 4 else "")
