"""Every method on every scenario against the oracle."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.run.blocks import RunOptions, stream
from jaccli.run.execute import Outcome
from tests import nets, oracle
from tests.oracle import error
from tests.scenarios import BY_NAME, CASES, TABLE, Scenario, case_name, of

EXACT = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 5e-2}
DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.3}


def take(s: Scenario, dtype: torch.dtype, method: str, chunk: int | None = None) -> tuple[Outcome, list[Any]]:
    """One J with everything that was said of it."""
    network = as_network(s.model(dtype))
    extras = s.extras(dtype)
    pair = (resolve(network, s.source), resolve(network, s.target))
    x = s.x(dtype)
    inputs = Inputs((x, *extras["args"]), extras["kwargs"], (pair[0].dim or 0) if pair[0].is_model_input else 0)
    choice: Any = RunOptions(method, None, chunk)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for doubt in network.warnings():
            jaccli.errors.warn(doubt)
        pieces = list(stream(network, inputs, [pair], choice, keep=True))
    assert len(pieces) == 1
    return pieces[0].outcome, [w for w in said if issubclass(w.category, jaccli.JaccliWarning)]


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize(("s", "dtype"), CASES, ids=case_name)
def test_method_agrees_with_the_oracle(s: Scenario, dtype: torch.dtype, method: str) -> None:
    outcome, said = take(s, dtype, method)
    wanted = s.takes.get(method, method)
    if outcome.method == "zero" and method == "finite-difference":
        assert not s.truth(dtype).any()  # values that stay as they are show it without gradients too
    elif method != "auto" or wanted != "auto":
        assert outcome.method == wanted, [str(w.message) for w in said]
    tolerances = DIFFERENCE if outcome.method == "finite-difference" else EXACT
    assert error(outcome.matrix, s.truth(dtype)) <= s.slack.get(outcome.method, tolerances[dtype])
    doubts = [str(w.message) for w in said if not issubclass(w.category, jaccli.JaccliNote)]
    if outcome.method == "finite-difference" and s.name == "detach":
        assert not doubts  # finite differences see what autograd does not
    elif s.warns:
        assert any(s.warns in text for text in doubts), doubts
    else:
        assert not doubts
    if wanted not in (method, "zero"):
        notes = [str(w.message) for w in said if issubclass(w.category, jaccli.JaccliNote)]
        assert any(method in note and f"taken with {wanted}" in note for note in notes), notes


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("s", TABLE, ids=case_name)
def test_result_stands_on_its_own(s: Scenario, method: str) -> None:
    """No gradient, no shared memory, and a second call gives the same bits."""
    dtype = s.dtypes[-1]
    model, x, extras = s.model(dtype), s.x(dtype), s.extras(dtype)
    kept = x.clone()

    def call() -> Tensor:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jaccli.JaccliWarning)
            return jaccli.jacobian(model, x, s.source, s.target, method=method, **extras)

    first = call()
    copy = first.clone()
    second = call()
    assert not first.requires_grad
    assert not first.is_inference()
    assert torch.equal(x, kept)
    assert first.is_contiguous()
    if method != "auto":
        assert torch.equal(first, second)
    second.fill_(7)
    assert torch.equal(first, copy)
    assert x.grad is None


CHUNKED = [
    "wide",
    "tall",
    "conv",
    "attention",
    "LSTM",
    "index list",
    "BatchNorm in training mode",
    "dict key",
    "source of size 1",
    "target of size 1",
    "GRU, time first inside",
    "embedding",
]


@pytest.mark.parametrize("method", ["reverse", "forward", "replicate", "finite-difference"])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_do_not_matter(name: str, method: str) -> None:
    s = BY_NAME[name]
    whole = take(s, torch.float64, method, chunk=10**6)[0]
    for chunk in (1, 2, 3):
        part = take(s, torch.float64, method, chunk=chunk)[0]
        assert part.method == whole.method
        bound = 1e-10 if method != "finite-difference" else s.slack.get(method, 1e-7)
        assert error(part.matrix, whole.matrix) <= bound


ROWWISE = ["batch 5", "conv", "residual, tokens", "attention", "LSTM", "embedding", "PReLU trap", "complex inside"]


@pytest.mark.parametrize("method", ["auto", "reverse", "forward", "replicate", "loop", "functional"])
@pytest.mark.parametrize("name", ROWWISE)
def test_samples_are_independent(name: str, method: str) -> None:
    """Order and split of the batch do not matter."""
    s = BY_NAME[name]
    model, x = s.model(torch.float64), s.x(torch.float64)

    def call(samples: Tensor) -> Tensor:
        return jaccli.jacobian(model, samples, s.source, s.target, method=method)

    whole = call(x)
    order = torch.arange(x.shape[0] - 1, -1, -1)
    assert error(call(x[order]), whole[order]) < 1e-10
    parts = torch.cat([call(x[:1]), call(x[1:])])
    assert error(parts, whole) < 1e-10


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_mode_of_the_caller(mode: Any, method: str) -> None:
    s = BY_NAME["conv"]
    model = s.model(torch.float64)
    with mode():
        x = s.x(torch.float64) * 1
        j = jaccli.jacobian(model, x, method=method)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert error(j, s.truth()) <= (1e-10 if method != "finite-difference" else KINKED)
    assert not j.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


KINKED = BY_NAME["conv"].slack["finite-difference"]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_samples_that_belong_to_a_graph(method: str) -> None:
    s = BY_NAME["batch 5"]
    base = s.x(torch.float64).requires_grad_()
    j = jaccli.jacobian(s.model(torch.float64), base * 1, method=method)
    assert error(j, s.truth()) < 1e-6
    assert not j.requires_grad
    assert base.grad is None


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_tensor_outside_the_model_that_wants_gradients(method: str) -> None:
    gain = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2 * gain

    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    j = jaccli.jacobian(Closed(), x, method=method)
    assert not j.requires_grad
    assert gain.grad is None
    assert torch.allclose(j[0], torch.diag(2 * x[0] * gain.detach()), rtol=1e-6)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_dtype_of_its_own_inside(method: str) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        j = jaccli.jacobian(nets.Widened(), x, method=method)
    assert not [w for w in said if "taken with" in str(w.message)]
    assert j.dtype == torch.float64
    truth = torch.tril(torch.ones(3, 3, dtype=torch.float64)) * 2 * x.double().unsqueeze(1)
    assert error(j, truth) < (1e-6 if method != "finite-difference" else 1e-2)


def test_exact_methods_without_tolerance() -> None:
    """A linear map's Jacobian is the weight, bit for bit."""
    model = nn.Linear(3, 2, bias=False)
    x = torch.randn(4, 3)
    for method in ("reverse", "forward", "loop", "replicate", "functional", "auto"):
        j = jaccli.jacobian(model, x, method=method)
        assert torch.equal(j, model.weight.detach().expand(4, 2, 3)), method


@pytest.mark.parametrize(("net", "takes"), [("OnlyForward", "forward"), ("NoBackward", "finite-difference")])
def test_auto_without_a_backward_pass(net: str, takes: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    s = Scenario("broken backward", getattr(nets, net), lambda: x)
    outcome, said = take(s, torch.float64, "auto")
    assert outcome.method == takes
    assert error(outcome.matrix, torch.diag_embed(x.cos())) < (1e-10 if takes == "forward" else 1e-7)
    for method in ("reverse", "loop", "replicate", "functional"):
        if net == "OnlyForward":
            outcome, said = take(s, torch.float64, method)
            assert outcome.method == "forward"
            assert any("the backward pass is broken" in str(w.message) for w in said)
        else:
            with pytest.raises(jaccli.UnsupportedError, match="the backward pass is broken"):
                take(s, torch.float64, method)


def test_integer_source_has_no_derivative() -> None:
    s = BY_NAME["embedding"]
    with pytest.raises(jaccli.UnsupportedError, match="int64") as caught:
        jaccli.jacobian(s.model(torch.float32), s.x(torch.float32))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("name", ["source after target", "no path"])
def test_no_path_is_said(name: str, method: str) -> None:
    said = take(BY_NAME[name], torch.float32, method)[1]
    assert any("J is zero" in str(w.message) for w in said)
    assert all(issubclass(w.category, jaccli.JaccliNote) for w in said)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("net", ["Rolled", "Cumulative", "CumulativeBack"])
@pytest.mark.parametrize("batch", [2, 4])
def test_samples_that_mix_in_odd_ways(batch: int, net: str, method: str) -> None:
    """Neighbours that do not show it, or only one of two: each J is still the sample's own block."""
    s = Scenario(net, getattr(nets, net), lambda: torch.randn(batch, 3))
    outcome, said = take(s, torch.float64, method)
    x = s.x(torch.float64)
    own = torch.diag_embed(2 * x + (x.cos() if net != "Rolled" or batch == 2 else 0))
    assert error(outcome.matrix, own) < 1e-7
    if net != "Rolled" or batch == 4:
        doubts = [str(w.message) for w in said if not issubclass(w.category, jaccli.JaccliNote)]
        assert len(doubts) == 1
        assert "samples mix" in doubts[0]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_batch_norm_in_training_mode_with_one_sample(method: str) -> None:
    """Copies of one sample have its statistics, and its derivatives only if they stay apart."""
    build = of(lambda: nn.Conv1d(1, 2, 3), lambda: nn.BatchNorm1d(2), nn.Tanh)
    s = Scenario("lone BatchNorm", build, lambda: torch.randn(1, 1, 6), train=True)
    model = s.model(torch.float64)
    truth = oracle.jacobian(copy.deepcopy(model), s.x(torch.float64), oracle.INPUT, oracle.OUTPUT)
    assert error(take(s, torch.float64, method)[0].matrix, truth) < 1e-6
