"""Networks that take their steps from the whole batch: J is that of the samples together, and not cut unsaid."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli import defaults
from jaccli.planning.bind import bind
from jaccli.run.estimates_of_pairs import stream_estimates

SIZE, COUNT = 12, 40


class Net(nn.Module):
    def __init__(self, form: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.form = nn.Linear(SIZE, SIZE), form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.fc, x)


def settles(fc: nn.Module, x: Tensor) -> Tensor:
    while float(x.detach().abs().max()) > 1:
        x = 0.8 * x + 0.1 * fc(x).tanh()
    return x


def capacity(fc: nn.Module, x: Tensor) -> Tensor:
    """The four samples with the largest norms take an expert of their own."""
    chosen = torch.zeros(len(x), 1, dtype=torch.bool).index_fill(
        0, x.detach().norm(dim=1).topk(min(4, len(x)))[1], True
    )
    return torch.where(chosen, fc(x).sin(), fc(x).tanh())


def scaled_gradient(fc: nn.Module, x: Tensor) -> Tensor:
    """Values are those of each sample; the gradient is divided by their number."""
    h = fc(x).tanh()
    if h.requires_grad:
        h.register_hook(lambda g: g / len(g))
    return h


def threshold(fc: nn.Module, x: Tensor) -> Tensor:
    h = fc(x)
    return torch.where(h > h.detach().mean(0), h, 0.1 * h)


DEPENDS = {
    "adaptive steps": settles,
    "threshold": threshold,
    "maximum": lambda fc, x: fc(x) / x.detach().abs().max(),
    "capacity": capacity,
    "branch": lambda fc, x: fc(x).sin() if float(x.detach().square().mean()) > 8 else fc(x).tanh(),
    "gradient": scaled_gradient,
}
FINE = {
    "plain": lambda fc, x: fc(x).tanh(),
    "half": lambda fc, x: fc(fc(x).half().tanh().to(x.dtype)),
    "saturated": lambda fc, x: (40 * fc(x)).softmax(1),
    "norm": lambda fc, x: nn.functional.layer_norm(fc(x), (SIZE,)),
}
DTYPES = [torch.float32, torch.float64]


def samples(order: int, dtype: torch.dtype, count: int = COUNT) -> Tensor:
    """They grow from first to last, or the other way."""
    x = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 6, count)[:, None]
    return (x if order > 0 else x.flip(0)).to(dtype)


def cut(model: nn.Module, x: Tensor, **given: object) -> tuple[Tensor, list[str]]:
    """J in blocks, where the memory is that of J and little more."""
    room = len(x) * SIZE * SIZE * x.element_size() * 5 // 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        J = jaccli.jacobian(model, x, max_memory=room, method="loop", **given)
    return J, [str(w.message) for w in caught if w.category is jaccli.JaccliWarning]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", DEPENDS)
def test_told(name: str, order: int, dtype: torch.dtype) -> None:
    model, x = Net(DEPENDS[name]).to(dtype), samples(order, dtype)
    texts = cut(model, x)[1]
    assert len(texts) == 1
    assert "samples influence each other through the batch" in texts[0]
    assert "blocks of" in texts[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FINE)
def test_independent_samples(name: str, dtype: torch.dtype) -> None:
    model, x = Net(FINE[name]).to(dtype), samples(1, dtype)
    J, texts = cut(model, x)
    assert not any("influence" in text for text in texts)
    if name == "plain":
        torch.testing.assert_close(J, jaccli.jacobian(model, x))


@pytest.mark.parametrize("name", DEPENDS)
def test_taken_together_where_it_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than a first block has: J is that of all of them, and a warning says that they depend."""
    monkeypatch.setattr(defaults, "PILOT_BYTES", 1)
    x = samples(1, torch.float64, 150)
    with pytest.warns(jaccli.JaccliWarning, match="one block of all 150 samples"):
        J = jaccli.jacobian(Net(DEPENDS[name]).double(), x, method="loop")
    h = x.clone().requires_grad_()
    y = Net(DEPENDS[name]).double()(h)
    rows = torch.stack([torch.autograd.grad(y[:, o].sum(), h, retain_graph=True)[0] for o in range(SIZE)], 1)
    torch.testing.assert_close(J, rows)


@pytest.mark.parametrize("name", DEPENDS)
def test_estimates(name: str) -> None:
    model, x = Net(DEPENDS[name]).double(), samples(1, torch.float64)
    network, pair, inputs = bind(model, x, "input", "output", (), {})
    found = stream_estimates(
        network,
        inputs,
        [pair],
        lambda a, vectors: [{} for _ in range(a.shape[0])],
        probes=8,
        fixed=True,
        max_memory=100_000,
    )
    with pytest.warns(jaccli.JaccliWarning, match="samples influence each other"):
        assert sum(len(block.records) for block in found) == COUNT


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("name", DEPENDS)
def test_one_sample_of_an_operator(name: str) -> None:
    """It is that sample among the others."""
    x = samples(1, torch.float64, 6)
    A = jaccli.operator(Net(DEPENDS[name]).double(), x)
    J = jaccli.jacobian(Net(DEPENDS[name]).double(), x, method="loop")
    for b in (0, 5):
        u = torch.randn(1, SIZE, dtype=x.dtype, generator=torch.Generator().manual_seed(b))
        torch.testing.assert_close(A.sample(b).rmatvec(u)[0], u[0] @ J[b])
