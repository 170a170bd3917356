"""Passes through the network, exactly as many as docstrings say: of each method, and of whole calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.methods import METHODS
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.run.blocks import RunOptions, stream
from tests.scenarios import chain

STEPS = 25  # of a finite difference at ones in float32: five a decade, from eps^(1/3) / 100 to 2
COUNTS: dict[str, dict[str, int]] = {
    "structured": {"forward": 1},
    "reverse": {"vjp": 5},
    "forward": {"jvp": 7},
    "loop": {"vjp": 5},
    "replicate": {"forward": 3 + 5, "vjp": 5},  # three copies show whether copies change each other
    "functional": {"forward": 1, "vjp": 5},
    "finite-difference": {"forward": 3 + 2 * 7 * STEPS},
}


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if m != "auto"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_methods(method: str, chunk: int) -> None:
    network = as_network(chain(7, 6, 5)())
    pair = (resolve(network, "input"), resolve(network, "output"))
    (piece,) = stream(network, Inputs((torch.ones(3, 7),)), [pair], RunOptions(method, None, chunk))
    assert dict(piece.outcome.passes) == COUNTS[method]
    assert piece.outcome.method == method


def test_samples_that_mix() -> None:
    network = as_network(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    pair = (resolve(network, "input"), resolve(network, "output"))
    with pytest.warns(jaccli.JaccliWarning, match="samples mix"):
        (piece,) = stream(network, Inputs((torch.randn(5, 4),)), [pair], RunOptions("reverse"))
    assert piece.outcome.passes["vjp"] == 5 * 3


class Watch(TorchDispatchMode):
    """Counts the operators of torch that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[op.overloadpacket.__name__] += 1
        return op(*args, **(kwargs or {}))


def passes(call: Callable[[], object]) -> tuple[int, int]:
    """Forward and backward passes through a network with one tanh."""
    with Watch() as watch:
        call()
    return watch.counts["tanh"], watch.counts["tanh_backward"]


class OwnCode(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return super().forward(x)


@pytest.mark.parametrize(("container", "more"), [(nn.Sequential, 0), (OwnCode, 1)])
@pytest.mark.parametrize(("method", "own"), [("loop", (0, 5)), ("structured", (1, 0)), ("functional", (1, 5))])
def test_a_whole_call_of_jacobian(container: Any, more: int, method: str, own: tuple[int, int]) -> None:
    """One forward pass, two for code of one's own, and two products that probe and check, beside the method's."""
    model, x = container(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(3, 7)
    assert passes(lambda: jaccli.jacobian(model, x, method=method)) == (1 + more + own[0], 2 + own[1])


def test_calls_of_identity_deviation() -> None:
    """Calls 1, 2, 4 and 8 verify J; the others take one forward pass and what was recorded."""
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(3, 5)
    counts = [passes(lambda: jaccli.identity_deviation(model, x)) for _ in range(8)]
    checked = (3, 7)
    assert counts == [(7, 9), checked, (1, 0), checked, (1, 0), (1, 0), (1, 0), checked]


def test_an_operator_and_its_products() -> None:
    """One forward pass, and a backward pass that looks for samples that mix; then a backward pass for each Jᵀu."""
    model, x = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(3, 7)
    j: list[jaccli.JacobianOperator] = []
    assert passes(lambda: j.append(jaccli.operator(model, x))) == (1, 1)
    for turn in range(3):
        assert passes(lambda: j[0].rmatvec(torch.randn(3, 5))) == (0, 1)
        assert j[0].passes == {"forward": 1, "vjp": 2 + turn}


def test_every_method_is_counted() -> None:
    assert COUNTS.keys() == METHODS.keys() - {"auto"}
