"""Networks that refuse a pass with gradients: J without a backward pass, held against differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import jaccli
from jaccli.layers.record import Inputs
from jaccli.layers.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.prepare import computing, prepare
from tests import oracle
from tests.hard_rules import Of
from tests.oracle import INPUT, OUTPUT, error

pytestmark = pytest.mark.filterwarnings("ignore")


def through_numpy(h: Tensor) -> Tensor:
    return torch.from_numpy(h.cpu().numpy() * 2).to(h.device).tanh()


def half_through_numpy(h: Tensor) -> Tensor:
    return h.sin() + through_numpy(h)


def written_views(h: Tensor) -> Tensor:
    first, *rest = h.tanh().unbind(1)
    first.mul_(2)
    return torch.stack([first, *rest], 1)


def for_inference(h: Tensor) -> Tensor:
    assert not torch.is_grad_enabled(), "for inference only"
    return h.tanh() * h.roll(1, 1)


def attention(h: Tensor) -> Tensor:
    q = h.reshape(len(h), 1, 3, 4)
    found = flex_attention(q, q.cos(), q.sin())
    assert isinstance(found, Tensor)
    return found.flatten(1)


# What refuses gradients, and the same by operators that have them.
REFUSING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "NumPy": (through_numpy, lambda h: (2 * h).tanh()),
    "NumPy, a half": (half_through_numpy, lambda h: h.sin() + (2 * h).tanh()),
    "written views": (written_views, lambda h: h.tanh() * torch.tensor([2.0] + [1.0] * 11).to(h)),
    "for inference": (for_inference, lambda h: h.tanh() * h.roll(1, 1)),
    "flexible attention": (
        attention,
        lambda h: nn.functional.scaled_dot_product_attention(
            *(f(h.view(-1, 3, 4)) for f in (_same, torch.cos, torch.sin))
        ).flatten(1),
    ),
}


def _same(h: Tensor) -> Tensor:
    return h


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, samples, and J of its twin by rows."""
    refusing, twin = REFUSING[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Of(6, 12, refusing).double()
    x = vectors(3, 6)
    model.formula = twin
    j = oracle.jacobian(model, x, INPUT, OUTPUT)
    model.formula = refusing
    return model.to(dtype), x.to(dtype), j


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


METHODS = ("auto", "structured", "reverse", "forward", "loop", "functional", "finite-difference")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REFUSING)
def test_j_or_a_refusal(name: str, method: str) -> None:
    """Right, or refused with the way out; ``auto`` has it always."""
    model, x, j = made(name)
    try:
        found = jaccli.jacobian(model, x, method=method)
    except jaccli.UnsupportedError as refusal:
        refused = refusal.remedy
    else:
        assert error(found, j) < 1e-6
        return
    assert method not in ("auto", "finite-difference")
    assert "try --method finite-difference" in refused


@pytest.mark.parametrize("name", REFUSING)
def test_plans_and_products(name: str) -> None:
    model, x, j = made(name)
    plan = jaccli.plan(model, x)
    for _ in range(3):
        assert error(plan(x), j) < 1e-6
    a, v = jaccli.operator(model, x), vectors(3, 6, 8)
    assert error(a.matmat(v), j @ v) < 1e-6
    assert error(a.rmatmat(j @ v), j.mT @ (j @ v)) < 1e-6
    assert torch.allclose(a.spectral_norm(), torch.linalg.matrix_norm(j, 2), rtol=1e-6)


@pytest.mark.parametrize("name", REFUSING)
def test_why_is_told_and_nothing_else(name: str) -> None:
    model, x, _ = made(name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jaccli.jacobian(model, x)
    texts = [str(one.message) for one in told if isinstance(one.message, jaccli.JaccliNote | jaccli.JaccliWarning)]
    assert any("the backward pass fails" in text for text in texts)
    assert not any("deterministic" in text or "random" in text or "mix" in text for text in texts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_false_alarm_beside_a_large_value(dtype: torch.dtype) -> None:
    """Of a value that is much larger than its slope differences hold few digits, by chance two steps the same."""

    def large(h: Tensor) -> Tensor:
        return 1000 + written_views(h)[:, :1]

    for seed in range(25):
        torch.manual_seed(seed)
        model = Of(4, 6, large).to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error", jaccli.JaccliWarning)
            warnings.simplefilter("ignore", jaccli.JaccliNote)
            jaccli.jacobian(model, torch.randn(1, 4).to(dtype))


@pytest.mark.parametrize("name", REFUSING)
def test_a_penalty_is_refused(name: str) -> None:
    model, x, _ = made(name)
    square = nn.Sequential(model, nn.Linear(12, 6).double())
    with pytest.raises(jaccli.UnsupportedError, match="gradients"):
        jaccli.identity_deviation(square, x)


def test_pairs_behind_what_refuses_have_their_backward_pass() -> None:
    class Numpy(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return through_numpy(h)

    torch.manual_seed(0)
    network = as_network(nn.Sequential(nn.Linear(6, 5), Numpy(), nn.Linear(5, 5), nn.Tanh()).double())
    pairs = [(resolve(network, s), resolve(network, t)) for s, t in (("input", "output"), ("1", "output"), ("2", "3"))]
    with computing(network):
        ready = prepare(network, Inputs((vectors(3, 6),)), pairs)
        alone = [prepare(network, Inputs((vectors(3, 6),)), [pair])[0] for pair in pairs]
    for found in (ready, alone):
        assert [one.probe.backward_gap is None for one in found] == [False, True, True]
        assert [one.probe.row is None for one in found] == [True, False, False]


def test_what_no_pass_takes_is_said_as_ever() -> None:
    model, _, _ = made("NumPy")
    with pytest.raises(jaccli.RefusedError, match="mat1 and mat2"):
        jaccli.jacobian(model, vectors(3, 7))
