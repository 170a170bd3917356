"""``deviation``, ``layers``, ``show`` and ``doctor``."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Run

DEVIATION = ("deviation", "linear.pt", "-i", "x2.npy", "--layer", "input")
BLOCKS = ("deviation", "mlp.pt", "-i", "x3.npy", "--to", "blocks.1")
# D = [[0, 2], [3, 3]], J = [[1, 2], [3, 4]]
TRUTH = {
    "frobenius": 22**0.5,
    "relative": 11**0.5,
    "spectral": np.linalg.norm([[0, 2], [3, 3]], 2),
    "l1": 8.0,
    "max_abs": 3.0,
    "trace": 5.0,
    "alpha": 2.5,
    "identity_share": 2.5**2 * 2 / 30,
}


def test_norms_of_a_known_matrix(cli: Run) -> None:
    found = cli(*DEVIATION, "--format", "json").ok().json
    assert (found["schema_version"], found["command"]) == (1, "deviation")
    (pair,) = found["pairs"]
    assert pair["source"] == {"layer": "input", "shape": [2]}
    assert pair["target"] == {"layer": "output", "shape": [2]}
    assert pair["method"] == "reverse"
    assert pair["samples"][2] == pytest.approx({"sample": 2, **TRUTH}, rel=1e-6)
    for norm, value in TRUTH.items():
        assert pair["summary"][norm] == pytest.approx({"mean": value, "std": 0, "min": value, "max": value}, abs=1e-6)
    assert set(found["timing"]) == {"import_s", "load_s", "plan_s", "compute_s", "total_s"}
    assert all(seconds >= 0 for seconds in found["timing"].values())
    assert found["timing"]["compute_s"] <= found["timing"]["total_s"]


def test_lines_and_csv_hold_the_same(cli: Run) -> None:
    lines = cli(*DEVIATION).ok().lines
    rows = list(csv.DictReader(io.StringIO(cli(*DEVIATION, "--format", "csv").ok().text)))
    assert list(lines[0]) == ["source", "target", "sample", *TRUTH, "method"]
    words = ("source", "target", "method")
    assert [{k: v if k in words else float(v) for k, v in row.items()} for row in rows] == lines


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        (["relative=4"], 0),
        (["relative=3.3"], 1),
        (["relative=4", "max_abs=2.9"], 1),
        (["max_abs=3"], 0),
        (["trace=4"], 1),
    ],
)
def test_gates(cli: Run, gates: list[str], code: int) -> None:
    result = cli(*DEVIATION, *(word for gate in gates for word in ("--fail-above", gate)))
    assert result.code == code
    assert len(result.lines) == 3  # the numbers come all the same
    if code:
        assert "is above" in result.err
        assert "3 of 3 samples" in result.err
        assert "input -> output" in result.err
        assert len(result.err.splitlines()) <= 3


def test_nan_fails_a_gate_and_the_reason_is_said(cli: Run) -> None:
    argv = ("deviation", "mlp.pt", "-i", "nan.npy", "--layer", "embed", "--to", "blocks.1", "--fail-above", "l1=1e9")
    result = cli(*argv)
    assert result.code == 1
    assert "1 of 5 samples" in result.err
    assert "warning: 'nan.npy' has 1 non-finite value" in result.err


def test_a_glob_leaves_out_what_is_not_square(cli: Run) -> None:
    result = cli(*BLOCKS, "--layer", "*", "--layer", "blocks.*", "--samples", "4,2", "--format", "json").ok()
    pairs = result.json["pairs"]
    assert [pair["source"]["layer"] for pair in pairs] == ["embed", "blocks.0", "blocks.1"]
    assert [sample["sample"] for sample in pairs[0]["samples"]] == [4, 2]
    assert pairs[2]["samples"][0]["frobenius"] == 0
    assert "note: left out: J of head -> blocks.1 is 4 x 2" in result.err


def test_a_table_for_people(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = cli(*DEVIATION, "--format", "table").ok().text.splitlines()
    assert shown[0] == "J - I of input -> output, 2 x 2, method reverse"
    assert shown[1].split() == ["sample", "frobenius", "relative", "spectral", "max_abs", "alpha", "identity_share"]
    assert shown[3].split() == ["0", "4.69", "3.317", "4.497", "3", "2.5", "0.4167"]
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli(*BLOCKS, "--layer", "blocks.*", "--format", "table").ok().text.splitlines()
    assert shown[0] == "J - I of 2 layers -> blocks.1, means over 5 samples"
    assert shown[1].split() == ["source", "relative", "max", "spectral", "max", "alpha", "identity_share"]
    assert max(map(len, shown)) <= 80
    assert len(shown) == 3 + 2
    found = cli(*BLOCKS, "--layer", "blocks.*", "--format", "json").ok().json["pairs"][0]
    relative = [sample["relative"] for sample in found["samples"]]
    assert shown[3].split()[:3] == ["blocks.0", f"{np.mean(relative):.4g}", f"{max(relative):.4g}"]


@pytest.mark.parametrize("command", ["deviation", "spectrum"])
def test_samples_in_a_table_of_several_layers(cli: Run, command: str) -> None:
    """A line a layer, or a line a sample; formats for programs have the samples in any case."""
    depth = (command, "mlp.pt", "-i", "x3.npy", "--layer", "blocks.*", "--to", "blocks.1", "-q")
    layers = ["blocks.0", "blocks.1"]
    for form in ("table", "markdown"):
        lines = [line.strip("| ").split() for line in cli(*depth, "--format", form).ok().text.splitlines()]
        assert [words[0] for words in lines if words[0].startswith("blocks")] == layers
        text = cli(*depth, "--format", form, "--per-sample").ok().text.replace("|", " ")
        names = [line.split()[:2] for line in text.splitlines() if line.split()[0].startswith("blocks")]
        assert names[:10] == [[layer, str(sample)] for layer in layers for sample in range(5)]
    for form in ("jsonl", "csv"):
        assert cli(*depth, "--format", form).ok().out == cli(*depth, "--format", form, "--per-sample").ok().out
        assert len(cli(*depth, "--format", form).text.splitlines()) == 10 + (form == "csv")


def test_one_sample_of_several_layers_is_named(cli: Run) -> None:
    shown = cli(*BLOCKS, "--layer", "blocks.*", "--samples", "3", "--format", "table").ok().text.splitlines()
    assert shown[0] == "J - I of 2 layers -> blocks.1, sample 3"
    assert "frobenius" in shown[1]
    assert "sample" not in shown[1]


def test_estimates_over_depth_carry_their_errors(cli: Run) -> None:
    shown = cli(*BLOCKS, "--layer", "blocks.*", "--probes", "3", "--format", "table").ok().text.splitlines()
    assert len(shown) == 3 + 2
    assert shown[3].count("±") >= 4


def test_saved_jacobians_of_several_pairs(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "J.safetensors"
    cli("compute", "mlp.pt", "-i", "x3.npy", "--layer", "blocks.*", "--to", "blocks.1", "-o", path).ok()
    found = cli("deviation", "--jacobian", path, "--samples", "1", "--format", "json").ok().json
    assert [(p["source"]["layer"], len(p["samples"])) for p in found["pairs"]] == [("blocks.0", 1), ("blocks.1", 1)]
    assert [p["method"] for p in found["pairs"]] == ["reverse", "reverse"]
    one = cli("deviation", "--jacobian", f"{path}[blocks.1->blocks.1]").ok().lines
    assert {line["source"] for line in one} == {"blocks.1"}


def rows(found: Any) -> dict[str, dict[str, Any]]:
    return {row["layer"]: row for row in found["layers"]}


def test_layers_with_an_input(cli: Run) -> None:
    found = cli("layers", "tricky.pt", "-i", "x4.npy", "--format", "json").ok().json
    assert (found["schema_version"], found["command"], found["model"]) == (1, "layers", "tricky.pt")
    layer = rows(found)
    assert list(layer) == ["input", "twice", "unused", "split", "named", "flip", "count", "output"]
    assert layer["input"] == {"layer": "input", "type": "(model input)", "calls": 1, "shape": [4], "dtype": "float32"}
    assert layer["twice"]["type"] == "Linear"
    assert (layer["twice"]["calls"], layer["unused"]["calls"]) == (2, 0)
    assert layer["unused"]["shape"] is None
    assert layer["split"]["elements"] == {"0": [2], "1": [2]}
    assert layer["named"]["elements"] == {"a": [4], "b": [4]}
    assert (layer["flip"]["shape"], layer["flip"]["samples_dim"]) == ([4], 1)
    assert (layer["count"]["shape"], layer["count"]["dtype"]) == ([], "int64")
    assert layer["output"]["shape"] == [4]


def test_layers_without_an_input(cli: Run) -> None:
    found = rows(cli("layers", "mlp.pt", "--format", "json").ok().json)
    assert found["blocks.0.1"] == {"layer": "blocks.0.1", "type": "Tanh"}
    assert next(iter(found)) == "input"
    assert [*found][-1] == "output"
    names = {row["layer"] for row in cli("layers", "mlp.safetensors", "--arch", "nets.py:Mlp").ok().lines}
    assert names == set(found)
    exported = {row["layer"] for row in cli("layers", "mlp.pt2").ok().lines}
    assert {"embed", "blocks.0.0", "head"} <= exported


def test_layers_that_are_named_can_be_used(cli: Run) -> None:
    """Every called layer with one floating-point value is a source, with the shape that was shown."""
    for row in cli("layers", "mlp.pt", "-i", "x3.npy").ok().lines:
        if row["calls"] != 1:
            continue
        argv = ("compute", "mlp.pt", "-i", "x3.npy", "--from", row["layer"], "--samples", 0, "--format", "jsonl")
        assert cli(*argv).ok().lines[0]["shape"] == [2, *row["shape"]]


def test_layers_table(cli: Run) -> None:
    text = cli("layers", "tricky.pt", "-i", "x4.npy", "--format", "table").ok().text
    assert "4 (samples in @1)" in text
    assert "out.0 (2), out.1 (2)" in text
    assert "out.a (4), out.b (4)" in text
    assert cli("layers", "tricky.pt", "-i", "x4.npy", "--format", "markdown").ok().text.startswith("| layer | type |")


def test_show(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "J.npz"
    cli("compute", "linear.pt", "-i", "x2.npy", "-o", path).ok()
    text = cli("show", path, "--format", "table").ok().text
    assert text.startswith("input -> output: 3 samples, each J 2 x 2, float32\n")
    assert "method        reverse" in text
    assert "  1  2\n  3  4\n" in text
    assert "2 more samples: --samples 0:3 draws all" in text
    picked = cli("show", "--jacobian", path, "--samples", "2,1", "--format", "table").ok().text
    assert [line.split(":")[0] for line in picked.splitlines() if line.startswith("sample")] == ["sample 2", "sample 1"]
    (line, *_) = cli("show", path, "--samples", "2").ok().lines
    assert line["sample"] == 2
    assert line["frobenius"] == pytest.approx(30**0.5)
    assert (line["min"], line["max"], line["zeros"], line["non_finite"]) == (1, 4, 0, 0)
    order = [[*cli("show", path, "--format", "json").json["jacobians"][0]["provenance"]] for _ in range(3)]
    assert order[0] == order[1] == order[2]


def test_show_draws_every_pair(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "J.pt"
    cli("compute", "mlp.pt", "-i", "x3.npy", "--layer", "blocks.*", "-o", path).ok()
    text = cli("show", path, "--format", "table").ok().text
    assert "blocks.0 -> output: 5 samples" in text
    assert "blocks.1 -> output: 5 samples" in text


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "markdown"])
def test_doctor(cli: Run, form: str) -> None:
    result = cli("doctor", "--format", form).ok()
    assert "torch" in result.text
    assert "2." in result.text
    if form == "json":
        facts = result.json["facts"]
        assert {"jaccli", "python", "torch", "torch threads", "devices", "extra zarr"} <= set(facts)
        assert facts["devices"].startswith("cpu")
    if form == "jsonl":
        assert {"what": "cpu cores", "found": facts_cores()} in result.lines


def facts_cores() -> int | None:
    import os

    return os.cpu_count()


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "md", "txt"])
def test_numbers_go_into_files(cli: Run, tmp_path: Path, name: str) -> None:
    assert cli(*DEVIATION, "-o", tmp_path / f"d.{name}").ok().out == b""
    assert "4.69" in (tmp_path / f"d.{name}").read_text()
