"""``bench``: whose turn it is, what is said of methods that fail, and figures held against known cases."""

import csv
import io
import itertools
import re
from typing import Any

import pytest
import torch
from torch import nn

from jaccli.activations.address import parse_address
from jaccli.activations.record import Inputs
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES, MethodName
from jaccli.run import benchmark as bench
from jaccli.run.benchmark import Contender, race, ratio_interval
from jaccli.run.reference import Reference, relative_error

from . import nets
from .conftest import Run

BENCH = ("bench", "mlp.pt", "-i", "x3.npy", "--layer", "embed", "--rounds", "3")
PAIR = parse_address("input"), parse_address("output")


def raced(model: nn.Module, x: torch.Tensor, methods: list[MethodName], rounds: int = 3, **more: Any) -> bench.Race:
    return race(as_network(model.eval()), Inputs((x,)), PAIR, methods, rounds=rounds, **more)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls in their order; each is said to take a second more than the one before."""
    made: list[str] = []
    clock = itertools.count(1)

    def timed(contender: Contender) -> tuple[float, torch.Tensor]:
        assert contender.call is not None
        made.append(contender.method)
        return float(next(clock)), contender.call()

    monkeypatch.setattr(bench, "_timed", timed)
    return made


def test_rounds_are_interleaved_in_an_order_drawn_anew(turns: list[str]) -> None:
    methods: list[MethodName] = ["loop", "reverse", "replicate"]
    result = raced(nets.Linear(), torch.ones(2, 2), methods, rounds=6)
    warm = [method for method, _ in itertools.groupby(turns[:-18])]
    assert warm == methods
    rounds = [tuple(turns[at : at + 3]) for at in range(len(turns) - 18, len(turns), 3)]
    assert all(sorted(order) == sorted(methods) for order in rounds)
    assert len(set(rounds)) > 2
    # The warm-up is not among the times, whether or not the number of rounds is given.
    places = [turn + 1 for turn, method in enumerate(turns) if method == "loop" and turn >= len(turns) - 18]
    assert result.contenders[0].times_s == places
    assert [len(c.times_s) for c in result.contenders] == [6, 6, 6]


def test_rounds_fill_the_time(turns: list[str]) -> None:
    result = race(as_network(nets.Linear()), Inputs((torch.ones(2, 2),)), PAIR, ["loop"], max_time=20.0)
    warm = len(turns) - result.rounds
    assert result.rounds == max(20 // warm, 3)
    assert len(result.contenders[0].times_s) == result.rounds


def test_a_short_first_call_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward mode imports for seconds at its first call, which must not count as a round."""
    times = iter([2.0, 0.25])
    monkeypatch.setattr(bench, "_timed", lambda contender: (next(times), torch.eye(2)[None]))
    contender = Contender("forward")
    bench._warm_up(contender, Reference(torch.eye(2)[None], "truth"))
    assert contender.times_s == [0.25]


def test_relative_error_of_a_known_case() -> None:
    truth = torch.stack([torch.eye(2), 2 * torch.eye(2), torch.zeros(2, 2)]).double()
    J = truth.clone()
    J[1, 0, 1] = 0.5
    J[2, 0, 0] = 0.1
    assert relative_error(J, truth) == pytest.approx(0.5 / 8**0.5)
    assert relative_error(truth, truth) == 0
    assert relative_error(truth, None) is None


def test_intervals() -> None:
    ratio, low, high = ratio_interval([2.0, 2.2, 1.8, 2.0], [1.0, 1.1, 0.9, 1.0])
    assert ratio == pytest.approx(2)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)
    ratio, low, high = ratio_interval([1.0, 2.0, 3.0, 9.0, 2.0], [1.0] * 5)
    assert 1 <= low <= ratio == 2 <= high <= 9
    assert ratio_interval([3.0, 1.0, 2.0], [3.0, 1.0, 2.0]) == (1, 1, 1)


def test_replicate_holds_more_than_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())))
    result = raced(model, torch.randn(4, 64), ["loop", "replicate"], rounds=1)
    loop, replicate = (c.peak_bytes for c in result.contenders)
    assert loop is not None
    assert replicate is not None
    assert replicate > 3 * loop >= 3 * 4 * 64 * 64 * 4  # at least J itself


def test_a_method_that_cannot_is_said_to_have_failed() -> None:
    result = raced(nets.Detached(), torch.ones(2, 3), ["finite-difference", "loop", "reverse"])
    status = {c.method: c.status for c in result.contenders}
    assert status == {"finite-difference": "ok", "loop": "failed", "reverse": "failed"}
    loop = result.contenders[1]
    assert "no backward here" in loop.why
    assert loop.times_s == []
    assert loop.max_error is None
    assert result.reference.matrix is None
    assert "none" in result.reference.name


def test_the_reference_is_named(cli: Run) -> None:
    argv = ("--rounds", 2, "--methods", "loop,reverse", "--format", "json")
    assert cli(*BENCH, *argv).ok().json["reference"] == "float64 reverse mode"
    found = cli("bench", "single.pt", "-i", "x3.npy", *argv).ok().json
    assert found["reference"].startswith("float32 row by row")
    assert max(method["max_error"] for method in found["methods"]) < 1e-5


def test_json(cli: Run) -> None:
    found = cli(*BENCH, "--methods", "loop, auto,reverse,loop", "--format", "json").ok().json
    assert (found["schema_version"], found["command"], found["rounds"], found["samples"]) == (1, "bench", 3, 5)
    assert found["pair"] == {"source": {"layer": "embed", "size": 4}, "target": {"layer": "output", "size": 2}}
    loop, auto, reverse = found["methods"]
    assert [m["method"] for m in found["methods"]] == ["loop", "auto", "reverse"]
    assert auto["takes"] in METHOD_NAMES
    assert auto["takes"] != "auto"
    for method in (loop, auto, reverse):
        assert method["status"] == "ok"
        assert len(method["times_s"]) == 3
        assert method["median_s"] == pytest.approx(sorted(method["times_s"])[1])
        assert method["min_s"] == min(method["times_s"])
        assert 0 <= method["max_error"] < 1e-5
        assert method["peak_bytes"] >= 5 * 2 * 4 * 4
        assert method["predicted_bytes"] >= 5 * 2 * 4 * 4
        assert method["predicted_s"] > 0
        low, high = method["relative_ci95"]
        assert low <= method["relative"] <= high
    assert min(m["relative"] for m in found["methods"]) == 1


def test_all_methods_in_the_order_of_the_documentation(cli: Run) -> None:
    lines = cli(*BENCH, "--rounds", "1").ok().lines
    assert [line["method"] for line in lines] == list(METHOD_NAMES)
    assert {line["status"] for line in lines} == {"ok"}
    exact = {line["method"]: line["max_error"] for line in lines}
    assert exact.pop("finite-difference") < 1e-2
    assert max(exact.values()) < 1e-5


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "jsonl"])
def test_forms(cli: Run, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli(*BENCH, "--methods", "auto,loop", "--format", form).ok()
    text = result.text
    assert "loop" in text
    if form == "table":
        assert "embed -> output: J is 2 x 4 for each of 5 samples; 3 rounds" in text
        assert re.search(r"auto \([a-z-]+\)  ", text)
        assert "predicted" in text
        assert "relative: to the fastest" in text
        assert max(map(len, text.splitlines())) <= 80
    if form == "markdown":
        head, marks, *rows = [line for line in text.splitlines() if line.startswith("|")]
        assert head.count("|") == marks.count("|") == 9
        assert len(rows) == 2
        assert "float64 reverse mode" in text
    if form == "csv":
        records = list(csv.DictReader(io.StringIO(text)))
        assert [record["method"] for record in records] == ["auto", "loop"]
        assert float(records[1]["median_s"]) > 0


def test_failures_are_told_below_the_table(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("bench", "nets.py:Detached", "-i", "x3.npy", "--rounds", "1", "--methods", "finite-difference,loop")
    result = cli(*argv, "--format", "table").ok()
    row = next(line for line in result.text.splitlines() if line.startswith("loop "))
    assert row.split()[:2] == ["loop", "failed"]
    assert "loop failed: " in result.text
    assert "no reference" in result.text
    assert "no backward here" in result.text
    lines = cli(*argv).ok().lines
    assert lines[1]["median_s"] is None
    assert "no backward here" in lines[1]["why"]
    assert lines[0]["max_error"] is None
