"""``compute`` against known Jacobians: formats, pairs, samples, arguments, provenance; and the way back."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.func import jacrev, vmap

import jaccli
from jaccli.names import METHOD_NAMES

from .conftest import Run
from .nets import Mlp

W = [[1.0, 2.0], [3.0, 4.0]]
LINEAR = ("compute", "linear.pt", "-i", "x2.npy")
MLP = ("compute", "mlp.pt", "-i", "x3.npy")
FORMATS = ["npy", "npz", "safetensors", "pt", "csv", "json", "jsonl", "zarr"]


def truth(files: Path) -> Any:
    model = Mlp().eval()
    model.load_state_dict(torch.load(files / "old.ckpt", weights_only=True))
    x = torch.from_numpy(np.load(files / "x3.npy"))
    return vmap(jacrev(model.double()))(x.double()).detach().numpy()


def test_npy_goes_into_a_pipe(cli: Run, files: Path) -> None:
    J = np.load(io.BytesIO(cli(*MLP).ok().out))
    assert J.shape == (5, 2, 3)
    assert J.dtype == np.float32
    np.testing.assert_allclose(J, truth(files), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", ["mlp.safetensors", "mlp.ckpt", "old.ckpt", "mlp.pt2"])
def test_every_kind_of_model_gives_the_same(cli: Run, files: Path, model: str) -> None:
    arch = [] if model.endswith("pt2") else ["--arch", "nets.py:Mlp"]
    J = np.load(io.BytesIO(cli("compute", model, "-i", "x3.npy", *arch).ok().out))
    np.testing.assert_allclose(J, truth(files), rtol=1e-5, atol=1e-7)


def test_a_model_may_be_code_with_a_seed(cli: Run) -> None:
    spec = ("compute", "nets.py:Mlp", "-i", "random:3,n=2", "--arch-arg", "width=6")
    first, again, other = (cli(*spec, "--seed", seed).ok().out for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtype(cli: Run, tmp_path: Path, dtype: str) -> None:
    cli(*LINEAR, "--dtype", dtype, "-o", tmp_path / "J.pt").ok()
    J = torch.load(tmp_path / "J.pt", weights_only=True)["jacobian"]
    assert J.dtype == getattr(torch, dtype)
    assert J.double().tolist() == [W] * 3


@pytest.mark.parametrize("method", ["auto", "reverse", "forward", "loop", "replicate", "functional"])
def test_method(cli: Run, files: Path, method: str) -> None:
    J = np.load(io.BytesIO(cli(*MLP, "--method", method, "--dtype", "float64").ok().out))
    np.testing.assert_allclose(J, truth(files), rtol=1e-9, atol=1e-12)


def test_jsonl_is_one_sample_a_line(cli: Run) -> None:
    lines = cli(*LINEAR, "--format", "jsonl").ok().lines
    assert [line["sample"] for line in lines] == [0, 1, 2]
    assert lines[0]["source"] == "input"
    assert lines[0]["target"] == "output"
    assert lines[0]["shape"] == [2, 2]
    assert lines[0]["jacobian"] == W
    assert lines[0]["method"] in METHOD_NAMES


def test_no_nan_tokens(cli: Run) -> None:
    result = cli("compute", "mlp.pt", "-i", "nan.npy", "--format", "jsonl").ok()
    assert result.lines[1]["jacobian"] == [["nan"] * 3] * 2
    assert "NaN" not in cli("compute", "mlp.pt", "-i", "nan.npy", "--format", "json").ok().text
    figures = cli("deviation", "mlp.pt", "-i", "nan.npy", "--layer", "embed", "--to", "blocks.1", "--format", "json")
    assert figures.ok().json["pairs"][0]["samples"][1]["frobenius"] == "nan"


def test_csv_and_json(cli: Run) -> None:
    rows = list(csv.reader(io.StringIO(cli(*LINEAR, "--samples", 1, "--format", "csv").ok().text)))
    method = rows[1][-1]
    assert rows[0][-1] == "method"
    assert method in METHOD_NAMES
    assert rows[1:] == [
        ["1", "input", "output", "0", "1.0", "2.0", method],
        ["1", "input", "output", "1", "3.0", "4.0", method],
    ]
    found = cli(*LINEAR, "--samples", "2,0", "--format", "json").ok().json
    assert found["jacobians"][0]["jacobian"] == [W, W]
    assert found["jacobians"][0]["method"] in METHOD_NAMES
    assert found["jacobians"][0]["samples"] == [2, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_saved_and_read_again(cli: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"J.{name}"
    pair = ("--from", "embed", "--to", "blocks.1")
    assert cli(*MLP, *pair, "-o", path).ok().out == b""
    direct = cli("deviation", "mlp.pt", "-i", "x3.npy", "--layer", *pair[1:]).ok().lines
    saved = cli("deviation", "--jacobian", path).ok().lines
    assert len(saved) == 5
    for a, b in zip(direct, saved, strict=True):
        assert a["frobenius"] == pytest.approx(b["frobenius"], rel=1e-6)
        assert a["sample"] == b["sample"]
        if name != "npy":
            assert (b["source"], b["target"]) == ("embed", "blocks.1")
    shown = cli("show", path, "--format", "json").ok().json["jacobians"]
    assert [entry["shape"] for entry in shown] == [[5, 4, 4]]
    assert len(shown[0]["samples"]) == 5


@pytest.mark.parametrize("name", ["npy", "npz", "safetensors", "pt", "csv", "json", "jsonl"])
def test_through_a_pipe(cli: Run, files: Path, name: str) -> None:
    x = (files / "x2.npy").read_bytes()
    J = cli("compute", "linear.pt", "-i", "-", "-o", "-", "--format", name, stdin=x).ok().out
    figures = cli("deviation", "--jacobian", "-", stdin=J).ok().lines
    assert [line["sample"] for line in figures] == [0, 1, 2]
    assert figures[0]["frobenius"] == pytest.approx(22**0.5)
    shown = cli("show", "-", "--format", "jsonl", stdin=J).ok().lines
    assert shown[0]["max"] == 4.0


@pytest.mark.parametrize("name", ["npz", "safetensors", "pt", "zarr", "json", "jsonl", "csv"])
def test_several_pairs_in_one_file(cli: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"J.{name}"
    cli(*MLP, "--layer", "blocks.*", "--layer", "embed", "-o", path).ok()
    shown = cli("show", path, "--format", "json").ok().json["jacobians"]
    found = [(entry["source"]["layer"], entry["target"]["layer"], entry["shape"]) for entry in shown]
    expected = [(layer, "output", [5, 2, 4]) for layer in ("blocks.0", "blocks.1", "embed")]
    assert sorted(found) == sorted(expected)
    if name == "npz":
        assert set(np.load(path)) >= {"blocks.0->output", "blocks.1->output", "embed->output"}


def test_a_single_pair_has_the_key_jacobian(cli: Run, tmp_path: Path) -> None:
    for name in ("npz", "safetensors"):
        cli(*LINEAR, "-o", tmp_path / f"J.{name}").ok()
    assert np.load(tmp_path / "J.npz")["jacobian"].tolist() == [W] * 3
    with safe_open(tmp_path / "J.safetensors", "np") as saved:
        assert list(saved.keys()) == ["jacobian"]


def test_provenance(cli: Run, files: Path, tmp_path: Path) -> None:
    argv = [*LINEAR, "--method", "loop", "-o", str(tmp_path / "a b.safetensors")]
    cli(*argv).ok()
    with safe_open(tmp_path / "a b.safetensors", "np") as saved:
        about = saved.metadata()
    assert about["model"] == "linear.pt"
    assert about["model_sha256"] == hashlib.sha256((files / "linear.pt").read_bytes()).hexdigest()
    assert (about["source"], about["target"], about["method"]) == ("input", "output", "loop")
    assert (about["jaccli"], about["torch"]) == (jaccli.__version__, torch.__version__)
    assert about["command"] == " ".join(["jaccli", *argv[:-1], f"'{argv[-1]}'"])


def test_the_same_twice(cli: Run) -> None:
    argv = (*MLP, "--layer", "**", "--format", "jsonl")
    first = [(line["source"], line["sample"]) for line in cli(*argv).ok().lines]
    assert first == [(line["source"], line["sample"]) for line in cli(*argv).ok().lines]


@pytest.mark.parametrize(
    ("globs", "layers"),
    [
        (["blocks.*"], ["blocks.0", "blocks.1"]),
        (["blocks.?.1"], ["blocks.0.1", "blocks.1.1"]),
        (["*"], ["embed", "head"]),
        (["**.0"], ["blocks.0", "blocks.0.0", "blocks.1.0"]),
        (["{head,embed}"], ["embed", "head"]),
        (["head", "embed", "head"], ["head", "embed"]),
        (["embed", "*"], ["embed", "head"]),
        (["blocks.1[0]", "blocks.*:in"], ["blocks.1[0]", "blocks.0:in", "blocks.1:in"]),
    ],
)
def test_layers_by_glob_and_repetition(cli: Run, globs: list[str], layers: list[str]) -> None:
    flags = [word for glob in globs for word in ("--layer", glob)]
    lines = cli(*MLP, *flags, "--samples", 0, "--format", "jsonl", "-q").ok().lines
    assert [line["source"] for line in lines] == layers


@pytest.mark.parametrize(
    ("source", "target", "shape"),
    [
        ("twice#1", "twice#2", [4, 4]),
        ("twice#2:in", "output[0]", [1, 4]),
        ("split:out.1", "output", [4, 2]),
        ("named:out.a", "output[1:3]", [2, 4]),
        ("flip@1", "output", [4, 4]),
        ("twice#2[[0, 2]]", "split:out.0", [2, 2]),
        ("input", "flip@1[-1]", [1, 4]),
    ],
)
def test_ports_calls_elements_and_indices(cli: Run, source: str, target: str, shape: list[int]) -> None:
    argv = ("compute", "tricky.pt", "-i", "x4.npy", "--from", source, "--to", target, "--format", "jsonl")
    lines = cli(*argv).ok().lines
    assert len(lines) == 3
    assert lines[0]["shape"] == shape
    assert (lines[0]["source"], lines[0]["target"]) == (source, target)


def test_no_path_is_zeros_and_a_note(cli: Run) -> None:
    result = cli(*MLP, "--from", "head", "--to", "embed", "--format", "jsonl").ok()
    assert result.lines[0]["jacobian"] == [[0.0, 0.0]] * 4
    assert "note: head -> embed: J is zero" in result.err
    assert len(result.err.splitlines()) == 1


def test_samples_keep_their_numbers(cli: Run, files: Path) -> None:
    lines = cli(*MLP, "--samples", "3:5,0,-1", "--format", "jsonl").ok().lines
    assert [line["sample"] for line in lines] == [3, 4, 0, 4]
    np.testing.assert_allclose([line["jacobian"] for line in lines], truth(files)[[3, 4, 0, 4]], rtol=1e-5, atol=1e-7)


def test_further_arguments(cli: Run, files: Path) -> None:
    args = ("compute", "args.pt", "-i", "x2.npy", "--format", "jsonl")
    mask = np.load(files / "mask.npy")

    def found(*argv: str) -> list[Any]:
        return [line["jacobian"] for line in cli(*args, *argv).ok().lines]

    assert found("--arg", "rate=3") == [[[3.0, 0.0], [0.0, 3.0]]] * 3
    assert found("--arg", "1=3.0") == found("--arg", "rate=3")
    masked = found("--arg", "rate=3", "--arg", "mask=@mask.npy")
    assert masked == [(3 * np.diag(row)).tolist() for row in mask]
    assert found("--arg", "1=3", "--arg", "2=@mask.npy", "--samples", "2,1") == [masked[2], masked[1]]


@pytest.mark.parametrize("given", ["two.npz[a]", "x3.csv", "doubles.npy"])
def test_input_forms(cli: Run, files: Path, given: str) -> None:
    J = np.load(io.BytesIO(cli("compute", "mlp.pt", "-i", given).ok().out))
    np.testing.assert_allclose(J, truth(files), rtol=1e-5, atol=1e-7)


def test_chunk_threads_and_memory_change_no_number(cli: Run) -> None:
    plain = np.load(io.BytesIO(cli(*MLP, "--dtype", "float64").ok().out))
    for flags in (["--chunk", "1"], ["--threads", "2"], ["--max-memory", "2KiB"], ["--device", "cpu"]):
        other = np.load(io.BytesIO(cli(*MLP, "--dtype", "float64", *flags).ok().out))
        np.testing.assert_allclose(other, plain, rtol=1e-12)


def test_force_replaces(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "J.npy"
    path.write_bytes(b"old")
    cli(*LINEAR, "-o", path, "--force").ok()
    assert np.load(path).tolist() == [W] * 3


def test_explain_says_the_plan_on_standard_error(cli: Run) -> None:
    result = cli(*LINEAR, "--explain", "--format", "csv").ok()
    assert result.err.startswith("plan input -> output: J is 2 x 2 for each of 3 samples (48 B)\n")
    assert "method  " in result.err
    assert "2 backward passes" in result.err
    chosen = result.err.split("method  ")[1].split(":")[0]
    told = {line.split(":")[0].removeprefix("  not ") for line in result.err.splitlines() if line.startswith("  not ")}
    assert told == set(METHOD_NAMES) - {"auto", chosen}
    assert "plan" not in result.text


def test_an_option_may_stand_anywhere(cli: Run) -> None:
    assert json.loads(cli("compute", "--format", "jsonl", "-i", "x2.npy", "--samples=0", "linear.pt").ok().out)


@pytest.mark.parametrize("extension", [name for name in FORMATS if name != "npy"])
def test_a_saved_jacobian_remembers_the_numbers_of_its_samples(cli: Run, tmp_path: Path, extension: str) -> None:
    saved = str(tmp_path / f"numbered.{extension}")
    cli(*LINEAR, "--samples", "2,1", "-o", saved).ok()
    for command in (("deviation", "--jacobian"), ("show",)):
        rows = cli(*command, saved, "--format", "jsonl").ok().lines
        assert [row["sample"] for row in rows] == [2, 1]


def test_a_file_that_was_written_is_named(cli: Run, tmp_path: Path) -> None:
    assert f"note: wrote {tmp_path / 'J.npy'}: 5 x 2 x 3" in cli(*MLP, "-o", str(tmp_path / "J.npy")).ok().err
    assert "wrote" not in cli(*MLP, "-q", "-o", str(tmp_path / "K.npy")).ok().err


def test_no_arguments_show_the_help(cli: Run) -> None:
    assert cli().ok().text == cli("--help").ok().text


@pytest.mark.parametrize("command", ["compute", "deviation --layer input --to fc", "spectrum --layer fc", "bench"])
def test_what_cannot_fit_is_refused_before_the_work(cli: Run, command: str) -> None:
    """An estimate takes the place of J where a command has one: its passes are of few samples too."""
    Path("counted.py").write_text(COUNTED)
    Path("batches.txt").unlink(missing_ok=True)
    result = cli(*command.split(), "counted.py:Large", "-i", "random:64,n=400", "--max-memory", "20kB")
    assert result.code == 5
    assert 2 <= len(result.err.splitlines()) <= 4
    assert sum(map(int, Path("batches.txt").read_text().split())) < 40


COUNTED = """
from torch import nn

class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x):
        with open("batches.txt", "a") as file:
            print(len(x), file=file)
        return self.fc(x).repeat(1, 256)
"""
