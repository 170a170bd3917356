"""Against truth in closed form, by the command line; each truth and its source stand in ``closed_forms``."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import closed_forms
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
    hold,
    hold_eigenvalues,
    hold_estimates,
    hold_sigma,
    normal,
)
from tests.test_truth import name_of, sum_of_fourths, within

from .conftest import Run

SPEC = closed_forms.__file__
JSON = ("--format", "json")
# Some modules here have no weights whose dtype they would have.
DOUBLE = ("--dtype", "float64")
SMALL, LARGE = 8, 128
PROBES = 24


def knowns(c: Closed, n: int) -> list[Known]:
    model = build(c.name, n)
    return [c.known(model, x) for x in c.samples(n).numpy()]


SQUARE = [c for c in TABLE if knowns(c, SMALL)[0].square]


def samples(folder: Path, x: Any) -> Path:
    path = folder / "x.npy"
    np.save(path, np.asarray(x))
    return path


def scripted(folder: Path, model: torch.nn.Module) -> Path:
    path = folder / "model.pt"
    torch.jit.script(model).save(str(path))
    return path


@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_spectrum_of_a_script(c: Closed, cli: Run, tmp_path: Path) -> None:
    known = knowns(c, SMALL)
    flags = ["--eigenvalues"] if known[0].square else []
    model, x = scripted(tmp_path, build(c.name, SMALL)), samples(tmp_path, c.samples(SMALL))
    done = cli("spectrum", model, "-i", x, *flags, *DOUBLE, *JSON).ok()
    assert ("singular values are rounding" in done.err) == known[0].singular
    (pair,) = done.json["pairs"]
    assert len(pair["samples"]) == len(known)
    for record, k in zip(pair["samples"], known, strict=True):
        hold(record, k.of_spectrum())
        if k.sigma is not None:
            hold_sigma(record["singular_values"], k.sigma)
        if k.eigenvalues is not None:
            hold_eigenvalues(record["eigenvalues"], k.eigenvalues)
    for name, value in known[0].of_spectrum().items():
        if math.isfinite(value):
            mean = np.mean([k.of_spectrum()[name] for k in known])
            hold({name: pair["summary"][name]["mean"]}, {name: float(mean)}) if name in pair["summary"] else None


@pytest.mark.parametrize("c", SQUARE, ids=name_of)
def test_deviation_of_code(c: Closed, cli: Run, tmp_path: Path) -> None:
    argv = ("deviation", f"{SPEC}:build", "--arch-arg", f"name={c.name}", "--arch-arg", f"n={SMALL}")
    found = cli(*argv, "-i", samples(tmp_path, c.samples(SMALL)), "--layer", "input", *DOUBLE, *JSON).ok().json
    for record, k in zip(found["pairs"][0]["samples"], knowns(c, SMALL), strict=True):
        hold(record, k.of_deviation())


@pytest.mark.parametrize("c", TABLE, ids=name_of)
def test_spectrum_estimated(c: Closed, cli: Run, tmp_path: Path) -> None:
    model, x = scripted(tmp_path, build(c.name, LARGE)), samples(tmp_path, c.samples(LARGE))
    flags = ("--estimate", "--probes", PROBES, "--seed", c.seed, "--samples", "0")
    done = cli("spectrum", model, "-i", x, *flags, *DOUBLE, *JSON).ok()
    (record,) = done.json["pairs"][0]["samples"]
    known = knowns(c, LARGE)[0]
    truth = known.of_spectrum()
    names = hold_estimates(record, truth, dict.fromkeys(LOGS, 0.1 * LARGE), c.settles)
    assert {"frobenius", "mean_squared_singular_value"} <= names
    if known.sigma is not None:
        assert {"spectral_norm", "stable_rank", "participation_ratio", "effective_rank"} <= names
        for k, (value, error) in enumerate(
            zip(record["singular_values"], record["singular_values_stderr"], strict=True)
        ):
            assert abs(value - sorted(known.sigma)[-1 - k]) <= 1.96 * error + 1e-9 * value
    if known.singular:
        assert "log|det J| cannot be estimated" in done.err
        assert float(record.get("condition", math.inf)) > 1e14
    elif "condition" in truth and "condition" in record:
        assert abs(record["condition"] - truth["condition"]) <= 1.96 * record["condition_stderr"] + 1e-9


@pytest.mark.parametrize("c", SQUARE, ids=name_of)
def test_deviation_estimated(c: Closed, cli: Run, tmp_path: Path) -> None:
    argv = ("deviation", f"{SPEC}:build", "--arch-arg", f"name={c.name}", "--arch-arg", f"n={LARGE}")
    flags = ("--estimate", "--probes", PROBES, "--seed", c.seed, "--samples", "0", "--layer", "input")
    found = cli(*argv, "-i", samples(tmp_path, c.samples(LARGE)), *flags, *DOUBLE, *JSON).ok().json
    (record,) = found["pairs"][0]["samples"]
    truth = knowns(c, LARGE)[0].of_deviation()
    # The variance of gᵀDg is at most 2‖D‖_F².
    trace = 4 * truth["frobenius"] * math.sqrt(2 / PROBES)
    reach = {"trace": trace, "alpha": trace / LARGE, "identity_share": 0.1}
    names = hold_estimates(record, truth, reach, c.settles)
    assert {"frobenius", "relative", "trace", "alpha", "identity_share"} <= names
    assert not names & {"l1", "max_abs"}


@pytest.mark.parametrize("command", ["spectrum", "deviation"])
@pytest.mark.parametrize("name", ["identity", "Householder", "cyclic shift", "planar flow"])
def test_large_and_near_an_isometry_estimated(name: str, command: str, cli: Run, tmp_path: Path) -> None:
    """450 x 450, where no full decomposition is made, and σ of J or of J − I are equal."""
    c, n = BY_NAME[name], 450
    model, x = scripted(tmp_path, build(name, n)), samples(tmp_path, c.samples(n, 1))
    argv = (command, model, "-i", x, "--layer", "input", "--estimate", "--probes", PROBES, "--seed", c.seed)
    (record,) = cli(*argv, *DOUBLE).ok().lines
    (known,) = [c.known(build(name, n), one) for one in c.samples(n, 1).numpy()]
    truth = known.of_spectrum() if command == "spectrum" else known.of_deviation()
    trace = 4 * known.of_deviation()["frobenius"] * math.sqrt(2 / PROBES)
    reach = dict.fromkeys(LOGS, 0.1 * n) | {"trace": trace, "alpha": trace / n, "identity_share": 0.1}
    wanted = {"spectral_norm", "effective_rank"} if command == "spectrum" else {"spectral", "trace"}
    assert wanted <= hold_estimates(record, truth, reach, c.settles)


def test_few_probes_are_as_honest_as_many(cli: Run, tmp_path: Path) -> None:
    """The effective rank of a softmax, from its closed form: in its interval at 16 of 20 seeds, with 8 probes."""
    c, hits, seeds = BY_NAME["softmax"], 0, 20
    model, x = scripted(tmp_path, build(c.name, LARGE)), samples(tmp_path, c.samples(LARGE, 1))
    share = np.linalg.svd(knowns(c, LARGE)[0].matrix, compute_uv=False)[:-1]
    share /= share.sum()
    truth = math.exp(-(share * np.log(share)).sum())
    for seed in range(seeds):
        (record,) = cli("spectrum", model, "-i", x, "--probes", 8, "--seed", seed, *DOUBLE).ok().lines
        hits += abs(record["effective_rank"] - truth) <= 1.96 * record["effective_rank_stderr"]
    assert hits >= 16, hits


@pytest.mark.parametrize("law", LAWS, ids=name_of)
def test_expectations_over_weights(law: Law, cli: Run) -> None:
    """Weights straight from ``-i random:``, 2000 draws: means within 4 standard errors."""
    words = (f"widths={[*law.widths]}", f"sigma={law.sigma}", f"kind={law.kind}")
    given = [f"{SPEC}:riding", "-i", f"random:{law.numbers},n=2000,dist=normal,seed=3", "--layer", "state"]
    given += [word for pair in words for word in ("--arch-arg", pair)]
    truth = law.truth
    (pair,) = cli("spectrum", *given, *JSON).ok().json["pairs"]
    within([r["frobenius"] ** 2 for r in pair["samples"]], truth.squares)
    within([sum_of_fourths(r) for r in pair["samples"]], truth.fourths)
    smaller = min(law.widths[0], law.widths[-1])
    mean = pair["summary"]["mean_squared_singular_value"]
    assert abs(smaller * mean["mean"] - truth.squares) <= 4 * smaller * mean["std"] / math.sqrt(2000)
    if truth.deviation is not None and truth.trace is not None:
        (pair,) = cli("deviation", *given, *JSON).ok().json["pairs"]
        within([r["frobenius"] ** 2 for r in pair["samples"]], truth.deviation)
        within([r["trace"] for r in pair["samples"]], truth.trace)


@pytest.mark.parametrize("law", [law for law in LAWS if len(set(law.widths)) == 1], ids=name_of)
def test_one_wide_network_estimated(law: Law, cli: Run) -> None:
    """Ordinary layers 24 times as wide, by products: the error of the estimate and of the one draw, 4 of both."""
    wide = Law(law.name, law.source, tuple(24 * n for n in law.widths), law.sigma, law.kind)
    words = (f"widths={[*wide.widths]}", f"sigma={law.sigma}", f"kind={law.kind}", "seed=1")
    given = [f"{SPEC}:dense", "-i", f"random:{wide.widths[0]},n=1", "--layer", "input", "--probes", PROBES]
    given += [word for pair in words for word in ("--arch-arg", pair)]
    (record,) = cli("spectrum", *given, *JSON).ok().json["pairs"][0]["samples"]
    truth, value = wide.truth, record["frobenius"]
    sd = math.hypot(math.sqrt(truth.variance), 2 * value * record["frobenius_stderr"])
    assert sd < 0.2 * truth.squares
    assert abs(value**2 - truth.squares) <= 4 * sd
    assert sum_of_fourths(record) == pytest.approx(truth.fourths, rel=8 * sd / truth.squares)
    if truth.deviation is not None:
        (record,) = cli("deviation", *given, *JSON).ok().json["pairs"][0]["samples"]
        assert record["frobenius"] ** 2 == pytest.approx(truth.deviation, rel=8 * sd / truth.squares)


def field_argv(f: Field, n: int, seed: int, folder: Path) -> list[str]:
    x = normal(1, n, seed=77 + seed)
    x *= math.sqrt(f.x_square * n) / x.norm()
    words = (f"name={f.name}", f"n={n}", f"seed={seed}")
    given = [f"{SPEC}:mean_field", "-i", str(samples(folder, x))]
    return given + [word for pair in words for word in ("--arch-arg", pair)]


@pytest.mark.parametrize("f", FIELDS, ids=name_of)
def test_mean_field_by_layer(f: Field, cli: Run, tmp_path: Path) -> None:
    """A line a layer, 5 networks of width 200: means within 4 standard errors and the 4/n that the theory leaves out.

    From a layer l on it is m₁ = χ^(L−l), the variance that of L − l layers, and the gain of each layer χ.
    """
    n = 200
    runs = []
    for seed in range(5):
        argv = ["spectrum", *field_argv(f, n, seed, tmp_path), "--layer", "input", "--layer", "blocks.*", *JSON]
        runs.append(cli(*argv).ok().json["isometry"])
    assert [line["source"] for line in runs[0]] == ["input", *(f"blocks.{k}" for k in range(f.depth))]
    for k in range(f.depth):
        lines = [run[k] for run in runs]
        left = f.depth - k
        within([line["mean_squared_singular_value"] / f.chi**left for line in lines], 1.0, 4.0, 4 / n)
        within([line["relative_variance"] / f.variance(left) for line in lines], 1.0, 4.0, 4 / n)
        within([line["gain"] / f.chi for line in lines], 1.0, 4.0, 4 / n)
    last = runs[0][-1]  # the last block's output is the output: J = I
    assert last["mean_squared_singular_value"] == pytest.approx(1)
    assert last["relative_variance"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("f", [f for f in FIELDS if not f.orthogonal], ids=name_of)
def test_mean_field_estimated(f: Field, cli: Run, tmp_path: Path) -> None:
    """One network of width 300 by products: such a draw varies by some 12 % in m₁, and by 4 % in m₂/m₁²."""
    n = 300
    argv = ["spectrum", *field_argv(f, n, 1, tmp_path), "--estimate", "--probes", "16", *JSON]
    (record,) = cli(*argv).ok().json["pairs"][0]["samples"]
    assert record["mean_squared_singular_value"] == pytest.approx(f.chi**f.depth, rel=0.3)
    assert n / record["participation_ratio"] == pytest.approx(1 + f.variance(f.depth), rel=0.15)


def exponents(cli: Run, argv: list[Any]) -> list[list[float]]:
    found = cli("spectrum", *argv, "--lyapunov", *DOUBLE, *JSON).ok().json["lyapunov"]["samples"]
    return [sample["lyapunov_exponents"] for sample in found]


@pytest.mark.parametrize("c", CHAINS, ids=name_of)
@pytest.mark.parametrize("scripted_file", [True, False], ids=["script", "code"])
def test_lyapunov_exponents(c: Chain, scripted_file: bool, cli: Run, tmp_path: Path) -> None:
    starts = c.starts()
    model: list[Any] = [f"{SPEC}:chain", "--arch-arg", f"name={c.name}"]
    if scripted_file:
        model = [scripted(tmp_path, chain(c.name))]
    found = exponents(cli, [*model, "-i", samples(tmp_path, starts), "--layer", "steps.*:in"])
    assert len(found) == len(starts)
    for start, of_start in zip(starts, found, strict=True):
        assert sum(of_start) == pytest.approx(c.total(start), rel=1e-9, abs=1e-9)
        if c.exponents is not None:
            assert of_start == pytest.approx([*c.exponents(start)], rel=1e-8)
    if c.limit is not None:
        value, allowed = c.limit
        assert np.mean([e[0] for e in found]) == pytest.approx(value, abs=allowed)


@pytest.mark.parametrize("end", ["output", "steps.99"])
def test_a_glob_that_holds_the_end_makes_no_step_of_it(end: str, cli: Run, tmp_path: Path) -> None:
    """log b a step of the Hénon map, however the same 100 steps are named: J from the end to itself is no step."""
    (c,) = [c for c in CHAINS if c.name == "Hénon map"]
    model: list[Any] = [f"{SPEC}:chain", "--arch-arg", f"name={c.name}"]
    argv = [*model, "-i", samples(tmp_path, c.starts()[:1]), "--layer", "input", "--layer", "steps.*", "--to", end]
    (found,) = exponents(cli, argv)
    assert sum(found) == pytest.approx(math.log(0.3), rel=1e-9)


def test_double_samples_stay_double_where_the_model_has_no_dtype(cli: Run, tmp_path: Path) -> None:
    """As in Python. Chaos makes single precision visible: 20 steps of the logistic map are off by a per cent."""
    (c,) = [c for c in CHAINS if c.name == "logistic map"]
    starts = c.starts()
    x = samples(tmp_path, starts)
    (pair,) = cli("spectrum", scripted(tmp_path, chain(c.name)), "-i", x, *JSON).ok().json["pairs"]
    for start, record in zip(starts, pair["samples"], strict=True):
        assert math.log(record["spectral_norm"]) / c.count == pytest.approx(c.total(start), rel=1e-8)
