"""Products without a matrix: against the matrix of the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import jaccli
from tests import nets
from tests.oracle import error
from tests.scenarios import TABLE, Scenario, case_name

SEPARATE = [s for s in TABLE if torch.float64 in s.dtypes and "BatchNorm" not in s.name]


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("s", SEPARATE, ids=case_name)
def test_products_agree_with_the_oracle(s: Scenario) -> None:
    torch.manual_seed(0)
    model = s.model(torch.float64)
    a = jaccli.operator(model, s.x(torch.float64), s.source, s.target, **s.extras(torch.float64))
    truth = s.truth()
    assert a.shape == tuple(truth.shape)
    batch, n_out, n_in = a.shape
    v, u = torch.randn(batch, n_in, 2).double(), torch.randn(batch, n_out, 2).double()
    assert error(a.matmat(v), truth @ v) < 1e-10
    assert error(a.rmatmat(u), truth.mT @ u) < 1e-10
    assert error(a.matvec(v[..., 0])[..., None], truth @ v[..., :1]) < 1e-10
    assert error(a.rmatvec(u[..., 0])[..., None], truth.mT @ u[..., :1]) < 1e-10
    assert error(a.T.matvec(u[..., 0])[..., None], truth.mT @ u[..., :1]) < 1e-10
    assert error(a.T.rmatmat(v), truth @ v) < 1e-10
    assert a.T.shape == (batch, n_in, n_out)
    assert a.T.T is a
    assert not a.matmat(v).requires_grad
    assert not a.rmatmat(u).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_mode_of_the_caller(mode: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    x = torch.randn(2, 3).double()
    j = jaccli.jacobian(model, x)
    with mode():
        a = jaccli.operator(model, x)
        v, u = torch.randn(2, 3).double(), torch.randn(2, 4).double()
        assert torch.allclose(a.matvec(v), (j @ v[..., None])[..., 0], rtol=1e-12)
        assert torch.allclose(a.rmatvec(u), (j.mT @ u[..., None])[..., 0], rtol=1e-12)


def test_parameters_may_change_after_the_operator_was_made() -> None:
    """It stands for J where it was made, or says that it no longer can."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    a = jaccli.operator(model, torch.randn(2, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    with pytest.raises(jaccli.JaccliError):
        a.rmatvec(torch.randn(2, 2))


def test_wrong_shapes_are_refused() -> None:
    a = jaccli.operator(nn.Linear(3, 2), torch.randn(4, 3))
    for call, shape in (
        (a.matvec, (4, 2)),
        (a.rmatvec, (4, 3)),
        (a.matvec, (3,)),
        (a.matmat, (4, 3)),
        (a.rmatmat, (3, 2, 1)),
        (a.matvec, (5, 3)),
    ):
        with pytest.raises(jaccli.UsageError, match="expected"):
            call(torch.randn(*shape))


def test_broken_backward_pass() -> None:
    x = torch.randn(2, 3).double()
    a = jaccli.operator(nets.OnlyForward(), x)
    v = torch.randn(2, 3).double()
    assert torch.allclose(a.matvec(v), x.cos() * v)
    assert torch.allclose(a.rmatvec(v), x.cos() * v)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
def test_neither_pass_works() -> None:
    """J is to be had by differences, and so are products."""
    x, v = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    a = jaccli.operator(nets.NoBackward(), x)
    assert torch.allclose(a.matvec(v), x.cos() * v, rtol=1e-7)
    assert torch.allclose(a.rmatvec(v), x.cos() * v, rtol=1e-7)


def test_vectors_of_another_dtype() -> None:
    x = torch.randn(2, 3)
    a = jaccli.operator(nets.Widened(), x)
    v = torch.randn(2, 3).double()
    truth = (2 * x.double() * v.float().double()).cumsum(1)
    assert torch.allclose(a.matvec(v), truth, rtol=1e-6)
    assert "Jacobian" in repr(a)
    assert repr(a.T).endswith(".T")
