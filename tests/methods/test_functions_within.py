"""Networks with operators that take functions, which do not run below a dispatch mode, and with compiled parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.names import METHOD_NAMES
from tests.oracle import error


class Branching(nn.Module):
    """``torch.cond``, of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other, self.outer = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.cond(x.sum() > 0, self.inner, lambda x: self.other(x).sin(), (x,)).tanh())


class Halving(Branching):
    """Halves a parameter, each time that it is called, before the operator or after it, where nobody would see it."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            self.inner.bias.data.mul_(0.5)
        y = super().forward(x)
        if not self.before:
            self.outer.bias.data.mul_(0.5)
        return y


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), backend="eager")
        self.outer = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)).sin()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def truth(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x.requires_grad_())
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[1])]
    x.requires_grad_(False)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("make", [Branching, Compiled])
def test_all_ways(make: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    model, x = make().double(), normal(3, 4)
    j, v = truth(model, x), normal(3, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in METHOD_NAMES:
        near = 1e-5 if method == "finite-difference" else 1e-9
        assert error(jaccli.jacobian(model, x, method=method), j) < near, method
    assert error(jaccli.plan(model, x)(x), j) < 1e-9
    assert error(jaccli.operator(model, x).matvec(v), (j @ v[..., None])[..., 0]) < 1e-9
    assert error(jaccli.operator(model, x).rmatvec(v), (v[:, None] @ j)[:, 0]) < 1e-9
    with torch.no_grad():
        found = jaccli.identity_deviation(model, x)
    torch.testing.assert_close(found, (j - torch.eye(4)).square().sum((1, 2)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "recompile_limit" not in caplog.text


@pytest.mark.parametrize("before", [True, False])
def test_a_parameter_that_is_rewritten(before: bool) -> None:
    model, x = Halving(before).double(), normal(3, 4)
    held = {name: value.clone() for name, value in model.state_dict().items()}
    found = jaccli.jacobian(model, x)
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    assert error(found, truth(model, x)) < 1e-9
