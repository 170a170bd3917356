"""The gradient of ‖J − I‖² where a second derivative fails: right, or refused, or with a warning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.penalty.identity import deviation_from
from tests import oracle
from tests.hard_rules import HARD, Of, normal
from tests.oracle import INPUT, OUTPUT

TOWARDS = ("identity", "scaled-identity", "orthogonal", "zero")


class Detaches(nn.Module):
    """Half of what J depends on carries no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.detach().sigmoid()


def square(name: str) -> tuple[nn.Module, Tensor]:
    build, samples = HARD[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        body, x = build().double(), samples()
        model = nn.Sequential(body, nn.Linear(body(x).shape[1], x.shape[1]).double())
    return model, x


def deviation(model: nn.Module, x: Tensor, towards: str) -> float:
    """The sum over samples, from J by rows."""
    j = oracle.jacobian(copy.deepcopy(model), x, INPUT, OUTPUT)
    eye = torch.eye(x.shape[1]).double()
    if towards == "orthogonal":
        return float((j @ j.mT - eye).square().sum())
    if towards == "scaled-identity":
        j = j - (j.diagonal(dim1=1, dim2=2).mean(1))[:, None, None] * eye
    return float((j - (eye if towards == "identity" else 0)).square().sum())


def slope(model: nn.Module, x: Tensor, towards: str, directions: list[Tensor], h: float = 1e-5) -> float:
    def moved(h: float) -> float:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(twin.parameters(), directions, strict=True):
                p.add_(h * d)
        return deviation(twin, x, towards)

    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def told(model: nn.Module, x: Tensor, towards: str, **options: Any) -> tuple[Tensor | None, list[str]]:
    """The values after a backward pass, None where that is refused, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = deviation_from(towards, model, x, **options)  # type: ignore[arg-type]
            found.sum().backward()
        except jaccli.UnsupportedError:
            return None, []
    kinds = [w for w in caught if issubclass(w.category, jaccli.JaccliWarning)]
    return found.detach(), [str(w.message) for w in kinds if not issubclass(w.category, jaccli.JaccliNote)]


@pytest.mark.parametrize("towards", TOWARDS)
@pytest.mark.parametrize("name", [name for name in HARD if name != "equilibrium"])
def test_exact(name: str, towards: str) -> None:
    model, x = square(name)
    found, warned = told(model, x, towards)
    if found is None:
        return
    assert float(found.sum()) == pytest.approx(deviation(model, x, towards), rel=1e-9)
    directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double() for p in model.parameters()]
    got = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None
    )
    right = slope(model, x, towards, directions)
    assert warned or got == pytest.approx(right, rel=1e-5), (got, right)


@pytest.mark.parametrize("towards", TOWARDS)
@pytest.mark.parametrize("name", HARD)
def test_hutchinson_against_exact(name: str, towards: str) -> None:
    """Within its spread; each probe has an α of its own."""
    model, x = square(name)
    with torch.no_grad():
        exact = deviation_from(towards, model, x)  # type: ignore[arg-type]
        draws = [deviation_from(towards, model, x, estimator="hutchinson", probes=120) for _ in range(10)]  # type: ignore[arg-type]
    mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0)
    room = 8 * spread + (2 * exact if towards == "scaled-identity" else 1e-9 * exact)
    assert bool(((mean - exact).abs() <= room).all()), (mean, exact, spread)


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
@pytest.mark.parametrize("name", ["no graph", "once differentiable", "numpy", "some of it without a graph"])
def test_no_gradient_is_made_of_a_missing_graph(name: str, estimator: str) -> None:
    model, x = square(name)
    assert told(model, x, "identity", estimator=estimator)[0] is None
    with torch.no_grad():
        jaccli.identity_deviation(model, x, estimator=estimator)  # type: ignore[arg-type]


def test_half_a_graph_is_told() -> None:
    model, x = square("half a graph")
    assert any("slope" in text for text in told(model, x, "identity")[1])


def test_a_network_that_detaches_is_taken_at_its_word() -> None:
    """Two derivations agree: the gradient does not go through what is detached, and nothing is said."""
    model = nn.Sequential(nn.Linear(5, 5), Detaches(), nn.Linear(5, 5)).double()
    found, warned = told(model, normal(3, 5)(), "identity")
    assert found is not None
    assert not warned


class WrongFar(torch.autograd.Function):
    """x³, whose backward pass forgets half of its graph where x is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        (g,) = grads
        return 3 * torch.where(x.abs() > 2, (g + g.detach()) / 2, g) * x**2


def test_training_moves_to_a_point_where_a_rule_is_wrong() -> None:
    """Looked at again at calls 2, 4, 8, …: what was right at the first point need not be so later."""
    model, x = nn.Sequential(Of(4, 4, WrongFar.apply), nn.Linear(4, 4)).double(), normal(2, 4)()
    for _ in range(3):
        assert not told(model, 0.01 * x, "identity")[1]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(100)
    assert any("slope" in text for text in told(model, x, "identity")[1])


def test_a_program_that_no_longer_fits_is_left() -> None:
    """State that a network keeps out of sight changes J: at a call that is looked at, passes are taken instead."""
    scale = [1.0]
    model, x = nn.Sequential(Of(4, 4, lambda h: scale[0] * h.tanh())).double(), normal(2, 4)()
    for _ in range(3):
        jaccli.identity_deviation(model, x)
    scale[0] = 2.0
    with pytest.warns(jaccli.JaccliNote, match="disagree with backward passes"):
        found = jaccli.identity_deviation(model, x)
    assert float(found.detach().sum()) == pytest.approx(deviation(model, x, "identity"))
