"""Backward passes and walks through graphs that exist, in cold and in warm processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jaccli.autograd import products
from jaccli.autograd.products import DoubleVjp, NoSecondDerivative, vjp, vjps
from jaccli.autograd.seeds import one_hot, one_hot_blocks, spans
from jaccli.autograd.walk import coarsest, graph_nodes, result_sizes


@pytest.fixture(params=[False, True], ids=["cold", "warm"])
def imported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether sympy is imported decides how a cotangent is handed to torch; results are the same."""
    monkeypatch.setattr(products, "batching_imported", lambda: request.param)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    """A function of ℝ⁴, its point, and its Jacobian ``(3, 4)``."""
    w = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) / 7
    x = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    y = (w @ x).sin()
    return y, x, (w @ x).cos().detach()[:, None] * w


@pytest.mark.usefixtures("imported")
def test_products() -> None:
    y, x, j = graph()
    u, v = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.1, 0.2, -1.0, 3.0]).double()
    other = torch.ones(2, requires_grad=True)
    row, missing = vjp(y, (x, other), u)
    assert missing is None
    torch.testing.assert_close(row, j.T @ u)
    (rows,) = vjps(y, (x,), torch.eye(3).double())
    torch.testing.assert_close(rows, j)
    cotangent = u.clone().requires_grad_()
    (pulled,) = vjp(y, (x,), cotangent, create_graph=True)
    assert pulled is not None
    double = DoubleVjp(pulled, cotangent)
    torch.testing.assert_close(double.jvp(v), j @ v)
    torch.testing.assert_close(double.jvps(torch.eye(4).double()), j.T)


@pytest.mark.usefixtures("imported")
def test_a_cotangent_that_depends_on_the_source() -> None:
    """It is a constant of the product, however it is handed over."""
    y, x, j = graph()
    u = y * 3
    (row,) = vjp(y, (x,), u)
    torch.testing.assert_close(row, j.T @ u.detach())


@pytest.mark.usefixtures("imported")
def test_no_second_derivative() -> None:
    y, x, _ = graph()
    u = torch.ones_like(y, requires_grad=True)
    (elsewhere,) = vjp(x.sin().sum()[None], (x,), torch.ones(1).double(), create_graph=True)
    assert elsewhere is not None
    with pytest.raises(NoSecondDerivative, match="no graph of itself"):
        DoubleVjp(elsewhere, u).jvp(torch.ones_like(x))


def test_one_hot_vectors() -> None:
    like = torch.zeros(0, dtype=torch.float64)
    assert spans(5, 2) == [(0, 2), (2, 4), (4, 5)]
    seeds = one_hot(2, 4, 3, 5, like, slice(1, 2))
    assert seeds.shape == (2, 3, 5)
    assert seeds.nonzero().tolist() == [[0, 1, 2], [1, 1, 3]]
    whole = torch.cat([block for _, block in one_hot_blocks(3, 5, 2, like)], -1)
    assert torch.equal(whole, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))


def test_walks() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    h = x.bfloat16() * 2
    y = h.float().sum(1)
    assert coarsest(y) == torch.finfo(torch.bfloat16).eps
    assert coarsest(x * 2) == torch.finfo(torch.float32).eps
    assert [sizes for node in graph_nodes(y, beyond=[h]) for sizes in result_sizes(node)] == [2, 6]
