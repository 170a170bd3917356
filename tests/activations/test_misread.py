"""Input whose samples are not in the first dimension: what is said, and that it is right when it is followed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli

STEPS, BATCH, WIDTH = 6, 4, 3


class Recurrent(nn.Module):
    """A recurrent network, and a head on its last step, or its whole sequence."""

    def __init__(self, layer: nn.Module, last: bool = True) -> None:
        super().__init__()
        self.rnn, self.last, self.head = layer, last, nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        sequence: Tensor = self.rnn(x)[0]
        return self.head(sequence[-1]) if self.last else sequence


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.body = nn.Embedding(7, WIDTH), Recurrent(nn.GRU(WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.emb(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Attention over the first dimension, with its mean or without."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH + 1, 2, 8, dropout=0.0)
        self.first, self.mean = nn.Linear(WIDTH, WIDTH + 1), mean
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.first(x))
        return y.mean(0) if self.mean else y


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def said(call: Callable[[], Any]) -> str:
    """Error or warnings of a call; notes are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except jaccli.JaccliError as error:
            return str(error)
    texts = [w.message for w in caught if issubclass(w.category, jaccli.JaccliWarning)]
    return "\n".join(str(text) for text in texts if not isinstance(text, jaccli.JaccliNote))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


TIME_MAJOR: dict[str, tuple[Callable[[], nn.Module], dict[str, str], dict[str, str]]] = {
    "GRU": (lambda: Recurrent(nn.GRU(WIDTH, 5)), {}, {"source": "input@1"}),
    "LSTM": (lambda: Recurrent(nn.LSTM(WIDTH, 5)), {}, {"source": "input@1"}),
    "RNN": (lambda: Recurrent(nn.RNN(WIDTH, 5)), {}, {"source": "input@1"}),
    "index": (lambda: Recurrent(nn.GRU(WIDTH, 5)), {"target": "output[0]"}, {"source": "input@1"}),
    "sequence": (
        lambda: Recurrent(nn.GRU(WIDTH, 5), last=False),
        {},
        {"source": "input@1", "target": "output@1"},
    ),
    "both ways": (
        lambda: Recurrent(nn.GRU(WIDTH, 5, bidirectional=True), last=False),
        {},
        {"source": "input@1", "target": "output@1"},
    ),
    "hidden source": (lambda: Recurrent(nn.GRU(WIDTH, 5)), {"source": "rnn:out.0"}, {"source": "rnn:out.0@1"}),
    "head": (lambda: Recurrent(nn.GRU(WIDTH, 5)), {"source": "head"}, {"source": "head@0"}),
    "hidden target": (
        lambda: Recurrent(nn.GRU(WIDTH, 5)),
        {"target": "rnn:out.0"},
        {"source": "input@1", "target": "rnn:out.0@1"},
    ),
    "mean of attention": (lambda: Encoder(True), {}, {"source": "input@1"}),
    "attention": (lambda: Encoder(False), {}, {"source": "input@1", "target": "output@1"}),
    "tokens": (Tokens, {"source": "emb"}, {"source": "emb@1"}),
}
ENTRIES = {
    "jacobian": jaccli.jacobian,
    "plan": lambda model, x, **names: jaccli.plan(model, x, **names)(x),
    "operator": jaccli.operator,
}


def samples(name: str, steps: int) -> Tensor:
    if name == "tokens":
        return torch.randint(7, (steps, BATCH), generator=torch.Generator().manual_seed(1))
    return normal(steps, BATCH, WIDTH)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("steps", [STEPS, BATCH, 2])
@pytest.mark.parametrize("name", TIME_MAJOR)
def test_time_major(name: str, steps: int, entry: str) -> None:
    """Also where there are as many steps as samples, and where J would be of the first step."""
    make, names, right = TIME_MAJOR[name]
    model, x = made(make), samples(name, steps)
    if name == "head" and steps == BATCH:  # from there on nothing shows what the dimension is, and J is right
        return
    text = said(lambda: ENTRIES[entry](model, x, **names))
    assert dict(re.findall(r'(source|target)="([^"]*)"', text)) == right
    assert "x[0:1]" not in text


@pytest.mark.parametrize("steps", [STEPS, BATCH])
@pytest.mark.parametrize("name", TIME_MAJOR)
def test_the_advice_is_right(name: str, steps: int) -> None:
    """Followed, J of each sample is that of the sample alone, and nothing more is said."""
    make, names, right = TIME_MAJOR[name]
    model, x = made(make), samples(name, steps)
    assert not said(lambda: jaccli.jacobian(model, x, **names | right))
    J = jaccli.jacobian(model, x, **names | right)
    assert len(J) == BATCH
    for b in range(BATCH):
        alone = jaccli.jacobian(model, x[:, b : b + 1].contiguous(), **names | right, method="loop")
        torch.testing.assert_close(J[b], alone[0], rtol=1e-9, atol=1e-12)


def test_a_target_alone_is_elsewhere() -> None:
    """As many samples as layers: the state of an LSTM is taken for samples first."""
    model = made(lambda: nn.LSTM(WIDTH, 5, num_layers=2, batch_first=True))
    text = said(lambda: jaccli.jacobian(model, normal(2, STEPS, WIDTH), target="output:out.1.0"))
    assert dict(re.findall(r'(source|target)="([^"]*)"', text)) == {"target": "output:out.1.0@1"}


def image(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


ONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "vector, n to m": (lambda: nn.Linear(3, 2), (3,), {}),
    "vector, n to n": (lambda: nn.Linear(3, 3), (3,), {}),
    "vector, hidden": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), {"source": "0"}),
    "image to image": (image(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()), (3, 6, 6), {}),
    "image to channels": (image(nn.Conv2d(3, 5, 3)), (3, 6, 6), {}),
    "image to classes": (image(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)), (3, 6, 6), {}),
    "image, normalised": (image(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), (3, 6, 6), {}),
    "signal": (image(nn.Conv1d(3, 2, 3)), (3, 8), {}),
    "sequence": (lambda: nn.GRU(3, 3, batch_first=True), (STEPS, 3), {"target": "output:out.0"}),
    "state": (lambda: nn.GRU(3, 5, batch_first=True), (STEPS, 3), {"target": "output:out.1"}),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (STEPS, 4), {}),
}
WITH_SQUARE = ENTRIES | {"deviation": jaccli.identity_deviation}


@pytest.mark.parametrize("entry", WITH_SQUARE)
@pytest.mark.parametrize("name", ONE)
def test_one_sample(name: str, entry: str) -> None:
    make, shape, names = ONE[name]
    model, x = made(make), normal(*shape)
    assert "x[None]" in said(lambda: WITH_SQUARE[entry](model, x, **names))


class Over(nn.Module):
    """What a batch may do to itself: no sample is missing a dimension."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what, self.fc = what, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.fc(x))


RIGHT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "numbers": (nn.Tanh, (5,)),
    "numbers to rows": (lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3)), (5,)),
    "rows": (lambda: nn.Linear(4, 2), (6, 4)),
    "sequences": (lambda: nn.Linear(4, 2), (6, 4, 4)),
    "one row": (lambda: nn.Linear(4, 2), (1, 4)),
    "softmax over samples": (lambda: Over(lambda y: y.softmax(0)), (6, 4)),
    "mean of samples": (lambda: Over(lambda y: y.mean(0)), (6, 4)),
    "less the mean": (lambda: Over(lambda y: y - y.mean(0)), (4, 4)),
    "less the mean of sequences": (lambda: Over(lambda y: y - y.mean((0, 1))), (4, 4, 4)),
    "too wide": (lambda: nn.Linear(3, 2), (6, 4)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_no_false_advice(name: str) -> None:
    make, shape = RIGHT[name]
    text = said(lambda: jaccli.jacobian(made(make), normal(*shape)))
    assert "x[None]" not in text
    assert "@" not in text
