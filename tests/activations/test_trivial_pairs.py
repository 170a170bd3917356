"""Pairs of which source and target are the same activation, found from the pass and not from J."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import expand, resolve
from jaccli.models.adapt import as_network
from jaccli.planning.linearize import computing, linearize

KINDS = ["eager", "script", "trace", "exported"]


class Clone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.0 * x


class Reshaped(nn.Module):
    """The same numbers in the same order and place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, 2).flatten(1)


class Turned(nn.Module):
    """A view in which they have another order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, 2).transpose(1, 2)


def trivial(model: Any, sources: list[str], target: str = "output", n: int = 4) -> list[str]:
    """The sources of which the target is the same activation."""
    network = as_network(model)
    pairs = [(source, resolve(network, target)) for source in expand(network, sources)]
    with computing(network):
        ready = linearize(network, Inputs((torch.rand(3, n) + 0.1,)), pairs)
    for one in ready:
        J = one.linear.vjp(torch.eye(one.linear.f.n_out)[0].expand(one.linear.batch, -1)) if one.connected else None
        assert not one.trivial or (J is not None and bool((J[:, 0] == 1).all()))
    return [str(one.pair[0]) for one in ready if one.trivial]


@pytest.mark.parametrize(
    ("last", "want"),
    [
        ([], ["0"]),
        ([nn.Identity()], ["0", "1"]),
        ([nn.Dropout(0.5)], ["0", "1"]),
        ([nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.1)], ["0", "1", "2", "3"]),
        ([Reshaped()], ["0", "1"]),
        ([Turned()], ["1"]),
        ([Clone()], ["1"]),
        ([Times()], ["1"]),
        ([nn.ReLU(inplace=True)], ["1"]),
        ([nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Identity()], ["2", "3"]),
    ],
    ids=lambda v: "-".join(type(m).__name__ for m in v) if v and isinstance(v[0], nn.Module) else "",
)
def test_what_is_the_same_activation(last: list[nn.Module], want: list[str]) -> None:
    """No operator between, in-place ones neither; a view that keeps place and order is none."""
    model = nn.Sequential(nn.Linear(4, 4), *last).eval()
    assert trivial(model, ["*"]) == want


def test_a_module_that_writes_in_place_hands_on_its_own_activation() -> None:
    """The ReLU's output is the model's, while what went in is no longer there."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).eval()
    assert trivial(model, ["1:in", "1"]) == ["1"]


@pytest.mark.parametrize("kind", KINDS)
def test_in_files(kind: str) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    x = torch.ones(3, 4)
    if kind == "script":
        model = torch.jit.script(model)
    elif kind == "trace":
        model = torch.jit.trace(model, x)
    elif kind == "exported":
        model = torch.export.export(model, (x,))
    assert trivial(model, ["0", "1", "2"]) == ["2"]
    assert trivial(model, ["1", "2:in"], "2:in") == ["1", "2:in"]
    assert trivial(model, ["input", "0:in"], "0:in") == ["input", "0:in"]


@pytest.mark.parametrize(
    ("source", "target", "same"),
    [
        ("0[0]", "output[0]", True),
        ("0[0]", "output[1]", False),
        ("0[:]", "output", True),
        ("0[[1, 0]]", "output[[1, 0]]", True),
        ("0[[1, 0]]", "output[[0, 1]]", False),
        ("0[::2]", "1[[0, 2]]", True),
        ("1", "0", False),
        ("0", "1:in", True),
    ],
)
def test_indices(source: str, target: str, same: bool) -> None:
    """The same elements in the same order; and what comes before its source is another boundary."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity()).eval()
    assert bool(trivial(model, [source], target)) == same


def test_an_identity_by_its_weights_is_none() -> None:
    """J = I alone is no reason."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[1].weight.data = torch.eye(4)  # type: ignore[union-attr]
    assert trivial(model, ["0", "1"]) == ["1"]
    torch.testing.assert_close(jaccli.jacobian(model, torch.ones(2, 4), "0"), torch.eye(4).expand(2, 4, 4))
