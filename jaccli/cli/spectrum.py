"""``jaccli spectrum``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import deadline
from jaccli.cli.figures import Figures, Record, of_model, of_saved, readable, rows_of
from jaccli.cli.request import (
    EstimateRequest,
    InputRequest,
    ModelRequest,
    OutputRequest,
    PairRequest,
    RunRequest,
    SavedRequest,
)
from jaccli.errors import UnsupportedError, UsageError, note, warn
from jaccli.safety.memory import memory_limit

if TYPE_CHECKING:
    from torch import Tensor

    from jaccli.cli.work import Loaded

# For people: shorter heads, and the ends of the list of singular values.
_HEADS = {
    "spectral_norm": "σ max",
    "smallest": "σ min",
    "condition": "condition",
    "mean_squared_singular_value": "mean σ²",
    "effective_rank": "eff. rank",
    "stable_rank": "stable rank",
    "log_abs_det": "log|det|",
    "spectral_radius": "max|λ|",
    "non_normality": "non-normal",
    "relative_variance": "var σ²/mean²",
    "gain": "gain",
}
_ROUNDING = (
    "the smallest singular values are rounding of {}: do not rely on them, nor on condition, log_abs_det and log_volume"
)
_MORE = "; --dtype float64 tells more"
# Relative: of float32 products along a chain.
_CHAIN_ROUNDING = 1e-3
_DEPTH = ("relative_variance", "gain")
_ESTIMATED = ("spectral_norm", "mean_squared_singular_value", "effective_rank", "log_abs_det")


@dataclass(frozen=True)
class Wanted:
    """What to report beside singular values.

    Args:
        eigenvalues: eigenvalues, spectral radius and non-normality of a square J.
        lyapunov: the exponents of the chain of pairs between the layers named.
        top: how many singular values to list or, of an estimate, to look for.
    """

    eigenvalues: bool
    lyapunov: bool
    top: int | None


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest],
    names: PairRequest,
    how: RunRequest,
    out: OutputRequest,
    effort: EstimateRequest,
    wanted: Wanted,
) -> None:
    """Singular values, and what follows from them, of every pair and sample of a model."""
    for flag, asked_for in (("--eigenvalues", wanted.eigenvalues), ("--lyapunov", wanted.lyapunov)):
        if asked_for and effort.wanted:
            raise UsageError(f"{flag} and an estimate are both asked for", f"expected one of them: {flag} needs J")
    asked, samples = model(), given()
    from jaccli.cli import work

    with deadline(how.timeout), memory_limit(how.max_memory):
        loaded = work.load(asked, samples, names)
        if wanted.lyapunov:
            _chain(loaded, how, out)
            return
        found = of_model(loaded, loaded.pairs, how, effort, _figures(wanted))
        globbed = len(found) > 1
        _finish(found, loaded.timing.document(), out, wanted, depth=globbed)


def run_saved(saved: SavedRequest, how: RunRequest, out: OutputRequest, wanted: Wanted) -> None:
    """The same of a saved Jacobian."""
    from jaccli.cli import work

    if wanted.lyapunov:
        raise UsageError("--lyapunov and --jacobian are both given", "expected a model, whose layers make the chain")
    timing = work.Timing()
    with deadline(how.timeout), memory_limit(how.max_memory):
        _finish(of_saved(saved, _figures(wanted)), timing.document(), out, wanted, depth=False)


def _figures(wanted: Wanted) -> Figures:
    from jaccli.statistics.of_products import estimated_spectrum, ordered
    from jaccli.statistics.quadrature import PROBES, STEPS
    from jaccli.statistics.spectrum import FIELDS, eigenvalues, singular_to_precision, spectrum

    def exact(matrix: Tensor) -> Record:
        record = spectrum(matrix)
        if singular_to_precision(matrix, record):
            warn(_ROUNDING.format(str(matrix.dtype).removeprefix("torch.")) + _MORE * (matrix.dtype.itemsize < 8))
        if wanted.top is not None:
            record["singular_values"] = record["singular_values"][: wanted.top]
        return record | (eigenvalues(matrix) if wanted.eigenvalues else {})

    def estimated(a: Any, effort: Any) -> list[Record]:
        return [ordered(record, FIELDS) for record in estimated_spectrum(a, effort, wanted.top)]

    summed = (*FIELDS[1:], *(("spectral_radius", "non_normality") if wanted.eigenvalues else ()))
    return Figures(exact, estimated, wanted.eigenvalues, summed, PROBES * STEPS // 4)


def _finish(found: list[Record], timing: dict[str, float], out: OutputRequest, wanted: Wanted, depth: bool) -> None:
    from jaccli.statistics.isometry import isometry

    document: Record = {"schema_version": 1, "command": "spectrum", "pairs": found}
    lines = isometry(found) if depth else []
    if depth:
        document["isometry"] = lines
    document["timing"] = timing
    rows = rows_of(found)
    if depth and out.format in ("table", "markdown"):
        columns = ["source", "spectral_norm", "smallest", "mean_squared_singular_value", "relative_variance", "gain"]
        samples = len(found[0]["samples"])
        title = f"spectra of J to {found[0]['target']['layer']}, means over {samples} samples"
        _write(document, lines, rows, columns, title, out)
        return
    for row in rows:
        if "singular_values_stderr" not in row:
            row["smallest"] = row["singular_values"][-1] if wanted.top is None else None
    columns = [
        c for c in _HEADS if c not in ("relative_variance", "gain") and any(row.get(c) is not None for row in rows)
    ]
    _write(document, rows, rows, ["sample", *columns], _title(found), out)


def _write(
    document: Record,
    shown: Sequence[Record],
    rows: Sequence[Record],
    columns: list[str],
    title: str,
    out: OutputRequest,
) -> None:
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_for

    style = style_for(out.path, out.no_color)
    people = out.format in ("table", "markdown")
    with open_output(out.path, out.force) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=[_headed(readable(row)) for row in shown] if people else [_plain(row) for row in rows],
            columns=[_HEADS.get(c, c) for c in columns] if people else None,
            title=title if out.format == "table" else "",
            style=style,
        )


def _headed(row: Record) -> Record:
    return {_HEADS.get(name, name): value for name, value in row.items()}


def _plain(row: Record) -> Record:
    return {name: value for name, value in row.items() if name != "smallest"}


def _title(found: Sequence[Record]) -> str:
    source, target = (found[0][end] for end in ("source", "target"))
    sizes = f"{math.prod(target['shape'])} x {math.prod(source['shape'])}"
    return f"spectrum of J, {source['layer']} -> {target['layer']}, {sizes}, method {found[0]['method']}"


def _chain(loaded: Loaded, how: RunRequest, out: OutputRequest) -> None:
    """Lyapunov exponents of the chain of pairs from the first layer named to the target."""
    from jaccli.cli import work
    from jaccli.statistics.spectrum import lyapunov

    stops = [pair[0] for pair in loaded.pairs if pair[0] != loaded.pairs[0][1]] + [loaded.pairs[0][1]]
    pairs, whole = list(pairwise(stops)), (stops[0], stops[-1])
    found: dict[Any, list[Any]] = {}
    method, trivial = "", set[Any]()
    for piece in work.pieces(loaded, [*pairs, *([whole] if len(pairs) > 1 else [])], how):
        found.setdefault(piece.pair, []).extend(piece.outcome.matrix)
        method = piece.outcome.method
        if piece.trivial:
            trivial.add(piece.pair)
    for source, target in pairs:
        if (source, target) not in found:
            raise UnsupportedError(
                f"--lyapunov: there is no J of {source!s} -> {target!s}", "expected layers that follow on each other"
            )
    if len(pairs) > 1 and pairs[-1] in trivial:
        note(f"{pairs[-1][0]!s} is {pairs[-1][1]!s} itself: no step of the chain")
        pairs, stops = pairs[:-1], stops[:-1]
    matrices = {n: [found[pair][k] for pair in pairs] for k, n in enumerate(loaded.numbers)}
    if len(pairs) > 1:
        _check_chain(list(matrices.values()), found[whole])
    names = [str(stop) for stop in stops]
    samples: list[Record] = [
        {"sample": n, "lyapunov_exponents": lyapunov(chain).tolist()} for n, chain in matrices.items()
    ]
    document = {
        "schema_version": 1,
        "command": "spectrum",
        "lyapunov": {"layers": names, "method": method, "samples": samples},
        "timing": loaded.timing.document(),
    }
    shown = [
        {"sample": s["sample"], "largest": e[0], "least": e[-1], "sum": sum(e), "exponents": _few(e)}
        for s in samples
        if (e := s["lyapunov_exponents"])
    ]
    title = f"Lyapunov exponents of {len(pairs)} steps, {names[0]} -> {names[-1]}, per step"
    lines = [{**sample, "method": method} for sample in samples]
    _write(document, shown, lines, ["sample", "largest", "least", "sum", "exponents"], title, out)


def _check_chain(chains: Sequence[Sequence[Tensor]], whole: Sequence[Tensor]) -> None:
    """The product along the chain is J of the whole, unless paths go around one of its layers."""
    import torch

    from jaccli.operators.magnitude import norm, power_of_two

    for chain, j in zip(chains, whole, strict=True):
        v = torch.randn(j.shape[1], generator=torch.Generator().manual_seed(0)).to(j.device, torch.float64)
        v = v / power_of_two(j)  # so that images are near 1
        image, size = v, float(norm(j) * norm(v))
        for matrix in chain:
            image = matrix.double() @ image
            size = max(size, float(norm(image)))
        if float(norm(image - j.double() @ v)) > _CHAIN_ROUNDING * size:
            warn(
                "--lyapunov: the product along these layers is not J of the whole: paths go around one of them "
                "(a skip connection), and the exponents are those of the product alone"
            )
            return


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{v:.3g}" for v in values[:4])
    return shown + (", …" if len(values) > 4 else "")
