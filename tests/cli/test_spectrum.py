"""``spectrum``, and estimates of it and of ``deviation``."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Run

LINEAR = ("spectrum", "linear.pt", "-i", "x2.npy")
BLOCKS = ("spectrum", "mlp.pt", "-i", "x3.npy", "--to", "blocks.1")
MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]])
SIGMA = np.linalg.svd(MATRIX, compute_uv=False)
SHARE = SIGMA / SIGMA.sum()
TRUTH = {
    "condition": SIGMA[0] / SIGMA[1],
    "log_abs_det": math.log(2),
    "sign_det": -1,
    "log_volume": math.log(2),
    "mean_squared_singular_value": 15.0,
    "effective_rank": math.exp(-(SHARE * np.log(SHARE)).sum()),
    "stable_rank": 30 / SIGMA[0] ** 2,
    "participation_ratio": 900 / (SIGMA**4).sum(),
    "spectral_norm": SIGMA[0],
    "frobenius": 30**0.5,
}


def test_figures_of_a_known_matrix(cli: Run) -> None:
    found = cli(*LINEAR, "--format", "json").ok().json
    assert (found["schema_version"], found["command"]) == (1, "spectrum")
    (pair,) = found["pairs"]
    assert pair["source"] == {"layer": "input", "shape": [2]}
    assert pair["target"] == {"layer": "output", "shape": [2]}
    sample = pair["samples"][1]
    assert sample.pop("sample") == 1
    assert sample.pop("singular_values") == pytest.approx(list(SIGMA), rel=1e-6)
    assert sample == pytest.approx(TRUTH, rel=1e-5)
    for name, value in TRUTH.items():
        assert pair["summary"][name] == pytest.approx({"mean": value, "std": 0, "min": value, "max": value}, abs=1e-4)
    assert set(found["timing"]) == {"import_s", "load_s", "plan_s", "compute_s", "total_s"}
    assert "isometry" not in found


def test_lines_csv_and_saved_jacobians_hold_the_same(cli: Run, tmp_path: Any) -> None:
    lines = cli(*LINEAR).ok().lines
    assert list(lines[0]) == ["source", "target", "sample", "singular_values", *TRUTH, "method"]
    rows = list(csv.DictReader(io.StringIO(cli(*LINEAR, "--format", "csv").ok().text)))
    assert float(rows[0]["condition"]) == lines[0]["condition"]
    for extension in ("npz", "safetensors"):
        saved = tmp_path / f"j.{extension}"
        cli("compute", "linear.pt", "-i", "x2.npy", "-o", saved).ok()
        assert cli("spectrum", "--jacobian", saved).ok().lines[0]["singular_values"] == lines[0]["singular_values"]


def test_a_j_that_is_not_square_has_no_determinant(cli: Run) -> None:
    sample = cli("spectrum", "mlp.pt", "-i", "x3.npy").ok().lines[0]
    assert len(sample["singular_values"]) == 2
    assert "log_abs_det" not in sample
    assert sample["log_volume"] == pytest.approx(sum(math.log(s) for s in sample["singular_values"]))


def test_a_singular_j(cli: Run) -> None:
    """No path: zeros, and JSON without tokens that are none."""
    sample = cli("spectrum", "mlp.pt", "-i", "x3.npy", "--layer", "blocks.1", "--to", "blocks.0").ok().lines[0]
    assert sample["singular_values"] == [0, 0, 0, 0]
    assert (sample["condition"], sample["log_abs_det"], sample["effective_rank"]) == ("nan", "-inf", 0)


def test_eigenvalues(cli: Run) -> None:
    sample = cli(*LINEAR, "--eigenvalues").ok().lines[0]
    values = np.linalg.eigvals(MATRIX)
    assert sorted(v for v, _ in sample["eigenvalues"]) == pytest.approx(sorted(values), rel=1e-6)
    assert sample["spectral_radius"] == pytest.approx(max(abs(values)), rel=1e-6)
    departure = math.sqrt((30 - (values**2).sum()) / 30)
    assert sample["non_normality"] == pytest.approx(departure, abs=1e-6)
    refused = cli("spectrum", "mlp.pt", "-i", "x3.npy", "--eigenvalues")
    assert refused.code == 2
    assert "2 x 3" in refused.err


def test_top(cli: Run) -> None:
    assert len(cli(*LINEAR, "--top", "1").ok().lines[0]["singular_values"]) == 1
    assert cli(*LINEAR, "--top", "0").code == 2


def test_isometry_over_depth(cli: Run) -> None:
    """Layers of a glob get a line each, with what the next stretch multiplies squared gradients by."""
    found = cli(*BLOCKS, "--layer", "blocks.*", "--layer", "embed", "--format", "json").ok().json
    lines = {line["source"]: line for line in found["isometry"]}
    pairs = {pair["source"]["layer"]: pair for pair in found["pairs"]}
    assert set(lines) == set(pairs) == {"blocks.0", "blocks.1", "embed"}
    for layer, line in lines.items():
        squares = [np.square(s["singular_values"]) for s in pairs[layer]["samples"]]
        first = np.mean([s.mean() for s in squares])
        assert line["mean_squared_singular_value"] == pytest.approx(first)
        spread = np.mean([(s**2).mean() / s.mean() ** 2 - 1 for s in squares])
        assert line["relative_variance"] == pytest.approx(spread, abs=1e-9)
    assert lines["blocks.1"]["relative_variance"] == pytest.approx(0, abs=1e-9)  # J is the identity
    order = [line["source"] for line in found["isometry"]]
    means = [line["mean_squared_singular_value"] for line in found["isometry"]]
    assert [line["gain"] for line in found["isometry"]][:-1] == pytest.approx(
        [means[0] / means[1], means[1] / means[2]]
    )
    assert found["isometry"][-1]["gain"] is None
    table = cli(*BLOCKS, "--layer", "blocks.*", "--format", "table").ok().text
    assert "var σ²/mean²" in table
    assert all(layer in table for layer in order if layer != "embed")


def test_lyapunov_exponents(cli: Run) -> None:
    """Of a chain their sum is the logarithm of the determinant of the whole, per step."""
    start = ("spectrum", *SQUARE[:3], "--to", "3")
    chain = (*start, "--layer", "1", "--layer", "2")
    result = cli(*chain, "--lyapunov", "--format", "json").ok()
    assert "paths go around" not in result.err
    found = result.json["lyapunov"]
    assert found["layers"] == ["1", "2", "3"]
    whole = cli(*start, "--layer", "1").ok().lines
    for sample, line in zip(found["samples"], whole, strict=True):
        exponents = sample["lyapunov_exponents"]
        assert exponents == sorted(exponents, reverse=True)
        assert sum(exponents) == pytest.approx(line["log_abs_det"] / 2, rel=1e-4, abs=1e-6)
    assert "per step" in cli(*chain, "--lyapunov", "--format", "table").ok().text


def test_a_chain_that_is_none_is_told(cli: Run) -> None:
    """A skip connection goes around the blocks."""
    chain = ("spectrum", "mlp.pt", "-i", "x3.npy", "--layer", "embed", "--layer", "blocks.0", "--to", "blocks.1")
    assert "paths go around" in cli(*chain, "--lyapunov").ok().err


# 70 wide, square.
SQUARE = ("square.py:net", "-i", "random:70,n=3", "--layer", "input")


@pytest.fixture(autouse=True, scope="module")
def _square(files: Any) -> None:
    layers = "nn.Linear(70, 90), nn.Linear(90, 80), nn.Tanh(), nn.Linear(80, 80), nn.Linear(80, 70)"
    text = f"from torch import nn\n\n\ndef net() -> nn.Module:\n    return nn.Sequential({layers})\n"
    (files / "square.py").write_text(text)
    layers = "nn.Linear(600, 8), nn.Tanh(), nn.Linear(8, 600)"
    text = f"from torch import nn\n\n\ndef net() -> nn.Module:\n    return nn.Sequential({layers})\n"
    (files / "large.py").write_text(text)


@pytest.mark.parametrize("command", ["deviation", "spectrum"])
def test_estimates_carry_their_errors(cli: Run, command: str) -> None:
    exact = cli(command, *SQUARE, "--seed", "1", "--format", "json").ok().json
    result = cli(command, *SQUARE, "--probes", "24", "--seed", "1", "--format", "json")
    found = result.ok().json
    assert found["pairs"][0]["method"] == "estimate"
    assert found["pairs"][0]["seed"] == 1
    for truth, sample in zip(exact["pairs"][0]["samples"], found["pairs"][0]["samples"], strict=True):
        names = [name.removesuffix("_stderr") for name in sample if name.endswith("_stderr")]
        assert len(names) >= 5
        for name in (n for n in names if sample[n] != "nan"):
            values, errors, wanted = (np.atleast_1d(r) for r in (sample[name], sample[f"{name}_stderr"], truth[name]))
            assert np.all(
                np.abs(values - wanted[: len(values)]) <= 4 * errors + 1e-5 * np.abs(wanted[: len(values)])
            ), name
    again = cli(command, *SQUARE, "--probes", "24", "--seed", "1")
    assert again.ok().lines == [
        {"source": "input", "target": "output", **sample, "method": "estimate", "seed": 1}
        for sample in found["pairs"][0]["samples"]
    ]
    assert "±" in cli(command, *SQUARE, "--probes", "24", "--format", "table").text


@pytest.mark.parametrize("command", ["deviation", "spectrum"])
def test_what_no_vector_fits_in(cli: Run, command: str) -> None:
    for flags in ([], ["--probes", "9"]):
        result = cli(command, *SQUARE, "--max-memory", "1KiB", *flags)
        assert result.code == 5
        assert "vectors need" in result.err
        assert ("--probes" in result.err) == bool(flags)


def test_a_large_j_is_estimated_by_itself(cli: Run) -> None:
    """J of 600 x 600 takes 1.4 MB; its vectors less."""
    line = ("deviation", "large.py:net", "-i", "random:600,n=2", "--layer", "input", "--max-memory", "1300KB")
    result = cli(*line, "--format", "json").ok()
    assert "figures are estimated from products (--estimate)" in result.err
    pair = result.json["pairs"][0]
    assert pair["method"] == "estimate"
    exact = cli(*line[:-2], "--format", "json").ok().json["pairs"][0]
    for sample, truth in zip(pair["samples"], exact["samples"], strict=True):
        assert "max_abs" not in sample
        for name in ("frobenius", "trace", "spectral"):
            assert abs(sample[name] - truth[name]) <= 4 * sample[f"{name}_stderr"] + 1e-5 * abs(truth[name])


def test_the_plan_of_an_estimate(cli: Run) -> None:
    plan = cli("deviation", *SQUARE, "--probes", "9", "--explain").ok().err
    assert "J is 70 x 70 for each of 3 samples, and is not built" in plan
    assert "9 at a time" in plan


def test_rounding_is_told_from_singular_values(cli: Run) -> None:
    """A bottleneck: all but 8 of 600 singular values are zero, and come out as rounding."""
    result = cli("spectrum", "large.py:net", "-i", "random:600,n=1", "--top", "9").ok()
    assert "rounding of float32" in result.err
    assert "rounding" not in cli("spectrum", *SQUARE).ok().err


def test_tolerance(cli: Run) -> None:
    sample = cli("deviation", *SQUARE, "--tolerance", "20%").ok().lines[0]
    assert 1.96 * sample["frobenius_stderr"] <= 0.2 * sample["frobenius"]


def test_gates_on_estimates(cli: Run) -> None:
    line = ("deviation", *SQUARE, "--probes", "16")
    assert cli(*line, "--fail-above", "relative=1e-6").code == 1
    assert cli(*line, "--fail-above", "relative=100").code == 0
    refused = cli(*line, "--fail-above", "max_abs=1")
    assert refused.code == 2
    assert "entries" in refused.err
    value = cli(*line).ok().lines[0]["relative"]
    near = cli(*line, "--samples", "0", "--fail-above", f"relative={value}")
    assert "within the 95 % interval" in near.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probes", "0"], "--probes"),
        (["--probes", "x"], "--probes"),
        (["--tolerance", "0"], "--tolerance"),
        (["--tolerance", "200%"], "--tolerance"),
        (["--tolerance", "1%", "--probes", "9"], "both"),
        (["--eigenvalues", "--estimate"], "--eigenvalues"),
        (["--lyapunov", "--estimate"], "--lyapunov"),
    ],
)
def test_usage(cli: Run, flags: list[str], message: str) -> None:
    result = cli(*LINEAR, *flags)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) <= 3


def test_saved_jacobians_take_no_estimate(cli: Run, tmp_path: Any) -> None:
    cli("compute", "linear.pt", "-i", "x2.npy", "-o", tmp_path / "j.npy").ok()
    for command in ("deviation", "spectrum"):
        assert cli(command, "--jacobian", tmp_path / "j.npy", "--estimate").code == 2
    assert cli("spectrum", "--jacobian", tmp_path / "j.npy", "--lyapunov").code == 2


@pytest.mark.parametrize("command", ["deviation", "spectrum --eigenvalues"])
def test_a_saved_j_that_is_not_square(cli: Run, tmp_path: Path, command: str) -> None:
    """As of a model: exit 2 with the shape; of several pairs with the one that it is."""
    np.save(tmp_path / "J.npy", np.ones((2, 4, 3)))
    np.savez(tmp_path / "J.npz", **{"a->c": np.ones((2, 3, 3)), "b->c": np.ones((2, 3, 5))})
    for name, words in (("J.npy", "4 x 3"), ("J.npz", "b -> c|3 x 5|FILE[KEY]")):
        result = cli(*command.split(), "--jacobian", tmp_path / name)
        assert result.code == 2
        assert result.out == b""
        assert 2 <= len(result.err.splitlines()) <= 3
        assert [word for word in words.split("|") if word not in result.err] == []
    cli("deviation", "--jacobian", f"{tmp_path}/J.npz[a->c]").ok()


def test_a_saved_j_of_several_layers_is_shown_over_depth(cli: Run, tmp_path: Path) -> None:
    """Their samples stood below each other without the layers' names."""
    np.savez(tmp_path / "J.npz", **{f"{name}->c": np.ones((2, 3, 3)) for name in "ab"})
    shown = cli("spectrum", "--jacobian", tmp_path / "J.npz", "--format", "table").ok().text.splitlines()
    assert shown[0] == "spectra of J to c, means over 2 samples"
    assert [line.split()[0] for line in shown[3:]] == ["a", "b"]


def test_the_smallest_of_a_list_that_was_cut_is_not_claimed(cli: Run) -> None:
    lines = cli(*BLOCKS, "--layer", "blocks.0", "--layer", "embed", "--top", "2", "--format", "json").ok().json
    assert [line["smallest"] for line in lines["isometry"]] == [None, None]


def test_eigenvalues_and_exponents_are_not_both_given(cli: Run) -> None:
    result = cli(*BLOCKS, "--layer", "blocks.*", "--eigenvalues", "--lyapunov")
    assert (result.code, len(result.err.splitlines())) == (2, 3)


NO_JACOBIANS = [np.ones((2, 3, 3)) * 1j, np.ones((2, 0, 3)), np.ones((0, 3, 3)), np.ones((1, 1, 1, 1))]


@pytest.mark.parametrize("array", NO_JACOBIANS, ids=lambda array: str(array.shape))
@pytest.mark.parametrize("command", ["deviation", "spectrum --eigenvalues", "show"])
def test_a_saved_j_that_is_none(cli: Run, tmp_path: Path, array: Any, command: str) -> None:
    np.save(tmp_path / "J.npy", array)
    result = cli(*command.split(), "--jacobian", tmp_path / "J.npy")
    assert (result.code, len(result.err.splitlines())) == (3, 3)
    assert str(array.shape) in result.err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_saved_j_that_is_not_finite(cli: Run, tmp_path: Path, value: float) -> None:
    array = np.ones((2, 3, 3))
    array[0, 1, 2] = value
    np.save(tmp_path / "J.npy", array)
    for command in ("deviation", "spectrum --eigenvalues"):
        result = cli(*command.split(), "--jacobian", tmp_path / "J.npy", "--format", "json").ok()
        assert "1 non-finite" in result.err
        assert result.json["pairs"][0]["samples"][0]["spectral" if command == "deviation" else "spectral_norm"] == "nan"
