"""An export with a fixed number of samples is never run with another: not by memory, estimates or training."""

from __future__ import annotations

import numpy as np
import pytest

import jaccli
from jaccli.errors import JaccliError, UnsupportedError
from jaccli.names import METHOD_NAMES

from .conftest import Run

PAIR = ("--layer", "embed", "--to", "blocks.1")
COMMANDS = {
    "compute": ("compute",),
    "chunk": ("compute", "--chunk", "1"),
    "layers": ("layers",),
    "deviation": ("deviation", *PAIR),
    "deviation estimated": ("deviation", *PAIR, "--estimate"),
    "probes": ("deviation", *PAIR, "--probes", "3"),
    "spectrum": ("spectrum", *PAIR),
    "spectrum estimated": ("spectrum", *PAIR, "--estimate", "--top", "1"),
    "bench": ("bench", "--rounds", "1", "--methods", "auto,reverse,replicate,finite-difference"),
    "regularize": ("regularize", *PAIR, "--steps", "3"),
    "hutchinson": ("regularize", *PAIR, "--steps", "3", "--estimator", "hutchinson"),
}


@pytest.mark.parametrize("batch", [5, 200])
@pytest.mark.parametrize("case", COMMANDS)
def test_commands(cli: Run, case: str, batch: int) -> None:
    """With the number of samples that it was exported for every one works, and says what the free export says."""
    command, *options = COMMANDS[case]
    given = ("-i", f"random:3,n={batch}", *options, "--format", "json", "-q")
    found = cli(command, f"static{batch}.pt2", *given).ok().json
    if command in ("deviation", "spectrum"):
        right = cli(command, "mlp.pt2", *given).ok().json
        for here, there in zip(found["pairs"][0]["samples"], right["pairs"][0]["samples"], strict=True):
            assert here["frobenius"] == pytest.approx(there["frobenius"], rel=1e-3)
    if command == "regularize":
        assert found["held_out"] is None
        assert found["after"]["train"]["samples"] == batch
    if command == "bench":
        methods = {one["method"]: one for one in found["methods"]}
        assert "does not take copies" in str(methods.pop("replicate"))
        assert all(one["status"] == "ok" and one["max_error"] < 1e-2 for one in methods.values())


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("count", [2, 6])
def test_another_number_of_samples(cli: Run, case: str, count: int) -> None:
    command, *options = COMMANDS[case]
    done = cli(command, "static5.pt2", "-i", f"random:3,n={count}", *options)
    assert done.code == 3
    assert f"has shape [{count}, 3]" in done.err
    assert "dynamic_shapes, or give 5 samples" in done.err


OPTIONS = {
    "samples": ("compute", "-i", "x3.npy", "--samples", "0:2"),
    "batch size": ("regularize", "-i", "x3.npy", *PAIR, "--batch-size", "2"),
    "validate": ("regularize", "-i", "x3.npy", *PAIR, "--validate", "two.npz[a]", "--samples", "0:4"),
    "validate others": ("regularize", "-i", "x3.npy", *PAIR, "--validate", "random:3,n=2"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cut(cli: Run, case: str) -> None:
    command, *options = OPTIONS[case]
    done = cli(command, "static5.pt2", *options)
    assert done.code == 4
    assert "exported for 5" in done.err
    assert "dynamic_shapes" in done.err


def test_samples_that_leave_the_right_number(cli: Run) -> None:
    found = cli("compute", "static5.pt2", "-i", "random:3,n=9", "--samples", "2:7", "--format", "json", "-q").ok()
    right = cli("compute", "mlp.pt2", "-i", "random:3,n=9", "--samples", "2:7", "--format", "json", "-q").ok()
    here, there = (done.json["jacobians"][0]["jacobian"] for done in (found, right))
    np.testing.assert_allclose(here, there, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_methods(cli: Run, method: str) -> None:
    del cli  # for its folder
    static, free = jaccli.load_model("static5.pt2"), jaccli.load_model("mlp.pt2")
    x = jaccli.samples.load.load_samples(jaccli.samples.spec.parse_input("x3.npy"))
    np.testing.assert_allclose(
        jaccli.jacobian(static, x, method=method), jaccli.jacobian(free, x), rtol=1e-3, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
def test_memory(cli: Run) -> None:
    """It fits, or the reason is told: no other number of samples is tried."""
    del cli
    static, reasons = jaccli.load_model("static200.pt2"), set()
    x = jaccli.samples.load.load_samples(jaccli.samples.spec.parse_input("random:3,n=200"))
    for limit in (1_000, 10_000, 100_000, 1_000_000):
        try:
            assert jaccli.jacobian(static, x, max_memory=limit).shape == (200, 2, 3)
        except JaccliError as error:
            reasons.add(type(error))
    assert UnsupportedError in reasons
