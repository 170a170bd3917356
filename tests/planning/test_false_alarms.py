"""What is blamed on a model: lower precision inside, cancellation and tiny J are not; chance and mixing are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import jaccli

BLAME = re.compile("deterministic|samples mix|not linear|influence each other")


def linear(n_in: int, n_out: int, seed: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n_in, n_out).to(dtype)


class Net(nn.Module):
    """Two layers with something between them and after them."""

    def __init__(self, between: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.a, self.b, self.between, self.after = linear(5, 8, 0), linear(8, 4, 1), between, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.b(self.between(self.a(x))))


class HalfInside(torch.autograd.Function):
    """tanh in half precision, which nobody sees from outside."""

    @staticmethod
    def forward(ctx, x):
        y = x.half().tanh()
        ctx.save_for_backward(y)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return (g.half() * (1 - y * y)).to(g.dtype)


class RandomBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 + 0.05 * torch.randn_like(g))


class NoisyBackward(RandomBackward):
    @staticmethod
    def backward(ctx, g):
        return g + 0.05 * torch.randn_like(g)


class Clipped(RandomBackward):
    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.5, 0.5)


def by_autocast(h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (h @ torch.eye(8)).to(h.dtype).sigmoid()


def short_norm(h: Tensor) -> Tensor:
    s = h.float()
    return (s * torch.rsqrt(s.square().mean(1, keepdim=True) + 1e-6)).to(h.dtype)


FINE: dict[str, Callable[[], nn.Module]] = {
    "half": lambda: Net(lambda h: (h.half() * 1.5).tanh().to(h.dtype)),
    "half function": lambda: Net(HalfInside.apply),
    "half in a checkpoint": lambda: Net(
        lambda h: checkpoint(lambda t: t.half().exp().to(t.dtype), h, use_reentrant=False)
    ),
    "bfloat16": lambda: Net(by_autocast),
    "all bfloat16": lambda: Net(torch.tanh).bfloat16(),
    "all float16": lambda: Net(torch.tanh).half(),
    "float32 in float64": lambda: Net(short_norm).double(),
    "sure": lambda: Net(torch.tanh, lambda y: (40 * y).softmax(1)),
    "very sure": lambda: Net(torch.tanh, lambda y: (400 * y).softmax(1)),
    "very sure, float64": lambda: Net(torch.tanh, lambda y: (400 * y).softmax(1)).double(),
    "log-sum-exp": lambda: Net(
        torch.tanh, lambda y: (200 * y).logsumexp(1, keepdim=True) - 200 * y.amax(1, keepdim=True)
    ),
    "losses": lambda: Net(torch.tanh, lambda y: cross_entropy(90 * y, y.argmax(1), reduction="none")[:, None]),
    "tiny": lambda: Net(torch.tanh, lambda y: 1e-30 * y),
    "tiny, float64": lambda: Net(torch.tanh, lambda y: 1e-290 * y).double(),
    "subnormal": lambda: Net(torch.tanh, lambda y: 1e-42 * y),
    "huge": lambda: Net(torch.tanh, lambda y: 1e30 * y),
    "cancelling branches": lambda: Net(lambda h: (h * 3e5).sin() - (h * 3e5).sin() + h.tanh()),
    "normalised to nothing": lambda: Net(lambda h: nn.functional.layer_norm(1e4 + 1e-3 * h, (8,), eps=1e-12).tanh()),
}


def said(model: nn.Module, x: Tensor, method: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jaccli.jacobian(model, x, method=method)
    found = [w for w in caught if issubclass(w.category, jaccli.JaccliWarning)]
    return [str(w.message) for w in found if not issubclass(w.category, jaccli.JaccliNote)]


def samples(model: nn.Module, seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).to(next(model.parameters()).dtype)


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("method", ["auto", "loop", "reverse", "structured", "finite-difference"])
def test_not_blamed(name: str, method: str) -> None:
    model = FINE[name]().requires_grad_(False)
    for seed in range(3):
        blame = [text for text in said(model, samples(model, seed), method) if BLAME.search(text)]
        assert not blame


def test_told_what_is_true() -> None:
    """Which samples' J are lost, in which dtype, and what helps."""
    model = FINE["very sure"]().requires_grad_(False)
    texts = [text for seed in range(3) for text in said(model, samples(model, seed), "loop")]
    rounded = r"J of [1-6] of 6 samples is below float32's rounding: model.to\(torch.float64\)"
    subnormal = (
        r"J of [1-6] of 6 samples looked at is below the normal numbers of float32, .*: model.to\(torch.float64\)"
    )
    assert any(re.search(rounded, t) for t in texts)
    assert all(re.search(f"{rounded}|{subnormal}", t) for t in texts)


def test_not_told_of_float64() -> None:
    model = FINE["sure"]().double().requires_grad_(False)
    assert not said(model, samples(model, 0), "loop")


CHANCE = {
    "factors": (RandomBackward, "not deterministic"),
    "sums": (NoisyBackward, "not deterministic"),
    "clipped": (Clipped, "not linear"),
}


@pytest.mark.parametrize("name", CHANCE)
@pytest.mark.parametrize("count", [1, 6])
def test_chance_is_told(name: str, count: int) -> None:
    function, text = CHANCE[name]
    model = Net(torch.tanh, lambda y: function.apply(3 * y)).requires_grad_(False)
    texts = said(model, samples(model, 0, count), "loop")
    assert any(text in t for t in texts)
    assert not any("samples mix" in t for t in texts)


def test_forward_pass_that_changes_is_told() -> None:
    """By state that nobody can put back, each pass is another one."""
    calls = iter(range(10**6))
    model = Net(lambda h: h * (1 + 0.1 * (next(calls) % 3))).requires_grad_(False)
    assert any("not deterministic" in text for text in said(model, samples(model, 0), "structured"))


def weak(h: Tensor) -> Tensor:
    return h + 1e-4 * h.roll(1, 0)


MIXING: dict[str, Callable[[], nn.Module]] = {
    "weak": lambda: Net(weak),
    "weak in half": lambda: Net(lambda h: weak(h.half()).to(h.dtype)),
    "weak, saturated": lambda: Net(lambda h: weak(h).tanh(), lambda y: (40 * y).softmax(1)),
    "weak and tiny": lambda: Net(weak, lambda y: 1e-30 * y),
    "pairs": lambda: Net(lambda h: torch.cat([h[:2], h[2:4], h[4:] + 1e-3 * h[:2]])),
    "BatchNorm": lambda: nn.Sequential(linear(5, 3, 0), nn.BatchNorm1d(3)).train(),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("method", ["auto", "loop", "finite-difference"])
def test_mixing_is_told(name: str, method: str) -> None:
    model = MIXING[name]().requires_grad_(False)
    if method != "finite-difference" or name not in ("weak in half", "weak, saturated"):  # values do not show it there
        assert any("samples mix" in text for text in said(model, samples(model, 0), method))


@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float16])
def test_differences_that_lower_precision_swallows(inside: torch.dtype) -> None:
    """Differences of a network that works in lower precision inside are zero, or far off: a warning, not a note."""

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).to(inside)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).to(inside)).to(x.dtype)

    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jaccli.jacobian(Short(), torch.randn(3, 4).double(), method="finite-difference")
    kinds = [w.category for w in said]
    assert any(issubclass(kind, jaccli.JaccliWarning) and kind is not jaccli.JaccliNote for kind in kinds)
