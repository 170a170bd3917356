"""Gradient checkpoints of both kinds: from a layer inside, to one inside, across, and both; J is J."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

import jaccli
from jaccli.names import METHOD_NAMES
from jaccli.networks.state.checkpointing import checkpoints_bypassed


class Net(nn.Module):
    """``way``: None for no checkpoint; the middle in one, in two that follow each other, in one within another."""

    def __init__(self, way: str | None, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.mid = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Sigmoid())
        self.way, self.reentrant = way, reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        kind: dict[str, Any] = {"use_reentrant": self.reentrant}
        h = self.first(x)
        if self.way is None:
            h = self.mid(h)
        elif self.way == "one":
            h = checkpoint(self.mid, h, **kind)
        elif self.way == "two":
            h = checkpoint_sequential(self.mid, 2, h, **kind)
        else:
            h = checkpoint(lambda t: checkpoint(self.mid[1:], self.mid[0](t), **kind), h, **kind)
        return self.last(h)


X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
PAIRS = [("input", "output"), ("mid.0", "output"), ("mid.0", "mid.2"), ("input", "mid.1"), ("mid.1:in", "mid.3")]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
@pytest.mark.parametrize("way", ["one", "two", "nested"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_j_of_a_checkpoint(pair: tuple[str, str], way: str, reentrant: bool) -> None:
    """Every method and every product, and none of them by way of another."""
    model, want = Net(way, reentrant), jaccli.jacobian(Net(None, False), X, *pair)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHOD_NAMES:
            if method != "finite-difference":
                torch.testing.assert_close(jaccli.jacobian(model, X, *pair, method=method), want, msg=method)
        A = jaccli.operator(model, X, *pair)
        torch.testing.assert_close(A.matvec(X), (want @ X[..., None])[..., 0])
        torch.testing.assert_close(A.rmatvec(X), (X[:, None] @ want)[:, 0])
        found = jaccli.identity_deviation(model, X, *pair)
    torch.testing.assert_close(found.detach(), (want - torch.eye(3)).square().sum((1, 2)))
    assert "apply" not in vars(CheckpointFunction)


def test_others_are_left_alone() -> None:
    """What checkpoints do outside of a pass, or in another thread meanwhile: they run twice."""
    runs: list[int] = []

    def counted(x: Tensor) -> Tensor:
        runs.append(threading.get_ident())
        return x.sin()

    def train() -> None:
        for kind in (True, False):
            checkpoint(counted, X.clone().requires_grad_(), use_reentrant=kind).sum().backward()

    with checkpoints_bypassed(True), checkpoints_bypassed(True):
        other = threading.Thread(target=train)
        other.start()
        other.join()
        assert len(runs) == 4
        train()
        assert len(runs) == 6
    train()
    assert len(runs) == 10


class Opaque(torch.autograd.Function):
    """As a checkpoint of another library: it runs a module without a graph, and again in its backward pass."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return None, torch.autograd.grad(ctx.module(x), x, *grads)[0]


class ByOpaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(None, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net.last(Opaque.apply(self.net.mid, self.net.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("pair", [("net.mid.0", "output"), ("input", "net.mid.1"), ("net.mid.0", "net.mid.2")])
def test_inside_of_a_function_that_leaves_no_graph(pair: tuple[str, str]) -> None:
    """Differences, not zeros."""
    want = jaccli.jacobian(Net(None, False), X, *(name.removeprefix("net.") for name in pair))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaccli.JaccliNote)
        torch.testing.assert_close(jaccli.jacobian(ByOpaque(), X, *pair), want, rtol=1e-6, atol=1e-8)
