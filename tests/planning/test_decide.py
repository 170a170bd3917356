"""Plans: reusable, refused where they do not fit, and passes as many as they say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import expand, resolve
from jaccli.linearization.activation_memory import footprint
from jaccli.methods import METHODS
from jaccli.methods.auto import structure_within
from jaccli.methods.base import MethodSelection, SelectionInput
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.planning.decide import decide
from jaccli.planning.linearize import computing, linearize
from jaccli.run.blocks import RunOptions, stream
from tests.oracle import error
from tests.scenarios import BY_NAME, TABLE, Scenario, case_name, chain

EXACT_METHODS = [m for m in METHOD_NAMES if m != "finite-difference"]
STATELESS = [s for s in TABLE if not s.train and torch.float64 in s.dtypes and s.source != "emb"]


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("s", STATELESS, ids=case_name)
def test_a_plan_run_elsewhere_equals_a_fresh_one(s: Scenario) -> None:
    model, x, extras = s.model(torch.float64), s.x(torch.float64), s.extras(torch.float64)
    plan = jaccli.plan(model, x, s.source, s.target, **extras)
    assert f"{s.source} -> {s.target}" in str(plan)
    assert plan.shape == tuple(s.truth().shape)
    elsewhere = x.flip(0) * 1.5 + 0.25
    fresh = jaccli.jacobian(model, elsewhere, s.source, s.target, method="loop", **extras)
    assert error(plan(elsewhere, **extras), fresh) < 1e-10
    assert error(plan(x, **extras), s.truth()) < 1e-10


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_plan_takes_any_number_of_samples(method: str) -> None:
    model = chain(4, 6, 3)().double()
    plan = jaccli.plan(model, torch.randn(3, 4, dtype=torch.float64), method=method)
    for batch in (1, 2, 7, 150):
        x = torch.randn(batch, 4, dtype=torch.float64)
        assert error(plan(x), jaccli.jacobian(model, x, method="loop")) < 1e-7


def test_plan_refuses_field_by_field() -> None:
    plan = jaccli.plan(chain(4, 3)(), torch.randn(2, 4))
    for x, field in (
        (torch.randn(2, 5), "sample shape"),
        (torch.randn(2, 4, 1), "sample shape"),
        (torch.randn(2, 4).double(), "dtype"),
        (torch.randn(2, 4, device="meta"), "device"),
    ):
        with pytest.raises(jaccli.UsageError, match=f"does not fit: {field}"):
            plan(x)


def test_plan_made_where_there_is_no_path() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2 if x.sum() > 0 else torch.zeros_like(x)

    x = torch.tensor([[1.0, 2.0]])
    with pytest.warns(jaccli.JaccliNote, match="J is zero"):
        at_zero = (plan := jaccli.plan(Gate(), -x))(-x)
    assert not at_zero.any()
    assert torch.equal(plan(x)[0], torch.diag(2 * x[0]))


class Counted(nn.Sequential):
    calls = 0

    def forward(self, x: Any) -> Any:
        type(self).calls += 1
        return super().forward(x)


@pytest.mark.parametrize("method", ["auto", "reverse", "loop"])
def test_one_forward_pass_for_many_pairs(method: Any) -> None:
    model = Counted(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5)))
    network = as_network(model)
    target = resolve(network, "output")
    pairs = [(s, target) for s in expand(network, ["input", "*", "2.0"])]
    assert len(pairs) == 7
    Counted.calls = 0
    pieces = list(stream(network, Inputs((torch.randn(3, 4),)), pairs, RunOptions(method)))
    assert Counted.calls == 2  # one is kept; another tells whether code of one's own gives the same again
    assert [p.pair for p in pieces] == pairs


def test_pairs_do_not_disturb_each_other() -> None:
    """From one forward pass, with sources on the way of others, as each alone."""
    for name in ("residual, tokens", "second call to head", "dict key", "conv", "LSTM state"):
        s = BY_NAME[name]
        model, x = s.model(torch.float64), s.x(torch.float64)
        network = as_network(model)
        names = {
            "conv": ["input", "0", "1", "1[0]", "3"],
            "second call to head": ["input", "fc#1", "fc#2", "fc#2:in"],
            "residual, tokens": ["input", "norm", "up", "up:in", "down"],
            "LSTM state": ["input", "rnn:out.0"],
            "dict key": ["input", "body:out.mean", "body:out.spread", "body.a"],
        }[name]
        target = {"dict key": "output:out.extra"}.get(name, "output")
        pairs = [(resolve(network, n), resolve(network, target)) for n in names]
        pieces = list(stream(network, Inputs((x,)), pairs, RunOptions("reverse")))
        for source, piece in zip(names, pieces, strict=True):
            alone = jaccli.jacobian(model, x, source, target, method="loop")
            assert error(piece.outcome.matrix, alone) < 1e-10, (name, source)


def test_blocks_of_samples_are_joined() -> None:
    model = chain(4, 5, 3)().double()
    x = torch.randn(200, 4, dtype=torch.float64)
    gate = torch.randn(200, 3, dtype=torch.float64)
    whole = jaccli.jacobian(model, x, method="loop")
    by_row = torch.cat([jaccli.jacobian(model, row[None], method="loop") for row in x])
    assert error(whole, by_row) < 1e-10

    class Gated(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return model(x) * gate

    gated = jaccli.jacobian(Gated(), x, args=(gate,))
    assert error(gated, whole * gate.unsqueeze(-1)) < 1e-10


@pytest.mark.parametrize("rows", [2, 100])
def test_an_argument_as_long_as_the_batch_that_is_not_per_sample(rows: int) -> None:
    """Taking samples in blocks must not cut a weight that happens to have as many rows."""
    weight = 0.02 * torch.randn(100, 300, dtype=torch.float64)
    x = torch.randn(100, 300, dtype=torch.float64)

    class Product(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return torch.tanh(x @ weight[:rows].T)

    truth = (1 - torch.tanh(x @ weight[:rows].T) ** 2).unsqueeze(-1) * weight[:rows]
    blocks = jaccli.jacobian(Product(), x, args=(weight,), max_memory=truth.numel() * 8 + 2**21)
    assert error(blocks, truth) < 1e-10

    class Pooled(nn.Module):
        def forward(self, x: Tensor, *, weight: Tensor) -> Tensor:
            return x[:, :2] * weight.sum()

    x = torch.randn(100, 3000, dtype=torch.float64)
    j = jaccli.jacobian(Pooled(), x, kwargs={"weight": weight})
    assert error(j, weight.sum() * torch.eye(2, 3000, dtype=torch.float64).expand(100, 2, 3000)) < 1e-10


def test_arguments_of_each_sample_go_with_their_blocks() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return x[:, :2] * gate

    x, gate = torch.randn(100, 3000, dtype=torch.float64), torch.randn(100, 1, dtype=torch.float64)
    j = jaccli.jacobian(Gated(), x, args=(gate,))
    assert error(j, gate.unsqueeze(-1) * torch.eye(2, 3000, dtype=torch.float64)) < 1e-10


def test_auto_says_why() -> None:
    network = as_network(chain(4, 5, 3)())
    pair = (resolve(network, "input"), resolve(network, "output"))
    with computing(network):
        (linearization,) = linearize(network, Inputs((torch.randn(2, 4),)), [pair])
        decision = decide(linearization, "auto")
        assert decision.method in METHOD_NAMES
        assert decision.why
        assert decision.others
        assert decide(linearization, "loop").why == "asked for"


def test_auto_looks_for_structure_only_where_the_loop_takes_longer() -> None:
    network = as_network(nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(3, 3), nn.Tanh()))))
    pair = resolve(network, "input"), resolve(network, "output")
    with computing(network):
        (linearization,) = linearize(network, Inputs((torch.randn(2, 3),)), [pair])
        assert linearization.linear.recorded_pass is not None
        assert linearization.linear.recorded_pass.operators() > 40
        gap, predicted = structure_within(linearization, loop_s=0.03)
        assert gap is not None
        assert "takes" in gap
        assert predicted == float("inf")
        assert linearization.structure is None
        gap, predicted = structure_within(linearization, loop_s=3.0)
        assert gap is None
        assert linearization.structure is not None
        assert predicted == linearization.structure.seconds


def test_unknown_method() -> None:
    with pytest.raises(jaccli.UsageError, match=r"reverze.*\n.*\n.*reverse"):
        jaccli.jacobian(nn.Linear(2, 2), torch.randn(1, 2), method="reverze")


@pytest.mark.parametrize("method", ["auto", "structured", "loop"])
def test_a_first_call_imports_nothing_large(method: str) -> None:
    """sympy takes 0.4 s and dynamo 1 s, many times a small Jacobian; torch imports them when not watched."""
    code = f"""
import sys, torch, jaccli
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Softmax(-1)
)
jaccli.jacobian(model.eval(), torch.randn(2, 1, 6, 6), method={method!r})
print(sorted({{"sympy", "functorch", "torch._dynamo", "torch._inductor", "scipy", "networkx"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_structure_that_does_not_fit_is_replaced_by_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` keeps to the memory; a method that was asked for is used all the same."""
    network = as_network(chain(6, 8, 5)())
    pair, inputs = (resolve(network, "input"), resolve(network, "output")), Inputs((torch.randn(3, 6),))
    with computing(network):
        (linearization,) = linearize(network, inputs, [pair])
        assert linearization.search_structure() is None
        structured = MethodSelection("structured", "", {"reverse": "slower"})
        monkeypatch.setattr(METHODS["auto"], "select", lambda inputs: structured)
        assert decide(linearization, "auto").method == "structured"
        plan = linearization.structure
        assert plan is not None
        monkeypatch.setattr(type(plan), "work_bytes", 2**60)
        decision = decide(linearization, "auto")
        assert decision.method == "reverse"
        assert "for one sample" in decision.others["structured"]
        assert "reverse" not in decision.others
        assert decide(linearization, "structured").method == "structured"


def test_structured_predicts_the_time_of_its_order() -> None:
    network = as_network(chain(6, 8, 5)())
    pair, inputs = (resolve(network, "input"), resolve(network, "output")), Inputs((torch.randn(3, 6),))
    with computing(network):
        (linearization,) = linearize(network, inputs, [pair])
        selection = SelectionInput(linearization, footprint(linearization.linear), lambda name: 1, METHODS)
        assert METHODS["structured"].predict(selection) is None
        linearization.search_structure()
        assert linearization.structure is not None
        assert METHODS["structured"].predict(selection) == linearization.structure.seconds
