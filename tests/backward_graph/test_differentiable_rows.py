"""Products with J that can be differentiated again, of one recorded pass, against J itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.backward_graph.differentiable_rows import Rows


class Flipped(torch.autograd.Function):
    """−x, whose derivative has none of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return -x

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: object, u: Tensor) -> Tensor:
        return -u


def recorded(n_in: int, n_out: int, last: nn.Module, single: bool = False) -> tuple[Rows, Tensor]:
    """Products of a network at two samples, and J ``(2, n_out, n_in)`` by rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n_in, n_out), last).double()
    x = torch.randn(2, n_in).double().requires_grad_()
    rows = Rows(model(x), x, lambda grads: grads.reshape(len(grads), 2, -1), False, True, single)
    return rows, rows.matrix().detach()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(5, 3), (3, 5)])
def test_products_with_the_smaller_gram_matrix(n_in: int, n_out: int, single: bool) -> None:
    rows, j = recorded(n_in, n_out, nn.Tanh(), single)
    gram = j @ j.mT if n_out <= n_in else j.mT @ j
    v = torch.randn(2, 3, 4).double()
    torch.testing.assert_close(rows.images(v, gram=True), gram @ v)
    torch.testing.assert_close(rows.images(torch.ones(2, n_out, 1), gram=False), j.mT.sum(2, keepdim=True))


def test_no_path_gives_zeros() -> None:
    x, y = torch.ones(2, 3).requires_grad_(), torch.ones(2, 4).requires_grad_()
    rows = Rows(y * 2, x, lambda grads: grads, False, True)
    assert not rows.push(torch.ones(2, 3)).any()
    assert not rows.matrix().any()


def test_an_operator_without_a_second_derivative() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flipped: Tensor = Flipped.apply(x)
            return flipped

    rows, _ = recorded(3, 5, Last())
    with pytest.raises(jaccli.UnsupportedError, match="no second derivative"):
        rows.push(torch.ones(2, 3).double())
