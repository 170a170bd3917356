"""The reference that bench holds methods against, and the figures about J."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.linear_maps.extreme_singular_values import spectral_norm
from jaccli.models.adapt import as_network
from jaccli.names import NORMS
from jaccli.run.reference import reference, relative_error
from jaccli.statistics.identity_distance import deviation, summary
from tests import nets
from tests.oracle import error
from tests.scenarios import TABLE, Scenario, case_name

PLAIN = [s for s in TABLE if torch.float32 in s.dtypes]


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("s", PLAIN, ids=case_name)
def test_reference_agrees_with_the_oracle(s: Scenario) -> None:
    network = as_network(s.model(torch.float32))
    pair = (resolve(network, s.source), resolve(network, s.target))
    extras = s.extras(torch.float32)
    dim = (pair[0].dim or 0) if pair[0].is_model_input else 0
    inputs = Inputs((s.x(torch.float32), *extras["args"]), extras["kwargs"], dim)
    got = reference(network, inputs, pair, samples_mix=bool(s.takes) and s.train)
    assert got.name == "float64 reverse mode"
    assert got.matrix is not None
    assert error(got.matrix, s.truth()) < 1e-10


def test_reference_of_a_model_without_float64() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x.float() @ torch.ones(3, 2))

    network = as_network(Single())
    pair = (resolve(network, "input"), resolve(network, "output"))
    x = 0.1 * torch.randn(4, 3)
    got = reference(network, Inputs((x,)), pair)
    assert "float32 row by row" in got.name
    assert got.matrix is not None
    truth = (1 - torch.tanh(x.sum(1, keepdim=True)) ** 2).unsqueeze(2).expand(4, 2, 3)
    assert error(got.matrix, truth) < 1e-6


def test_no_reference_without_a_backward_pass() -> None:
    network = as_network(nets.NoBackward())
    pair = (resolve(network, "input"), resolve(network, "output"))
    got = reference(network, Inputs((torch.randn(2, 3),)), pair)
    assert got.matrix is None
    assert got.name.startswith("none")
    assert relative_error(torch.zeros(1, 1, 1), None) is None


def test_relative_error() -> None:
    truth = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert relative_error(truth + torch.tensor([[[0.5, 0.0]], [[0.0, 0.0]]]), truth) == pytest.approx(0.1)
    assert relative_error(truth + torch.tensor([[[0.0, 0.0]], [[0.25, 0.0]]]), truth) == pytest.approx(0.25)


@pytest.mark.parametrize("n", [1, 2, 5, 430])
def test_deviation_against_numpy(n: int) -> None:
    j = np.random.default_rng(0).normal(size=(n, n))
    d = j - np.eye(n)
    got = deviation(torch.from_numpy(j))
    want = {
        "frobenius": np.linalg.norm(d),
        "relative": np.linalg.norm(d) / math.sqrt(n),
        "spectral": np.linalg.norm(d, 2),
        "l1": np.abs(d).sum(),
        "max_abs": np.abs(d).max(),
        "trace": np.trace(j),
        "alpha": np.trace(j) / n,
        "identity_share": np.trace(j) ** 2 / n / np.linalg.norm(j) ** 2,
    }
    assert tuple(got) == NORMS
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name


def test_deviation_of_the_identity_and_of_zero() -> None:
    same = deviation(torch.eye(4))
    assert same["frobenius"] == 0
    assert same["identity_share"] == pytest.approx(1)
    none = deviation(torch.zeros(3, 3))
    assert none["relative"] == pytest.approx(1)
    assert math.isnan(none["identity_share"])
    with pytest.raises(jaccli.UsageError, match="2 x 3"):
        deviation(torch.zeros(2, 3))
    assert math.isnan(spectral_norm(torch.full((2, 2), math.nan, dtype=torch.float64)))


def test_summary() -> None:
    table = summary([{"a": 1.0}, {"a": 3.0}], ["a"])
    assert table == {"a": {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}}
