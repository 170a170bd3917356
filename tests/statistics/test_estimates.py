"""Estimates from products: their errors are honest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import jaccli
from jaccli.linear_maps.linear_map import Matrices
from jaccli.statistics.identity_distance import deviation
from jaccli.statistics.jackknife import jackknifed
from jaccli.statistics.probing import Probing, effort_of, estimated
from jaccli.statistics.product_estimates import estimated_deviation, estimated_spectrum
from jaccli.statistics.quadrature import bidiagonalised, spectral_figures
from jaccli.statistics.spectral import spectrum

N, SEEDS = 100, 200


def gauss(n: int = N, m: int = N, seed: int = 0) -> Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed)).double() / m**0.5


def turned(sigma: Tensor) -> Tensor:
    u, v = (torch.linalg.qr(gauss(seed=s)).Q for s in (1, 2))
    return u @ torch.diag(sigma) @ v


EYE = torch.eye(N).double()
COUNT = torch.arange(1, N + 1).double()
MATRICES: Mapping[str, Tensor] = {
    "gaussian": gauss(),
    "near the identity": EYE + 0.05 * gauss(),
    "one direction and noise": EYE + gauss(N, 1) @ gauss(1, N, 3) + 0.3 * gauss(seed=4),
    "1/k": turned(1 / COUNT),
    "1/sqrt k": turned(COUNT**-0.5),
}


def covered(truth: float, value: float, stderr: float) -> bool:
    return abs(value - truth) <= 1.96 * stderr


@pytest.mark.parametrize("probes", [24, 64])
@pytest.mark.parametrize("name", MATRICES)
def test_intervals_of_deviation_cover(name: str, probes: int) -> None:
    """Over 200 seeds 95 % intervals hold the exact value 90 to 99 % of the time.

    The identity's share, a square, is known to lie near 0 whenever the trace does: more than 99 % then.
    """
    matrix = MATRICES[name]
    truth = deviation(matrix)
    hits = dict.fromkeys(("frobenius", "relative", "trace", "alpha", "identity_share"), 0)
    a = Matrices(matrix[None])
    for seed in range(SEEDS):
        record = estimated_deviation(a, effort_of(probes, None, seed))[0]
        for field in hits:
            hits[field] += covered(truth[field], record[field], record[f"{field}_stderr"])
    shares = {field: count / SEEDS for field, count in hits.items()}
    assert all(share >= 0.90 for share in shares.values()), shares
    assert all(share <= 0.99 for field, share in shares.items() if field != "identity_share"), shares


@pytest.mark.parametrize("name", ["gaussian", "near the identity", "1/k", "1/sqrt k"])
def test_intervals_of_sums_over_the_spectrum_cover(name: str) -> None:
    truth = spectrum(MATRICES[name])
    hits: dict[str, float] = {}
    tried: dict[str, int] = {}
    for seed in range(SEEDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the logarithm is not to be had of all
            found = spectral_figures(Matrices(MATRICES[name][None]), 12, 25, torch.Generator().manual_seed(seed))
        for field, e in found.items():
            if not e.value.isnan().any():
                tried[field] = tried.get(field, 0) + 1
                hits[field] = hits.get(field, 0) + covered(truth[field], float(e.value), float(e.stderr))
    logs = {"log_volume", "log_abs_det"}
    assert set(hits) - logs == {"effective_rank", "participation_ratio"}
    assert name != "near the identity" or tried["log_abs_det"] == SEEDS
    hits = {field: count * SEEDS / tried[field] for field, count in hits.items() if tried[field] > SEEDS / 4}
    assert all(count / SEEDS >= 0.90 for count in hits.values()), hits
    assert all(count / SEEDS <= 0.99 for field, count in hits.items() if field not in logs), hits


def test_few_directions_are_known_exactly() -> None:
    """Hutch++: of a rank that is found, nothing is left to chance."""
    low = gauss(N, 2, 1) @ gauss(2, N, 2)
    run = Probing(Matrices(low[None]), torch.Generator().manual_seed(0))
    run.draw(8)
    assert run.concentrated
    run.deflate(4)
    assert float(run.exact()[0, 0]) == pytest.approx(float(low.square().sum()), rel=1e-10)
    assert float(run.exact()[0, 1]) == pytest.approx(float(low.trace()), rel=1e-10)
    assert float(run.samples()[..., 0].max()) < 1e-20
    assert run.spent == 8 + 4 + 4


def moments(mean: Tensor) -> dict[str, Tensor]:
    return {"squares": mean[..., 0], "trace": mean[..., 1]}


@pytest.mark.parametrize("tolerance", [0.2, 0.02, 1e-5])
def test_tolerance_is_met(tolerance: float) -> None:
    wide = gauss(900, 900)
    matrix = torch.stack([wide, wide + 3 * gauss(900, 1, 1) @ gauss(1, 900, 2)])
    found = estimated(Matrices(matrix), moments, "squares", effort_of(None, tolerance, 0))
    e, truth = found["squares"], matrix.square().sum((1, 2))
    assert torch.all(1.96 * e.stderr <= tolerance * e.value)
    assert torch.all((e.value - truth).abs() <= 2 * tolerance * truth)
    assert bool((e.stderr <= 1e-12 * e.value).all()) == (tolerance == 1e-5)  # at last it is exact


def test_products_are_what_was_asked_for() -> None:
    made = 0

    class Counted(Matrices):
        def _matmat(self, v: Tensor) -> Tensor:
            nonlocal made
            made += v.shape[-1]
            return super()._matmat(v)

        def _rmatmat(self, u: Tensor) -> Tensor:
            nonlocal made
            made += u.shape[-1]
            return super()._rmatmat(u)

    for matrix in (MATRICES["gaussian"], MATRICES["1/k"]):
        made = 0
        estimated(Counted(matrix[None]), moments, "squares", effort_of(40, None, 0))
        assert made == 40


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_bidiagonalisation(shape: tuple[int, int]) -> None:
    """After as many steps as columns B has the singular values of J."""
    matrix = gauss(*shape)
    a = Matrices(matrix[None]) if shape[0] >= shape[1] else Matrices(matrix.mT[None])
    n = min(shape)
    start = torch.full((1, n, 1), n**-0.5).double()
    diagonal, above = bidiagonalised(a, start, n)
    b = torch.diag(diagonal[0, 0]) + torch.diag(above[0, 0, : n - 1], 1)
    assert torch.allclose(torch.linalg.svdvals(b), torch.linalg.svdvals(matrix), atol=1e-10)


def test_invariant_spaces_end_the_recurrence() -> None:
    """Of an orthogonal J one step says it all, and further ones add nothing."""
    for matrix in (torch.linalg.qr(gauss()).Q, EYE, turned((COUNT > 50).double() + 1)):
        found = spectral_figures(Matrices(matrix[None]), 4, 10, torch.Generator().manual_seed(0))
        truth = spectrum(matrix)
        for field, e in found.items():
            assert abs(float(e.value) - truth[field]) <= 4 * float(e.stderr) + 1e-9, field


@pytest.mark.parametrize(
    ("why", "matrix", "steps"),
    [
        ("singular", gauss(N, 5) @ gauss(5, N, 1), N),
        ("singular", torch.diag((COUNT > 20).double()) @ gauss(), N),
        ("not known", turned(10 ** (-8 * COUNT / N)), 20),
    ],
)
def test_no_logarithm_where_the_rule_is_not_valid(why: str, matrix: Tensor, steps: int) -> None:
    with pytest.warns(jaccli.JaccliWarning, match=why):
        found = spectral_figures(Matrices(matrix[None]), 4, steps, torch.Generator().manual_seed(0))
    assert found["log_abs_det"].value.isnan().all()


def test_estimates_of_a_batch_are_those_of_its_samples() -> None:
    """Every sample's own figures, whatever lies beside it; seeds decide."""
    matrix = torch.stack(list(MATRICES.values()))
    records = estimated_spectrum(Matrices(matrix), effort_of(30, None, 3))
    for record, one in zip(records, matrix, strict=True):
        truth = spectrum(one)
        for field in ("frobenius", "mean_squared_singular_value", "effective_rank", "stable_rank", "spectral_norm"):
            assert abs(record[field] - truth[field]) <= 5 * record[f"{field}_stderr"] + 1e-6 * truth[field], field
        assert torch.allclose(torch.tensor(record["singular_values"]), torch.tensor(truth["singular_values"][:6]))
    again = estimated_spectrum(Matrices(matrix), effort_of(30, None, 3))
    assert repr(again) == repr(records)  # NaN are alike
    other = estimated_spectrum(Matrices(matrix), effort_of(30, None, 4))
    assert other[0]["frobenius"] != records[0]["frobenius"]


def test_estimates_in_python() -> None:
    """Of any map; what a record of ``spectrum`` holds too, and the trace."""
    matrix = torch.stack([MATRICES["gaussian"], MATRICES["near the identity"]])
    a = Matrices(matrix)
    found = jaccli.estimate(a - a.I, probes=30, seed=3)
    away = matrix - EYE
    assert set(found) >= {"frobenius", "trace", "spectral_norm", "mean_squared_singular_value", "log_abs_det"}
    for name, truth in (
        ("frobenius", away.flatten(1).norm(dim=1)),
        ("trace", away.diagonal(dim1=1, dim2=2).sum(1)),
        ("spectral_norm", torch.linalg.matrix_norm(away, 2)),
    ):
        assert torch.all((found[name].value - truth).abs() <= 4 * found[name].stderr + 1e-10)
    assert "trace" not in jaccli.estimate(Matrices(gauss(20, 30)[None]), probes=5)


def test_jackknife_of_a_mean_is_the_usual_error() -> None:
    probes = torch.randn(30, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    e = jackknifed(probes, lambda mean: {"mean": mean[..., 0]})["mean"]
    usual = probes[..., 0].std(0) / 30**0.5
    assert torch.allclose(e.stderr, usual * 2.045230 / 1.959964, rtol=1e-5)  # Student's t, 29 degrees of freedom


def test_one_probe_knows_no_error() -> None:
    e = jackknifed(torch.ones(1, 2, 1), lambda mean: {"mean": mean[..., 0]})["mean"]
    assert e.stderr.isinf().all()


def test_spectrum_of_a_real_network_by_products() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 30)).double()
    x = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)).double()
    a, j = jaccli.operator(model, x), jaccli.jacobian(model, x)
    for record, one in zip(estimated_deviation(a, effort_of(20, None, 0)), j, strict=True):
        truth = deviation(one)
        for field in ("frobenius", "trace", "alpha", "spectral"):
            assert abs(record[field] - truth[field]) <= 5 * record[f"{field}_stderr"] + 1e-9
