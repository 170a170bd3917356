"""Methods side by side: checked, interleaved, and those that fail say why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.networks.network import Network
from jaccli.planning.linearize import Pair
from jaccli.run.benchmark import race, ratio_interval
from jaccli.run.program_cache import ProgramCache
from tests import nets
from tests.scenarios import chain


def entry(model: nn.Module) -> tuple[Network, Pair]:
    network = as_network(model)
    return network, (resolve(network, "input"), resolve(network, "output"))


def test_all_methods_are_timed_and_right() -> None:
    network, pair = entry(chain(5, 8, 4)())
    result = race(network, Inputs((torch.randn(3, 5),)), pair, METHOD_NAMES, rounds=3)
    assert [c.method for c in result.contenders] == list(METHOD_NAMES)
    assert result.shape == (3, 4, 5)
    assert result.rounds == 3
    assert result.reference.name == "float64 reverse mode"
    for c in result.contenders:
        assert c.status == "ok", c.why
        assert len(c.times_s) == 3
        assert c.median_s > 0
        assert c.max_error is not None
        assert c.max_error < (2e-6 if c.method != "finite-difference" else 1e-2)
        assert c.peak_bytes is not None
        assert c.peak_bytes >= 3 * 4 * 5 * 4
        assert c.predicted_s is not None
        assert c.predicted_s > 0
        assert c.predicted_bytes is not None
        assert c.predicted_bytes >= 3 * 4 * 5 * 4
        assert c.plan_s > 0


def test_a_planned_call_runs_a_program() -> None:
    """What is timed of ``structured`` is what ``jaccli.plan`` gives, recorded once."""
    network, pair = entry(chain(5, 8, 4)())
    result = race(network, Inputs((torch.randn(3, 5),)), pair, ["structured"], rounds=2)
    (ours,) = result.contenders
    cache = getattr(ours.call, "func", None)
    assert isinstance(cache, ProgramCache)
    assert [r is not None for r in cache.programs.values()] == [True]


def test_structured_that_cannot_capture_says_why() -> None:
    network, pair = entry(nets.Fourier())
    (only,) = race(network, Inputs((torch.randn(3, 5),)), pair, ["structured"], rounds=2).contenders
    assert only.status == "failed"
    assert "complex numbers" in only.why


def test_a_method_that_cannot_run_says_why() -> None:
    network, pair = entry(nets.OnlyForward())
    result = race(network, Inputs((torch.randn(3, 5),)), pair, ["reverse", "forward", "finite-difference"], rounds=2)
    by_name = {c.method: c for c in result.contenders}
    assert by_name["reverse"].status == "failed"
    assert "the backward pass is broken" in by_name["reverse"].why
    assert by_name["forward"].status == "ok"
    assert by_name["finite-difference"].status == "ok"
    assert result.reference.matrix is None
    assert by_name["forward"].max_error is None


def test_samples_that_mix_are_held_against_their_own_blocks() -> None:
    network, pair = entry(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.warns(UserWarning, match="samples mix"):
        result = race(network, Inputs((torch.randn(5, 4),)), pair, ["auto", "reverse", "loop", "forward"], rounds=2)
    for c in result.contenders:
        assert c.status == "ok", c.why
        assert c.max_error is not None
        assert c.max_error < 1e-5


def test_wrong_results_show() -> None:
    """The error is measured against the truth, not assumed."""
    network, pair = entry(nets.Detached())
    result = race(network, Inputs((torch.randn(2, 3),)), pair, ["finite-difference"], rounds=2)
    (only,) = result.contenders
    assert only.max_error is not None
    assert only.max_error > 0.1  # autograd sees zero


def test_ratio_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(10, 0.1, 30)
    ratio, low, high = ratio_interval(list(2 * base), list(base))
    assert ratio == pytest.approx(2, rel=1e-9)
    assert low <= 2.01
    assert high >= 1.99
    ratio, low, high = ratio_interval(list(rng.normal(10, 1, 30)), list(rng.normal(10, 1, 30)))
    assert low < ratio < high
    assert low < 1 < high
