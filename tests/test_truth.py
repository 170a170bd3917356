"""Against truth in closed form, by the Python interface; each truth and its source stand in ``closed_forms``."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.statistics.identity_distance import deviation
from jaccli.statistics.isometry import isometry
from jaccli.statistics.spectral import eigenvalues, lyapunov, singular_to_precision, spectrum
from tests.closed_forms import (
    BY_NAME,
    CHAINS,
    FIELDS,
    LAWS,
    LOGS,
    TABLE,
    Chain,
    Closed,
    Field,
    Known,
    Law,
    build,
    chain,
    dense,
    hold,
    hold_eigenvalues,
    hold_estimates,
    hold_sigma,
    mean_field,
    normal,
    riding,
)
from tests.oracle import error

SIZE, LARGE = 8, 128
PROBES = 48
DRAWS = 2000
NETWORKS = 24
WIDTH = 200


def name_of(case: Any) -> str:
    return str(case.name).replace(",", "").replace(" ", "-")


def knowns(c: Closed, n: int = SIZE) -> tuple[nn.Module, Tensor, list[Known]]:
    model, x = build(c.name, n), c.samples(n)
    return model, x, [c.known(model, one) for one in x.numpy()]


@pytest.mark.parametrize("method", ["auto", "structured", "reverse", "forward"])
@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_matrix(c: Closed, method: str) -> None:
    model, x, known = knowns(c)
    truth = torch.from_numpy(np.stack([k.matrix for k in known]))
    assert error(jaccli.jacobian(model, x, method=method), truth) < 1e-12


@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_figures(c: Closed) -> None:
    model, x, known = knowns(c)
    for matrix, k in zip(jaccli.jacobian(model, x), known, strict=True):
        found = spectrum(matrix) | (eigenvalues(matrix) if k.square else {})
        hold(found, k.of_spectrum())
        assert singular_to_precision(matrix, found) == k.singular
        if k.sigma is not None:
            hold_sigma(found["singular_values"], k.sigma)
        if k.eigenvalues is not None:
            hold_eigenvalues(found["eigenvalues"], k.eigenvalues)
        if k.square:
            hold(deviation(matrix), k.of_deviation())


@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_operator(c: Closed) -> None:
    model, x, known = knowns(c)
    a = jaccli.operator(model, x)
    figures = [k.of_spectrum() for k in known]
    assert a.frobenius().tolist() == pytest.approx([f["frobenius"] for f in figures], rel=1e-12)
    if known[0].sigma is not None:
        assert a.spectral_norm().tolist() == pytest.approx([f["spectral_norm"] for f in figures], rel=1e-12)
        for k, every, three in zip(known, a.singular_values(), a.singular_values(2), strict=True):
            assert k.sigma is not None
            assert len(every) == len(k.sigma)
            hold_sigma(every.tolist(), k.sigma)
            hold_sigma(three.tolist(), k.sigma)
    if known[0].square:
        away = [k.of_deviation() for k in known]
        assert a.trace().tolist() == pytest.approx([d["trace"] for d in away], abs=1e-12)
        assert (a - a.I).frobenius().tolist() == pytest.approx([d["frobenius"] for d in away], abs=1e-12)
        assert (a - a.I).trace().tolist() == pytest.approx([d["trace"] - SIZE for d in away], abs=1e-12)


@pytest.mark.parametrize("name", ["identity", "Householder", "rotations", "cyclic shift", "planar flow", "RMS norm"])
def test_largest_singular_values_of_a_large_jacobian(name: str) -> None:
    """Beyond a full decomposition, where σ are equal, in pairs or all together."""
    model, x, (known, *_) = knowns(BY_NAME[name], 450)
    a = jaccli.operator(model, x[:1])
    assert known.sigma is not None
    (found,) = a.singular_values(4).tolist()
    hold_sigma(found, known.sigma, 1e-6)
    away = a - a.I
    assert away.spectral_norm().tolist() == pytest.approx([known.deviation["spectral"]], rel=1e-6, abs=1e-12)


SQUARE = [c for c in TABLE if knowns(c)[2][0].square]


@pytest.mark.parametrize("c", SQUARE, ids=name_of)
def test_identity_deviation(c: Closed) -> None:
    """‖J − I‖_F²: 0 of the identity, 4 of a reflection, 2n of a cyclic shift, …"""
    model, x, known = knowns(c)
    found = jaccli.identity_deviation(model, x).detach()
    assert found.tolist() == pytest.approx([k.of_deviation()["frobenius"] ** 2 for k in known], rel=1e-12, abs=1e-20)


@pytest.mark.parametrize("c", SQUARE, ids=name_of)
def test_identity_deviation_by_probes(c: Closed) -> None:
    """The mean over N probes v of ±1 of vᵀMv, M = DDᵀ: its variance is 2 (‖M‖_F² − Σ M_ii²)/N (Hutchinson 1989)."""
    model, x, known = knowns(c)
    batch, probes = 512, 4
    d = known[0].matrix - np.eye(SIZE)
    m = d @ d.T
    sd = math.sqrt(max(2 * ((m**2).sum() - (m.diagonal() ** 2).sum()), 0.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = jaccli.identity_deviation(
            model, x[:1].expand(batch, -1), estimator="hutchinson", probes=probes, generator=generator
        )
    truth = known[0].of_deviation()["frobenius"] ** 2
    assert abs(float(found.mean()) - truth) <= 4 * sd / math.sqrt(batch * probes) + 1e-9 * truth
    # The spread of single probes is known too; a variance over 512 draws is known to some 20 %.
    assert float(found.std()) == pytest.approx(sd / math.sqrt(probes), rel=0.25, abs=1e-7)


def within(values: Any, truth: float, z: float = 4.0, allowed: float = 0.0) -> None:
    """The mean of independent values is within z of its standard errors of the truth, and says something."""
    found = np.asarray(values, dtype=float)
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - truth) <= z * error + allowed, (found.mean(), error, truth)


def sum_of_fourths(record: dict[str, Any]) -> float:
    """Σσ⁴ = ‖J‖_F⁴ / participation ratio; 0 of a ReLU network that is dead."""
    return float(record["frobenius"] ** 4 / record["participation_ratio"]) if record["frobenius"] else 0.0


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_estimates(c: Closed) -> None:
    """Of J, and of J − I: fewer products than J has columns."""
    model, x, (known, *_) = knowns(c, LARGE)
    a = jaccli.operator(model, x[:1])
    truth = known.of_spectrum() | ({"trace": float(known.matrix.trace())} if known.square else {})
    trace = math.sqrt(2 / PROBES)  # the variance of gᵀJg is at most 2‖J‖_F²
    reach = dict.fromkeys(LOGS, 0.1 * LARGE) | {"trace": 3 * trace * truth["frobenius"]}
    names = hold_estimates(record_of(a), truth, reach, c.settles)
    assert {"frobenius", "mean_squared_singular_value"} <= names
    if known.sigma is not None:
        assert {"spectral_norm", "stable_rank", "participation_ratio", "effective_rank"} <= names
    if known.square:
        away = known.of_deviation()
        found = {n: v for n, v in record_of(a - a.I).items() if n.split("_")[0] in ("frobenius", "trace", "spectral")}
        found |= {"spectral": found["spectral_norm"], "spectral_stderr": found["spectral_norm_stderr"]}
        truth = {name: away[name] for name in ("frobenius", "trace", "spectral") if name in away}
        truth["trace"] -= LARGE
        reach = {"trace": 3 * trace * truth["frobenius"]}
        assert {"frobenius", "trace"} <= hold_estimates(found, truth, reach, c.settles)


def record_of(a: Any) -> dict[str, float]:
    found = jaccli.estimate(a, probes=PROBES, seed=1)
    values = {name: float(e.value[0]) for name, e in found.items()}
    return values | {f"{name}_stderr": float(e.stderr[0]) for name, e in found.items()}


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
def test_the_logarithm_of_an_ill_conditioned_jacobian_is_estimated_honestly() -> None:
    """log det = log(n + 1) of the second difference, condition 6700: in its interval at 16 of 20 seeds, or refused."""
    c, n, seeds = BY_NAME["second difference"], LARGE, 20
    a = jaccli.operator(build(c.name, n), c.samples(n, 1))
    hits = 0
    for seed in range(seeds):
        found = jaccli.estimate(a, probes=16, seed=seed)["log_abs_det"]
        value, error = float(found.value[0]), float(found.stderr[0])
        hits += math.isnan(value) or abs(value - math.log(n + 1)) <= 1.96 * error
    assert hits >= 16, hits


@pytest.mark.parametrize("law", LAWS, ids=name_of)
def test_expectations_over_weights(law: Law) -> None:
    """Of 2000 draws, every sample has weights of its own: means within 4 standard errors."""
    truth = law.truth
    model = riding([*law.widths], law.sigma, law.kind)
    j = jaccli.jacobian(model, normal(DRAWS, law.numbers, seed=7), "state")
    records = [spectrum(matrix) for matrix in j]
    squares = np.array([r["frobenius"] ** 2 for r in records])
    smaller = min(law.widths[0], law.widths[-1])
    within(squares, truth.squares)
    within([smaller * r["mean_squared_singular_value"] for r in records], truth.squares)
    within(squares**2, truth.squares_squared)
    within([sum_of_fourths(r) for r in records], truth.fourths)
    if truth.deviation is not None and truth.trace is not None:
        away = [deviation(matrix) for matrix in j]
        within([d["frobenius"] ** 2 for d in away], truth.deviation)
        within([d["trace"] for d in away], truth.trace)
        within(jaccli.identity_deviation(model, normal(DRAWS, law.numbers, seed=7), "state").detach(), truth.deviation)


@pytest.mark.parametrize("law", LAWS, ids=name_of)
def test_one_wide_network_is_near_its_expectation(law: Law) -> None:
    """The same laws for ordinary layers 24 times as wide: one draw, within 4 of the law's own standard deviations."""
    wide = Law(law.name, law.source, tuple(24 * n for n in law.widths), law.sigma, law.kind)
    model = dense([*wide.widths], wide.sigma, wide.kind, 1)
    found = spectrum(jaccli.jacobian(model, normal(1, wide.widths[0], seed=2))[0])
    sd = math.sqrt(wide.truth.variance)
    assert sd < 0.15 * wide.truth.squares
    assert abs(found["frobenius"] ** 2 - wide.truth.squares) <= 4 * sd
    assert sum_of_fourths(found) == pytest.approx(wide.truth.fourths, rel=8 * sd / wide.truth.squares)


@pytest.mark.parametrize("f", FIELDS, ids=name_of)
def test_mean_field(f: Field) -> None:
    """24 networks of width 200: means within 3 standard errors and the 4/n that the theory leaves out."""
    means, variances = [], []
    for seed in range(NETWORKS):
        x = normal(1, WIDTH, seed=77 + seed)
        x *= math.sqrt(f.x_square * WIDTH) / x.norm()
        found = spectrum(jaccli.jacobian(mean_field(f.name, WIDTH, seed), x)[0])
        means.append(found["mean_squared_singular_value"] / f.chi**f.depth)
        pair = {"layer": "", "shape": [WIDTH]}
        (line,) = isometry([{"source": pair, "target": pair, "samples": [found]}])
        variances.append(line["relative_variance"] / f.variance(f.depth))
    within(means, 1.0, 3.0, 4 / WIDTH)
    within(variances, 1.0, 3.0, 4 / WIDTH)


@pytest.mark.parametrize("c", CHAINS, ids=name_of)
def test_lyapunov_exponents(c: Chain) -> None:
    starts, model = c.starts(), chain(c.name)
    x = torch.from_numpy(starts)
    names = ["input", *(f"steps.{k}" for k in range(c.count - 1)), "output"]
    steps = [jaccli.jacobian(model, x, a, b) for a, b in pairwise(names)]
    found = [lyapunov([step[b] for step in steps]).tolist() for b in range(len(starts))]
    for start, exponents in zip(starts, found, strict=True):
        assert sum(exponents) == pytest.approx(c.total(start), rel=1e-9, abs=1e-9)
        if c.exponents is not None:
            assert exponents == pytest.approx([*c.exponents(start)], rel=1e-8)
    if c.limit is not None:
        value, allowed = c.limit
        assert np.mean([e[0] for e in found]) == pytest.approx(value, abs=allowed)
