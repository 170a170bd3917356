"""Networks that refuse a pass with gradients: J without a backward pass, held against differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.planning.linearize import computing, linearize
from tests import oracle
from tests.hard_rules import Of, WrongTangent
from tests.linearization.test_products import vectors
from tests.networks.state.test_random_generators import said
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


class Wrong(WrongTangent):
    """And without a backward pass."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("no backward pass")


def mixing(formula: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: h.softmax(0) + 3 * formula(h)


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
    assert 'try method="finite-difference"' in refused


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


def deep(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Three further layers, whose weights are the same each time."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(12, 12, generator=generator, dtype=torch.float64) / 12**0.5 for _ in range(3)]

    def formula(h: Tensor) -> Tensor:
        for weight in weights:
            h = activation(h @ weight.to(h))
        return written_views(h)

    return formula


# Forward mode is right, though differences are not easy to take; the last are of samples that mix.
HARD_TO_CHECK: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "beside a large value": (lambda h: 1000 + written_views(h)[:, :1], lambda x: x),
    "far below the value": (lambda h: 1e5 + written_views(h), lambda x: x),
    "quick oscillations": (deep(lambda h: (10 * h).sin()), lambda x: x),
    "kinks nearby": (deep(lambda h: torch.maximum(h, h.roll(1, 1))), lambda x: x),
    "coordinates of unlike size": (
        lambda h: written_views(1e-4 * h),
        lambda x: x * torch.tensor([1e4] + 5 * [1.0]).to(x),
    ),
    "tiny samples": (lambda h: written_views(h), lambda x: x * 1e-30),
    "not finite in part": (lambda h: torch.cat([written_views(h), (-1 - h[:, :1] ** 2).log()], 1)[:, :13], lambda x: x),
    "mixing": (mixing(written_views), lambda x: x),
    "float32 inside": (lambda h: written_views(h.float().softmax(1)).to(h.dtype), lambda x: x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", HARD_TO_CHECK)
def test_no_false_alarm(name: str, dtype: torch.dtype) -> None:
    formula, change = HARD_TO_CHECK[name]
    for seed in range(8):
        torch.manual_seed(seed)
        model, x = Of(6, 12, formula).to(dtype), change(torch.randn(2, 6)).to(dtype)
        with said() as texts:
            jaccli.jacobian(model, x)
            jaccli.operator(model, x).matvec(torch.randn(2, 6).to(dtype))
        texts = [text for text in texts if name != "mixing" or "samples mix" not in text]
        assert not [text for text in texts if "non-finite" not in text], seed


def test_a_kink_at_the_sample_is_said_to_be_unchecked() -> None:
    """There torch has a derivative of its own, which is kept."""
    model = Of(6, 12, lambda h: written_views(h.relu())).double()
    model.fc.bias = None
    x = vectors(3, 6)
    x[1] = 0
    with said() as texts:
        found = jaccli.jacobian(model, x)
    assert not found[1].any()
    assert found[0].any()
    assert len(texts) == 1
    assert "1 of 3 samples could not be checked" in texts[0]


@pytest.mark.parametrize("method", ["auto", "forward", "structured", "plan"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", [Wrong.apply, lambda h: h.sin() + Wrong.apply(h), mixing(Wrong.apply)])
def test_a_wrong_rule_is_seen(formula: Callable[[Tensor], Tensor], dtype: torch.dtype, method: Any) -> None:
    torch.manual_seed(0)
    model, x = Of(6, 12, formula).to(dtype), vectors(3, 6).to(dtype)
    with said() as texts:
        found = jaccli.plan(model, x)(x) if method == "plan" else jaccli.jacobian(model, x, method=method)
    exact = jaccli.jacobian(model.double(), x.double(), method="finite-difference")
    assert error(found.double(), exact) < 0.06 or any("do not rely" in text for text in texts)
    assert any("off differences" in text for text in texts) or method in ("structured", "plan")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wrong_rule_of_a_product_is_seen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Of(6, 12, Wrong.apply).to(dtype), vectors(3, 6).to(dtype)
    exact = jaccli.jacobian(model, x, method="finite-difference")
    v = vectors(3, 6, 4).to(dtype)
    assert error(jaccli.operator(model, x).matmat(v), exact @ v) < 1e-3
    with pytest.raises(jaccli.UnsupportedError, match="samples mix"):
        jaccli.operator(Of(6, 12, mixing(Wrong.apply)).to(dtype), x).matmat(v)


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wrong_column_of_a_small_coordinate_is_seen(dtype: torch.dtype, ratio: float) -> None:
    """Coordinates of unlike size: columns count alike, as they are printed."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] + Wrong.apply(x[:, 1]), 2 * x[:, 0] - Wrong.apply(x[:, 1])], 1)

    x = vectors(4, 2).to(dtype) * torch.tensor([ratio, 1.0]).to(dtype)
    with said() as texts:
        jaccli.jacobian(Sum(), x)
    assert any("off differences" in text or "could not be checked" in text for text in texts)


def test_what_is_not_checked_is_told_by_plans_and_singular_values_too() -> None:
    def short(h: Tensor) -> Tensor:
        assert h.dtype == torch.float32
        return 1e5 + Wrong.apply(h)

    torch.manual_seed(0)
    model, x = Of(6, 12, short), vectors(3, 6).float()
    with said() as texts:
        jaccli.operator(model, x).singular_values(2)
    assert any("could not be checked" in text for text in texts)
    model = Of(6, 12, lambda h: written_views(h.relu())).double()
    model.fc.bias = None
    x = x.double()
    plan = jaccli.plan(model, x, method="structured")
    x[1] = 0
    with said() as texts:
        plan(x)
    assert any("1 of 3 samples could not be checked" in text for text in texts)


def test_the_passes_of_a_plan_may_refuse_gradients_later() -> None:
    def small_only(h: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() or len(h) < 3
        return h.tanh()

    model, x = Of(6, 12, small_only).double(), vectors(3, 6)
    plan = jaccli.plan(model, x[:2])
    exact = jaccli.jacobian(model, x, method="finite-difference")
    assert error(plan(x), exact) < 1e-6


def test_what_is_wrong_without_gradients_too_is_said() -> None:
    for formula, text in (
        (lambda h: written_views(h).round().long(), "int64"),
        (lambda h: (written_views(h), written_views(h)), "name one"),
        (lambda h: through_numpy(h) @ torch.ones(3, 3).double(), "mat1 and mat2.*Can't call numpy"),
    ):
        with pytest.raises(jaccli.JaccliError, match="(?s)" + text):
            jaccli.jacobian(Of(6, 12, formula).double(), vectors(3, 6))


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
        ready = linearize(network, Inputs((vectors(3, 6),)), pairs)
        alone = [linearize(network, Inputs((vectors(3, 6),)), [pair])[0] for pair in pairs]
    for found in (ready, alone):
        assert [one.probe.backward_gap is None for one in found] == [False, True, True]
        assert [one.probe.row is None for one in found] == [True, False, False]


def test_what_no_pass_takes_is_said_as_ever() -> None:
    model, _, _ = made("NumPy")
    with pytest.raises(jaccli.RefusedError, match="mat1 and mat2"):
        jaccli.jacobian(model, vectors(3, 7))
