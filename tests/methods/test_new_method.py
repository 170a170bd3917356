"""A new method is one file and one line of a table: what is said of it is asked of it, by name, everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jaccli
from jaccli.methods import METHODS, MethodGap, MethodTask
from jaccli.methods.base import Method, SelectionInput
from jaccli.names import METHOD_CLASSES, check_method
from jaccli.planning.bind import bind
from jaccli.planning.decide import decide
from jaccli.planning.linearize import computing, linearize
from tests.methods.test_methods import EXACT, take
from tests.oracle import error
from tests.scenarios import BY_NAME


class Toy(Method):
    """Columns one by one, of samples that do not mix."""

    name = "toy"
    drawback = "{n_in} columns of a toy"
    kind = "forward"
    by = "column"
    fallbacks = ("loop",)
    predicted_s: float | None = None

    def fill(self, task: MethodTask) -> None:
        if task.samples_mix:
            raise MethodGap("toys do not mix samples")
        n_in = task.linear.f.n_in
        for column in range(n_in):
            seed = task.seeds(column, column + 1, n_in, slice(None))[0]
            task.out[:, :, column] = task.linear.jvp(seed)
            task.tick(1)

    def predict(self, inputs: SelectionInput) -> float | None:
        return self.predicted_s


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The method, registered by one line."""
    monkeypatch.setitem(METHOD_CLASSES, "toy", f"{__name__}:Toy")
    method = METHODS["toy"]
    assert isinstance(method, Toy)
    monkeypatch.setattr(method, "predicted_s", None)
    return method


def test_names_are_those_of_the_classes() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHOD_CLASSES}


def test_its_name_is_valid() -> None:
    assert check_method("toy") == "toy"
    with pytest.raises(jaccli.UsageError, match=r"toi(.|\n)*finite-difference, toy(.|\n)*did you mean 'toy'"):
        check_method("toi")


@pytest.mark.parametrize("name", ["wide", "conv", "second call to head", "dict key"])
@pytest.mark.parametrize("chunk", [None, 1])
def test_it_computes_scenarios(name: str, chunk: int | None) -> None:
    s = BY_NAME[name]
    outcome, _ = take(s, torch.float64, "toy", chunk)
    assert outcome.method == "toy"
    assert outcome.passes["jvp"] == outcome.matrix.shape[2]
    assert error(outcome.matrix, s.truth()) <= EXACT[torch.float64]


def test_its_fallback_is_used() -> None:
    s = BY_NAME["BatchNorm in training mode"]
    outcome, said = take(s, torch.float64, "toy")
    assert outcome.method == "loop"
    assert any("toy: toys do not mix samples; taken with loop" in str(w.message) for w in said)
    assert error(outcome.matrix, s.truth()) <= EXACT[torch.float64]


def test_plans_explain_it() -> None:
    model, x = nn.Linear(5, 3), torch.randn(2, 5)
    text = str(jaccli.plan(model, x, method="toy"))
    assert "method  toy: asked for" in text
    assert "passes  5 forward passes, 5 at a time" in text
    assert "not structured: toy was asked for" in text
    assert "not toy: 5 columns of a toy" in str(jaccli.plan(model, x, method="loop"))


@pytest.mark.parametrize(("predicted_s", "selects"), [(None, False), (1e9, False), (0.0, True)])
def test_auto_selects_it_where_it_predicts_the_least(toy: Toy, predicted_s: float | None, selects: bool) -> None:
    toy.predicted_s = predicted_s
    model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(100, 100), nn.Tanh())))
    network, pair, inputs = bind(model, torch.randn(2, 100), "input", "output", (), None)
    with computing(network):
        (linearization,) = linearize(network, inputs, [pair])
        decision = decide(linearization, "auto")
    assert (decision.method == "toy") == selects
