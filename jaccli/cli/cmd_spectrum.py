"""``jaccli spectrum``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import limits
from jaccli.cli.figures import Figures, Record, of_model, of_saved, rows_of, saved_name
from jaccli.cli.messages import release_messages
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

if TYPE_CHECKING:
    from torch import Tensor

    from jaccli.cli.work import Loaded
    from jaccli.sinks.table import TableView

_ROUNDING = (
    "the smallest singular values are rounding of {}: do not rely on them, nor on condition, determinant and log_volume"
)
_MORE = "; --dtype float64 tells more"
# Relative: of float32 products along a chain.
_CHAIN_ROUNDING = 1e-3


@dataclass(frozen=True)
class Wanted:
    """What to report beside singular values.

    Args:
        eigenvalues: eigenvalues, spectral radius and non-normality of a square J.
        lyapunov: the exponents of the chain of pairs between the layers named.
        top: how many singular values to list or, of an estimate, to look for.
        per_sample: in a table of several layers, a line a sample.
    """

    eigenvalues: bool
    lyapunov: bool
    top: int | None
    per_sample: bool = False


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
    if wanted.eigenvalues and wanted.lyapunov:
        raise UsageError("--eigenvalues and --lyapunov are both given", "expected one of them")
    asked, samples = model(), given()
    from jaccli.cli import work

    with limits(how):
        loaded = work.load(asked, samples, names)
        if wanted.lyapunov:
            _chain(loaded, how, out)
            return
        found = of_model(loaded, loaded.pairs, how, effort, _figures(wanted))
        _finish(found, loaded.timing.document(), out, wanted)


def run_saved(saved: SavedRequest, how: RunRequest, out: OutputRequest, wanted: Wanted) -> None:
    """The same of a saved Jacobian."""
    from jaccli.cli import work

    if wanted.lyapunov:
        raise UsageError("--lyapunov and --jacobian are both given", "expected a model, whose layers make the chain")
    timing = work.Timing()
    with limits(how):
        _finish(of_saved(saved, _figures(wanted)), timing.document(), out, wanted, saved_name(saved.path))


def _figures(wanted: Wanted) -> Figures:
    from jaccli.statistics.product_estimates import estimated_spectrum, ordered
    from jaccli.statistics.quadrature import PROBES, STEPS
    from jaccli.statistics.spectral import FIELDS, eigenvalues, singular_to_precision, spectrum

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


def _finish(found: list[Record], timing: dict[str, float], out: OutputRequest, wanted: Wanted, saved: str = "") -> None:
    from jaccli.cli.spectrum_table import view_of
    from jaccli.statistics.isometry import isometry

    document: Record = {"schema_version": 1, "command": "spectrum", "pairs": found}
    lines = isometry(found) if len(found) > 1 else []
    if lines:
        document["isometry"] = lines
    document["timing"] = timing
    _write(document, rows_of(found), view_of(found, lines, wanted.per_sample, saved), out)


def _write(document: Record, records: Sequence[Record], view: TableView, out: OutputRequest) -> None:
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_for

    style = style_for(out.path, out.no_color)
    release_messages()
    with open_output(out.path, out.force) as handle:
        write_numbers(out.format, handle, document=document, records=records, view=view, style=style)


def _chain(loaded: Loaded, how: RunRequest, out: OutputRequest) -> None:
    """Lyapunov exponents of the chain of pairs from the first layer named to the target."""
    from jaccli.cli import work
    from jaccli.cli.spectrum_table import chain_view
    from jaccli.statistics.spectral import lyapunov

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
    _write(document, [{**sample, "method": method} for sample in samples], chain_view(samples, names), out)


def _check_chain(chains: Sequence[Sequence[Tensor]], whole: Sequence[Tensor]) -> None:
    """The product along the chain is J of the whole, unless paths go around one of its layers."""
    import torch

    from jaccli.linear_maps.norms import norm, power_of_two

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


def _is_identity(matrices: Sequence[Tensor]) -> bool:
    import torch

    return all(m.shape[0] == m.shape[1] and torch.equal(m, torch.eye(len(m)).to(m)) for m in matrices)
