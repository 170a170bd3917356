"""A pair of which source and target are the same activation: named, marked, and in no mean and no gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from .conftest import Run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its last two layers hand on the output; J from the layers before is 3 I and 1.73 I."""
    chain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Identity()).eval()
    for layer in chain[:3]:
        layer.weight.data = 3**0.5 * torch.eye(3)  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("trivial") / "model.pt"
    torch.jit.trace(chain, torch.ones(1, 3)).save(str(path))
    return str(path)


NOTE = "note: 2 -> output, 3 -> output: source and target are the same activation"
INPUT = ("-i", "random:3,n=2")


@pytest.mark.parametrize("how", [(), ("--estimate",), ("--method", "finite-difference")])
@pytest.mark.parametrize("command", ["deviation", "spectrum"])
def test_it_is_named_once_and_marked(command: str, how: tuple[str, ...], cli: Run, model: str) -> None:
    done = cli(command, model, *INPUT, "--layer", "*", "--format", "json", *how).ok()
    marks = {pair["source"]["layer"]: pair.get("trivial") for pair in done.json["pairs"]}
    assert marks == {"0": None, "1": None, "2": True, "3": True}
    assert done.err.count(NOTE) == done.err.count("same activation") == 1
    lines = cli(command, model, *INPUT, "--layer", "*", "--format", "jsonl", *how).ok().lines
    assert [line.get("trivial") for line in lines] == [None] * 4 + [True] * 4
    assert "same activation" not in cli(command, model, *INPUT, "--layer", "{0,1}", *how).ok().err


def test_a_table_of_values_keeps_its_columns(cli: Run, model: str) -> None:
    head, *rows = cli("deviation", model, *INPUT, "--layer", "*", "--format", "csv").ok().text.splitlines()
    assert head.endswith(",method,trivial")
    assert {row.count(",") for row in rows} == {head.count(",")}


def test_a_gate_does_not_see_it(cli: Run, model: str) -> None:
    """Of J = 3 I and J = 1.73 I the first is above; trivial pairs are not counted, and do not pass alone."""
    gate = ("--fail-above", "relative=1", "--layer")
    failed = cli("deviation", model, *INPUT, *gate, "*")
    assert failed.code == 1
    assert "for 2 of 4 samples" in failed.err
    for layers in (["2"], ["{2,3}"], ["2", "--layer", "3"]):
        refused = cli("deviation", model, *INPUT, *gate, *layers)
        assert refused.code == 2
        assert "2 -> output" in refused.err
        assert not refused.out
    assert cli("deviation", model, *INPUT, "--layer", "2").code == 0


def test_a_layer_is_trained_only_where_something_can_be(cli: Run, model: str) -> None:
    few = ("--steps", "1", "--format", "json")
    refused = cli("regularize", model, *INPUT, "--layer", "3", *few)
    assert refused.code == 4
    assert "same activation" in refused.err
    done = cli("regularize", model, *INPUT, "--layer", "*", *few).ok()
    assert [pair["source"]["layer"] for pair in done.json["pairs"]] == ["0", "1"]
    assert done.err.count("same activation") == 1, "equal notes are one"


def test_a_chain_has_no_step_there(cli: Run, model: str) -> None:
    done = cli("spectrum", model, *INPUT, "--layer", "{0,1,2}", "--lyapunov", "--format", "json").ok()
    assert done.json["lyapunov"]["layers"] == ["0", "1", "2"]


def test_a_saved_matrix_is_not_concerned(cli: Run, model: str, tmp_path: Path) -> None:
    cli("compute", model, *INPUT, "--layer", "3", "-o", tmp_path / "J.npz").ok()
    done = cli("deviation", "--jacobian", tmp_path / "J.npz", "--fail-above", "relative=1", "--format", "json").ok()
    assert "trivial" not in done.json["pairs"][0]
