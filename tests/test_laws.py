"""What holds for every Jacobian, and networks drawn at random."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import jaccli
from tests import nets, oracle
from tests.oracle import INPUT, At, error
from tests.scenarios import TABLE, Scenario, case_name, chain

LINEAR = [s for s in TABLE if torch.float64 in s.dtypes and s.name not in ("detach",)]
SOME = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("s", LINEAR, ids=case_name)
def test_products_are_adjoint_and_linear(s: Scenario) -> None:
    torch.manual_seed(0)
    a = jaccli.operator(s.model(torch.float64), s.x(torch.float64), s.source, s.target, **s.extras(torch.float64))
    batch, n_out, n_in = a.shape
    v, w = torch.randn(2, batch, n_in, dtype=torch.float64)
    u = torch.randn(batch, n_out, dtype=torch.float64)
    jv, jw = a.matvec(v), a.matvec(w)
    scale = float(jv.norm() * u.norm()) + 1e-12
    # Where samples mix the identity holds for the whole batch, and so it does elsewhere.
    assert abs(float((u * jv).sum() - (a.rmatvec(u) * v).sum())) < 1e-12 * scale
    assert torch.allclose(a.matvec(2 * v - 3 * w), 2 * jv - 3 * jw, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "reverse", "forward"])
def test_chain_rule_over_adjacent_pairs(method: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nets.Residual(4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    stops = ["input", "0", "1", "2", "3", "4"]
    whole = torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    for a, b in pairwise(stops):
        whole = jaccli.jacobian(model, x, a, b, method=method) @ whole
        assert error(whole, jaccli.jacobian(model, x, "input", b, method=method)) < 1e-12


def test_residual_is_identity_plus_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    model, x = Block().double(), torch.randn(3, 4, dtype=torch.float64)
    whole = jaccli.jacobian(model, x)
    branch = jaccli.jacobian(model, x, "input", "branch")
    assert error(whole, torch.eye(4, dtype=torch.float64) + branch) < 1e-14


@pytest.mark.parametrize(
    ("layer", "slope"),
    [
        (nn.Softplus(), torch.sigmoid),
        (nn.Tanh(), lambda x: 1 - torch.tanh(x) ** 2),
        (nn.Sigmoid(), lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
        (nn.ReLU(), lambda x: (x > 0).double()),
        (nn.SELU(), None),
    ],
)
def test_elementwise_layers_are_diagonal(layer: nn.Module, slope: Any) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    for method in ("auto", "reverse", "forward", "replicate"):
        j = jaccli.jacobian(layer, x, method=method)
        assert torch.equal(j, torch.diag_embed(j.diagonal(dim1=1, dim2=2)))
        if slope is not None:
            assert torch.allclose(j.diagonal(dim1=1, dim2=2), slope(x), rtol=1e-12)


def test_closed_forms() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    p = torch.softmax(x, 1)
    assert error(jaccli.jacobian(nn.Softmax(1), x), torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)) < 1e-14
    norm = nn.LayerNorm(5, eps=0.0).double()
    centre = torch.eye(5, dtype=torch.float64) - 0.2
    spread = (x.var(1, unbiased=False)).sqrt().reshape(-1, 1, 1)
    hat = ((x - x.mean(1, keepdim=True)) / spread[..., 0]).unsqueeze(2)
    assert error(jaccli.jacobian(norm, x), (centre - hat @ hat.mT / 5) / spread) < 1e-13
    one, two = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    h = torch.tanh(one(x))
    truth = two.weight @ torch.diag_embed(1 - h**2) @ one.weight
    assert error(jaccli.jacobian(nn.Sequential(one, nn.Tanh(), two), x), truth.detach()) < 1e-14


class Tangle(nn.Module):
    """A random graph of layers: node k reads some earlier nodes and adds or multiplies what they give."""

    def __init__(self, plan: list[tuple[list[int], str, str]], width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.plan = plan
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in plan)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, (reads, merge, act) in zip(self.layers, self.plan, strict=True):
            chosen = [values[r % len(values)] for r in reads]
            mixed = chosen[0]
            for other in chosen[1:]:
                mixed = mixed + other if merge == "add" else mixed * other.sigmoid()
            out = layer(mixed)
            values.append(
                {"tanh": torch.tanh, "relu": torch.relu, "inplace": torch.relu_, "none": lambda t: t}[act](out)
            )
        return values[-1]


NODE = st.tuples(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from(["add", "times"]),
    st.sampled_from(["tanh", "relu", "inplace", "none"]),
)


@SOME
@given(
    plan=st.lists(NODE, min_size=1, max_size=6),
    width=st.integers(1, 4),
    batch=st.integers(1, 4),
    seed=st.integers(0, 99),
    ends=st.tuples(st.integers(-1, 5), st.integers(0, 6)),
    method=st.sampled_from(["auto", "reverse", "forward", "loop", "replicate", "functional", "finite-difference"]),
)
@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
def test_random_networks(plan: Any, width: int, batch: int, seed: int, ends: tuple[int, int], method: str) -> None:
    model = Tangle(plan, width, seed).double()
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first, last = ends[0] % (len(plan) + 1) - 1, min(ends[1], len(plan))
    source = "input" if first < 0 else f"layers.{first}"
    target = "output" if last == len(plan) else f"layers.{last}"
    cut = (INPUT if first < 0 else At(source), oracle.OUTPUT if target == "output" else At(target))
    truth = oracle.jacobian(copy.deepcopy(model), x, *cut)
    j = jaccli.jacobian(model, x, source, target, method=method)
    assert error(j, truth) < (1e-10 if method != "finite-difference" else 1e-5)


@SOME
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch=st.integers(1, 4),
    chunk=st.integers(1, 9),
    method=st.sampled_from(["reverse", "forward", "replicate", "finite-difference"]),
)
@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
def test_random_chains_and_chunks(sizes: list[int], batch: int, chunk: int, method: str) -> None:
    model, x = chain(*sizes)().double(), torch.randn(batch, sizes[0], dtype=torch.float64)
    truth = oracle.jacobian(copy.deepcopy(model), x, INPUT, oracle.OUTPUT)
    j = jaccli.jacobian(model, x, method=method, chunk=chunk)
    assert error(j, truth) < (1e-12 if method != "finite-difference" else 1e-6)
