"""``jaccli spectrum``: singular values of J, what follows from them, and Lyapunov exponents of a chain of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import limits
from jaccli.cli.figures import Figures, of_model, of_saved, rows_of, saved_name
from jaccli.cli.figures_request import FiguresRequest, SpectrumRequest
from jaccli.cli.messages import release_messages
from jaccli.cli.opening import loaded
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest, SavedRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import RunRequest
from jaccli.errors import warn
from jaccli.text.quantities import dtype_name

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = (
    "the smallest singular values are rounding of {}: do not rely on them, nor on condition, determinant and log_volume"
)
_MORE = "; --dtype float64 tells more"


def run(
    model: ModelRequest,
    inputs: InputRequest,
    pair: PairRequest,
    figures: FiguresRequest,
    spectrum: SpectrumRequest,
    how: RunRequest,
    out: OutputRequest,
) -> None:
    """Singular values, and what follows from them, of every pair and sample of a model."""
    spectrum.check(figures)
    with loaded(model, inputs, pair, how) as work:
        if spectrum.lyapunov:
            from jaccli.cli.lyapunov_chain import write_exponents

            write_exponents(work, how, out)
        else:
            pairs = of_model(work, work.pairs, how, figures, _figures(spectrum))
            _finish(pairs, work.timing.document(), out, figures.per_sample)


def run_saved(
    saved: SavedRequest, figures: FiguresRequest, spectrum: SpectrumRequest, how: RunRequest, out: OutputRequest
) -> None:
    """The same of a saved Jacobian."""
    saved.check()
    spectrum.check(figures, of_saved_j=True)
    from jaccli.cli import work

    timing = work.Timing()
    with limits(how):
        pairs = of_saved(saved, _figures(spectrum))
        _finish(pairs, timing.document(), out, figures.per_sample, saved_name(saved.path))


def _figures(spectrum: SpectrumRequest) -> Figures:
    from jaccli.statistics.product_estimates import estimated_spectrum, ordered
    from jaccli.statistics.quadrature import PROBES, STEPS
    from jaccli.statistics.spectral import FIELDS, eigenvalues, singular_to_precision
    from jaccli.statistics.spectral import spectrum as spectrum_of

    def exact(matrix: Tensor) -> Record:
        record = spectrum_of(matrix)
        if singular_to_precision(matrix, record):
            warn(_ROUNDING.format(dtype_name(matrix.dtype)) + _MORE * (matrix.dtype.itemsize < 8))
        if spectrum.top is not None:
            record["singular_values"] = record["singular_values"][: spectrum.top]
        return record | (eigenvalues(matrix) if spectrum.eigenvalues else {})

    def estimated(a: Any, effort: Any) -> list[Record]:
        return [ordered(record, FIELDS) for record in estimated_spectrum(a, effort, spectrum.top)]

    summed = (*FIELDS[1:], *(("spectral_radius", "non_normality") if spectrum.eigenvalues else ()))
    return Figures(exact, estimated, spectrum.eigenvalues, summed, PROBES * STEPS // 4)


def _finish(
    pairs: list[Record], timing: dict[str, float], out: OutputRequest, per_sample: bool, saved: str = ""
) -> None:
    from jaccli.cli.spectrum_table import view_of
    from jaccli.statistics.isometry import isometry

    lines = isometry(pairs) if len(pairs) > 1 else []
    body = {"pairs": pairs, **({"isometry": lines} if lines else {}), "timing": timing}
    release_messages()
    write_result(out, document("spectrum", body), rows_of(pairs), view_of(pairs, lines, per_sample, saved))
