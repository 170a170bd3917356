"""Which activations can be named for a model, and what is said of those that cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.calls import watch
from jaccli.activations.nested import leaves, put
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import expand
from jaccli.models.adapt import as_network
from jaccli.run.blocks import RunOptions, stream
from tests import nets
from tests.scenarios import chain


def calls_of(model: nn.Module, x: Tensor) -> dict[str, int]:
    return {path: seen.calls for path, seen in watch(as_network(model), Inputs((x,)))[0].items()}


def refused(kind: type[jaccli.JaccliError], model: nn.Module, *pair: str, x: Tensor | None = None) -> str:
    x = torch.randn(3, 4) if x is None else x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as caught:
            jaccli.jacobian(model, x, *pair)
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    return text


@pytest.mark.parametrize(
    ("kind", "build", "pair", "words"),
    [
        (jaccli.UsageError, nets.Shared, ("fcc",), ["'fcc'", "nearest", "fc"]),
        (jaccli.UsageError, nets.Shared, ("input", "haed"), ["'haed'", "head"]),
        (jaccli.UsageError, nets.Shared, ("fc",), ["called 2 times", "fc#1", "fc#2"]),
        (jaccli.UsageError, nets.Shared, ("fc:in",), ["called 2 times", "fc#1:in"]),
        (jaccli.UnsupportedError, nets.Shared, ("fc#3",), ["called 2 times"]),
        (jaccli.UnsupportedError, nets.Choosing, ("down",), ["does not reach", "down"]),
        (
            jaccli.UsageError,
            lambda: nets.Outputs("dict"),
            ("body",),
            ["2 floating-point", "mean (3, 3)", "spread (3, 2)"],
        ),
        (jaccli.UsageError, lambda: nets.Outputs("dict"), ("input", "output"), ["logits", "extra"]),
        (jaccli.UsageError, lambda: nets.Outputs("tuple"), ("body:out.5",), ["no element '5'", "'0'", "'1'"]),
        (jaccli.UsageError, lambda: nets.Outputs("dict"), ("body:out.nope",), ["'nope'", "'mean'"]),
        (jaccli.UnsupportedError, lambda: nets.Outputs("dict"), ("body:out.name",), ["str"]),
        (jaccli.UnsupportedError, nets.Branches, ("mix:in.nope",), ["no argument 'nope'", "gain"]),
        (jaccli.UsageError, nets.Branches, ("mix:in",), ["3 floating-point"]),
        (jaccli.UsageError, chain(4, 5, 3), ("0[7]",), ["does not fit", "(5,)"]),
        (jaccli.UsageError, chain(4, 5, 3), ("0[[1, 1]]",), ["named twice"]),
        (jaccli.UsageError, chain(4, 5, 3), ("0@1",), ["dimension 1", "3 samples"]),
        (jaccli.UsageError, chain(4, 5, 3), ("0@7",), ["dimension 7"]),
    ],
)
def test_what_cannot_be_meant(
    kind: type[jaccli.JaccliError], build: Callable[[], nn.Module], pair: Any, words: list[str]
) -> None:
    text = refused(kind, build(), *pair)
    for word in words:
        assert word in text


def test_samples_in_another_dimension() -> None:
    assert "rnn:out.0@1" in refused(jaccli.UsageError, nets.TimeFirstInside(), "rnn:out.0", x=torch.randn(3, 4, 3))


def test_samples_in_no_dimension() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    assert "x[0:1]" in refused(jaccli.UnsupportedError, Sum())
    x = torch.randn(1, 4)
    assert torch.equal(jaccli.jacobian(Sum(), x), torch.ones(1, 1, 4))


def test_input_shape_and_dtype_errors_of_the_model() -> None:
    for x in (torch.randn(3, 5), torch.randn(3, 4).double()):
        with pytest.raises(jaccli.RefusedError, match="refuses this input") as caught:
            jaccli.jacobian(nn.Linear(4, 2), x)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.tensor(1.0), [[1.0]]])
def test_no_samples(x: Any) -> None:
    with pytest.raises(jaccli.UsageError):
        jaccli.jacobian(nn.Linear(4, 2), x)


def test_non_finite_values_are_reported() -> None:
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]])

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    for method in ("reverse", "forward"):
        with pytest.warns(jaccli.JaccliWarning, match=r"non-finite.*sample 1"):
            j = jaccli.jacobian(Root(), x, method=method)
        assert j[0].isfinite().all()


def test_a_glob_leaves_out_what_does_not_fit() -> None:
    network = as_network(nets.Choosing())
    target = expand(network, ["output"])[0]
    pairs = [(s, target) for s in expand(network, ["*"])]
    with pytest.warns(jaccli.JaccliNote, match="left out"):
        pieces = list(stream(network, Inputs((torch.randn(3, 4),)), pairs, RunOptions()))
    assert [str(p.pair[0]) for p in pieces] == ["fc", "up"]


def test_a_shared_module_answers_to_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.b(x))

    model, x = Tied(), torch.randn(3, 4)
    assert set(as_network(model).layers()) == {"a", "b"}
    assert torch.equal(jaccli.jacobian(model, x, "a"), jaccli.jacobian(model, x, "b"))
    assert calls_of(model, x) == {"a": 1, "b": 1}


def test_calls_are_counted() -> None:
    counted = calls_of(nets.Shared(), torch.randn(3, 4))
    assert counted == {"fc": 2, "head": 1}


def test_tree_replacement_copies_containers_only() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    value = {"x": (a, [b, nets.Pair(a, b)]), "y": "text"}
    new = put(value, ("x", "1", "1", "spread"), c)
    assert new["x"][1][1].spread is c
    assert new["x"][1][1].mean is a
    assert new["x"][1][0] is b
    assert value["x"][1][1].spread is b
    assert [path for path, _ in leaves(value)] == [
        ("x", "0"),
        ("x", "1", "0"),
        ("x", "1", "1", "0"),
        ("x", "1", "1", "1"),
    ]
