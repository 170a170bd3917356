"""The figures of ``deviation`` and ``spectrum`` from products with J alone, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jaccli.errors import UnsupportedError, UsageError, note, warn
from jaccli.linear_maps.extreme_singular_values import Extremes, extreme_singular_values
from jaccli.linear_maps.linear_map import LinearMap
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.linear_maps.rescaled import Rescaled, measured, rescaled
from jaccli.names import check_count, check_share
from jaccli.statistics import quadrature
from jaccli.statistics.consistency import check_records
from jaccli.statistics.jackknife import Estimate, NamedFigures, within
from jaccli.statistics.probing import Effort, effort_of, estimated
from jaccli.text.wording import term, worded

# A J below this size would lose digits in J − I.
SMALL = 2.0**-10
# How many of the largest singular values are computed by default.
TOP = 6
# With a tolerance, starting vectors of the quadrature are doubled up to this many.
MOST_PROBES = 256


def estimated_deviation(a: LinearMap, effort: Effort) -> list[dict[str, float]]:
    """‖D‖_F, ‖D‖_F/√n, ‖D‖₂, tr J, α and the identity's share, D = J − I: a record for each sample.

    From ‖D‖_F² and tr D by probing; ‖J‖_F² = ‖D‖_F² + 2 tr D + n. ``tolerance`` is of ``frobenius``. The error of
    ``spectral`` is the residual of its singular triple.

    Raises:
        UsageError: J is not square.
    """
    n, largest = a.shape[2], extreme_singular_values(a - a.I, 1)
    size, finite = measured(a)
    # A small J has no digits left in J − I: then J itself is probed.
    small = size < SMALL
    size = torch.where(small, size, size.clamp(min=1.0))
    shift = torch.where(small, 0.0, 1 / size)
    figures = estimated(
        Rescaled(a, size, shift, finite),
        lambda moments: _of_moments(moments, n, size, shift),
        "frobenius",
        effort,
    )
    figures["spectral"] = Estimate(largest.values[:, 0], largest.bounds[:, 0])
    of_d = torch.where(small, 1.0, size)
    sizes = {"frobenius": [of_d], "relative": [of_d], "trace": [size], "alpha": [size]}
    return _records(_of_size(figures, sizes, finite), a.shape[0])


def _of_moments(moments: Tensor, n: int, size: Tensor, shift: Tensor) -> NamedFigures:
    """Figures divided by s, ``(…, batch)``, from ‖J/s − cI‖_F² and its trace, ``(…, batch, 2)``, with c = 1/s.

    c is 0 for a small J; then they are not divided: ‖J − I‖_F² = n − 2 tr J + ‖J‖_F².
    """
    squares, trace = moments[..., 0].clamp(min=0), moments[..., 1] + n * shift
    whole = squares + 2 * shift * moments[..., 1] + n * shift.square()
    squared_distance = n - 2 * size * trace + size.square() * squares
    frobenius = torch.where(shift == 0, squared_distance, squares).sqrt()
    return {
        "frobenius": frobenius,
        "relative": frobenius / math.sqrt(n),
        "trace": trace,
        "alpha": trace / n,
        "identity_share": (trace.square() / n / whole).clamp(max=1.0),
    }


def estimate(
    a: LinearMap, *, probes: int | None = None, tolerance: float | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """What can be known about J without building it, each figure with its standard error.

    Args:
        a: J ``(batch, n_out, n_in)`` from ``jaccli.operator``, or made of such: ``A - A.I`` is J − I.
        probes: random vectors; 64 products for the norm and the trace, 16 starting vectors for sums over the
            spectrum if neither is given.
        tolerance: the largest 95 % interval to either side, as a share of ``mean_squared_singular_value`` and
            ``effective_rank``; vectors are doubled until it is met.
        seed: of the vectors.

    Returns:
        By name, ``Estimate(value, stderr)`` of ``(batch,)`` each, float64 on the CPU: ``frobenius``,
        ``mean_squared_singular_value``, ``stable_rank``, ``spectral_norm``, ``effective_rank``,
        ``participation_ratio``, ``log_volume``, and of a square J ``trace`` and ``log_abs_det``. Logarithms are
        natural. ``value ± 1.96 stderr`` holds the exact value in 95 % of cases.

    Raises:
        UsageError: ``a`` is no linear map, ``probes`` no positive number, ``tolerance`` not between 0 and 1.

    Cost: as many products; the quadrature takes 30 with J and 30 with Jᵀ for each starting vector.

    Source: norm and trace by Hutch++ (Meyer, Musco, Musco and Woodruff, 2021), sums over the spectrum by stochastic
    Lanczos quadrature (Ubaru, Chen and Saad, 2017), standard errors by the jackknife (Tukey, 1958).

    Example:
        >>> import jaccli, torch
        >>> j = jaccli.operator(torch.nn.Tanh(), torch.zeros(1, 4))  # the identity
        >>> figures = jaccli.estimate(j)
        >>> round(float(figures["frobenius"].value), 3), round(float(figures["effective_rank"].value), 3)
        (2.0, 4.0)
    """
    _check(a, probes, tolerance)
    estimates = _estimates(a, effort_of(probes, tolerance, seed), extreme_singular_values(a, 1))
    check_records(_records(estimates, a.shape[0]), a.shape[1:], "estimate")
    return estimates


def _check(a: object, probes: object, tolerance: object) -> None:
    if not isinstance(a, LinearMap):
        what = f"what is to be estimated is an object of type {type(a).__name__}"
        raise UsageError(what, "expected a linear map", "jaccli.operator(model, x) makes one")
    if probes is not None:
        check_count("probes", probes, ", or None")
    if tolerance is not None:
        given, example = term("tolerance", repr(tolerance)), worded("as {tolerance:0.05}")
        check_share(tolerance, given, "expected a share between 0 and 1, or None", example)


def _estimates(j: LinearMap, effort: Effort, largest: Extremes) -> dict[str, Estimate]:
    a, n = rescaled(j), min(j.shape[1:])
    size = a.size
    absolute = Estimate(largest.values[:, 0], largest.bounds[:, 0])
    norm = Estimate(absolute.value / size, absolute.stderr / size)

    def figures(moments: Tensor) -> NamedFigures:
        squares = moments[..., 0].clamp(min=0)
        values = {
            "frobenius": squares.sqrt(),
            "mean_squared_singular_value": squares / n,
            "stable_rank": torch.where(norm.value > 0, squares / norm.value.square(), 0.0),
        }
        return values | ({"trace": moments[..., 1]} if a.shape[1] == a.shape[2] else {})

    moments = estimated(a, figures, "mean_squared_singular_value", effort)
    # The ratio ‖J‖_F²/‖J‖₂²: the relative error of its denominator is twice that of the norm.
    ratio = moments["stable_rank"]
    off = torch.where(norm.value > 0, norm.stderr / norm.value, 0.0)
    error = (ratio.stderr.square() + (2 * ratio.value * off).square()).sqrt()
    estimates = {**moments, "stable_rank": Estimate(ratio.value, error), **_sums(a, effort)}
    for name in {"log_volume", "log_abs_det"} & estimates.keys():  # det(sA) = sⁿ det A
        estimates[name] = Estimate(estimates[name].value + n * size.log(), estimates[name].stderr)
    sizes = {"frobenius": [size], "trace": [size], "mean_squared_singular_value": [size, size]}
    return _of_size(estimates, sizes, a.finite) | {"spectral_norm": absolute}


def _of_size(estimates: dict[str, Estimate], sizes: dict[str, list[Tensor]], finite: Tensor) -> dict[str, Estimate]:
    """Figures of a rescaled J as those of J: times their sizes, ``(batch,)`` each, NaN where J is not ``finite``."""
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        warn(f"J of {int((~finite).sum())} of {len(finite)} samples is not finite (first: {first}): figures are NaN")

    def scaled(x: Tensor, name: str) -> Tensor:
        for size in sizes.get(name, []):
            x = x * size
        return torch.where(finite, x, torch.nan)

    return {name: Estimate(scaled(e.value, name), scaled(e.stderr, name)) for name, e in estimates.items()}


def estimated_spectrum(a: LinearMap, effort: Effort, top: int | None = None) -> list[dict[str, Any]]:
    """The ``top`` largest singular values, and the figures of ``estimate``: a record for each sample.

    A record has ``condition`` if the smallest singular value converges.
    """
    batch, n_out, n_in = a.shape
    largest = extreme_singular_values(a, min(top or TOP, n_out, n_in))
    estimates = _estimates(a, effort, largest)
    records: list[dict[str, Any]] = _records(estimates, batch)
    for b, record in enumerate(records):
        record["singular_values"] = largest.values[b].tolist()
        record["singular_values_stderr"] = largest.bounds[b].tolist()
    for record, condition in zip(records, _conditions(a, estimates["spectral_norm"]), strict=True):
        record.update(condition)
    return records


def _sums(a: MatrixFree, effort: Effort) -> dict[str, Estimate]:
    probes = effort.probes or quadrature.PROBES
    while True:
        sums = quadrature.spectral_figures(a, probes, quadrature.STEPS, effort.generator, effort.most)
        if effort.tolerance is None or within(sums["effective_rank"], effort.tolerance):
            return sums
        if 2 * probes > MOST_PROBES:
            share, text = (
                f"{effort.tolerance:g}",
                "{tolerance:{share}}: after {n} starting vectors the effective rank is further off",
            )
            note(worded(text, share=share, n=probes))
            return sums
        probes *= 2


def _conditions(a: LinearMap, norm: Estimate) -> list[dict[str, float]]:
    """σ_max/σ_min and its standard error of each sample; no entry if the smallest singular value does not converge."""
    try:
        smallest = extreme_singular_values(a, 1, "smallest")
    except UnsupportedError:
        note("condition: the smallest singular value did not converge in products alone; it needs J")
        return [{} for _ in range(a.shape[0])]
    low, error = smallest.values[:, 0], smallest.bounds[:, 0]
    safe = low > 2 * error  # otherwise it may be zero
    ratio = norm.value / low
    stderr = ratio * torch.hypot(error / low, norm.stderr / norm.value)
    return [
        {"condition": float(ratio[b]), "condition_stderr": float(stderr[b])} if bool(safe[b] | low[b].isnan()) else {}
        for b in range(a.shape[0])
    ]


def _records(figures: dict[str, Estimate], batch: int) -> list[dict[str, Any]]:
    """Estimates of ``(batch,)`` as a record for each sample: each figure, and its error as ``NAME_stderr``."""
    return [
        {
            key: float(value[b])
            for name, e in figures.items()
            for key, value in ((name, e.value), (f"{name}_stderr", e.stderr))
        }
        for b in range(batch)
    ]


def ordered(record: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """A record in the order of ``fields``, each error after its figure."""
    names = [key for name in fields for key in (name, f"{name}_stderr")]
    return {key: record[key] for key in names if key in record}
