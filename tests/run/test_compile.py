"""``compile=True``: the same numbers, its time apart, and no failure where there is no compiler."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import jaccli
from jaccli.cli.app import app
from jaccli.cli.flags import error_in_flags
from jaccli.run import program_builder
from tests.oracle import error
from tests.structured_networks import BY_NAME, normal

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double().eval()


@needs_compiler
def test_a_compiled_plan_gives_the_same_numbers() -> None:
    model = network()
    plan = jaccli.plan(model, normal((3, 6), 1), method="structured", compile=True)
    assert plan.compile_s is not None
    assert plan.compile_s > 0
    assert "compile " in str(plan)
    assert plan.program_cache is not None
    (runner,) = plan.program_cache.programs.values()
    assert runner is not None
    assert runner.seconds < plan.compile_s
    for seed in (2, 3):
        x = normal((3, 6), seed)
        assert error(plan(x), jaccli.jacobian(model, x, method="loop")) < 1e-10
    held = [plan(normal((3, 6), seed)) for seed in (2, 3)]
    assert not torch.equal(*held)


@pytest.mark.parametrize(
    "name", ["attention", "LSTM", "GRU", "residual", "coupling", "convolution windows", "slice and cat"]
)
def test_nothing_that_a_program_does_keeps_the_compiler_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own part is done in earnest; that of the C++ compiler, the same for all, is left out for time."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **given: compile_(call, backend="aot_eager", **given))
    s = BY_NAME[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", jaccli.JaccliNote)
        plan = jaccli.plan(
            s.model(), s.x(1), source=s.source, target=s.target, args=s.args(), method="structured", compile=True
        )
    assert plan.compile_s is not None
    truth = jaccli.jacobian(s.model(), s.x(2), source=s.source, target=s.target, args=s.args(), method="loop")
    assert error(plan(s.x(2), args=s.args()), truth) < 1e-10


def test_every_program_of_a_race_may_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock chooses among bracketings; torch refuses some (views of views that are written to): another is taken.

    More than eight programs of one process, at which torch 2.11 stopped.
    """
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **given: compile_(call, backend="aot_eager", **given))
    s = BY_NAME["convolution windows"]
    for turn in range(10):
        monkeypatch.setattr(program_builder, "_fastest", lambda runners, _, turn=turn: runners[turn % len(runners)])
        with warnings.catch_warnings():
            warnings.simplefilter("error", jaccli.JaccliNote)
            plan = jaccli.plan(s.model(), s.x(1), source=s.source, target=s.target, method="structured", compile=True)
        assert plan.compile_s is not None


def broken(call: Any, **_: Any) -> Any:
    raise RuntimeError("no C++ compiler\nand pages of text")


def wrong(call: Any, **_: Any) -> Any:
    return lambda *args: tuple(2 * t for t in call(*args))


@pytest.mark.parametrize(("compiler", "why"), [(broken, "no C++ compiler"), (wrong, "another J")])
def test_what_cannot_be_compiled_runs_as_it_is(compiler: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    model, x = network(), normal((3, 6), 1)
    with pytest.warns(jaccli.JaccliNote, match=rf"compile=True: .*{re.escape(why)}.*; the program runs uncompiled$"):
        plan = jaccli.plan(model, x, method="structured", compile=True)
    assert plan.compile_s is None
    assert "compile" not in str(plan)
    assert error(plan(2 * x), jaccli.jacobian(model, 2 * x, method="loop")) < 1e-10


def test_other_methods_are_refused() -> None:
    with pytest.raises(jaccli.UsageError, match="compile=True has nothing to compile with the method 'reverse'"):
        jaccli.plan(network(), normal((3, 6), 1), method="reverse", compile=True)
    arguments = ["compute", "missing.pt", "-i", "random:6", "--compile", "--method", "loop"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, jaccli.UsageError)
    assert "--compile has nothing" in error_in_flags(result.exception)


def counted(call: Any, **_: Any) -> Any:
    counted.calls += 1  # type: ignore[attr-defined]
    return call


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    counted.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "compile", counted)
    torch.jit.script(network().float()).save(tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def test_deviation_reports_the_time_apart(model_file: str) -> None:
    """Blocks of one shape share a program; a last one of another shape gets none."""
    arguments = ["deviation", model_file, "-i", "random:6,n=150", "--layer", "input", "--format", "json"]
    plain = json.loads(CliRunner().invoke(app, [*arguments, "--method", "loop"]).stdout)
    assert "compile_s" not in plain["timing"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, [*arguments, "--method", "structured", "--compile"])
    document = json.loads(done.stdout)
    assert counted.calls == 1  # type: ignore[attr-defined]
    assert document["timing"]["compile_s"] > 0
    assert document["pairs"][0]["method"] == "structured"
    for a, b in zip(plain["pairs"][0]["samples"], document["pairs"][0]["samples"], strict=True):
        assert a["frobenius"] == pytest.approx(b["frobenius"], rel=1e-5)


def test_bench_reports_the_time_apart(model_file: str) -> None:
    arguments = ["bench", model_file, "-i", "random:6,n=3", "--methods", "structured,reverse", "--rounds", "2"]
    done = CliRunner().invoke(app, [*arguments, "--compile", "--format", "json"])
    ours, plain = json.loads(done.stdout)["methods"]
    assert ours["compile_s"] > 0
    assert ours["max_error"] < 1e-5
    assert "compile_s" not in plain
