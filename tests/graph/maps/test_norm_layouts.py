"""Batch and instance norms before tokens: torch's CPU kernel misreads a cotangent whose strides are ambiguous."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jaccli

CASES = {
    "tokens": (lambda: nn.BatchNorm2d(4), (2, 2), 1),
    "instance": (lambda: nn.InstanceNorm2d(4), (2, 2), 1),
    "tracked": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 2), 1),
    "volume": (lambda: nn.BatchNorm3d(4), (2, 1, 2), 1),
    "narrow": (lambda: nn.BatchNorm2d(4), (3, 1), 2),
    "two": (lambda: nn.BatchNorm2d(4), (2, 2), 2),
    "last": (lambda: nn.Sequential(ChannelsLast(), nn.BatchNorm2d(4)), (2, 2), 1),
}
METHODS = ["auto", "loop", "reverse", "replicate", "functional", "forward", "structured", "finite-difference"]


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class Tokens(nn.Module):
    """Normalises an image, and mixes the channels of each of its pixels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.fc = norm, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.norm(x) + 0.1 * x).flatten(2).transpose(1, 2)).tanh()


def case(name: str) -> tuple[nn.Module, Tensor]:
    make, shape, batch = CASES[name]
    torch.manual_seed(0)
    model = Tokens(make()).double()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return model.eval().requires_grad_(False), torch.randn(batch, 4, *shape, dtype=torch.float64)


def differences(model: nn.Module, x: Tensor, h: float = 1e-5) -> Tensor:
    columns = []
    for i in range(x[0].numel()):
        v = torch.zeros_like(x).flatten(1)
        v[:, i] = h
        v = v.reshape(x.shape)
        columns.append(((model(x + v) - model(x - v)) / (2 * h)).flatten(1))
    return torch.stack(columns, -1)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliNote")
@pytest.mark.filterwarnings("error::jaccli.JaccliWarning")
@pytest.mark.parametrize("name", CASES)
def test_every_method(name: str) -> None:
    model, x = case(name)
    want = differences(model, x)
    for method in METHODS:
        if (name, method) != ("last", "replicate"):  # copies of one sample are no longer one sample
            J = jaccli.jacobian(model, x, method=method)
            torch.testing.assert_close(J, want, rtol=1e-6, atol=1e-7, msg=method)


@pytest.mark.parametrize("name", CASES)
def test_products(name: str) -> None:
    model, x = case(name)
    want = differences(model, x)
    u, v = torch.randn(want.shape[:2], dtype=x.dtype), torch.randn(x.shape, dtype=x.dtype).flatten(1)
    A = jaccli.operator(model, x)
    torch.testing.assert_close(A.rmatvec(u), torch.einsum("bo,boi->bi", u, want), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(A.matvec(v), torch.einsum("boi,bi->bo", want, v), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_graph_of_the_caller(name: str) -> None:
    """Its J is right too, and the graph is left as it was."""
    model, x = case(name)
    want = differences(model, x)
    x.requires_grad_()
    y = model(x)
    u = torch.randn(y.shape, dtype=y.dtype)
    before = torch.autograd.grad(y, x, u, retain_graph=True)[0]
    torch.testing.assert_close(jaccli.graph_jacobian(y, x, samples=True), want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(y, x, u)[0], before, rtol=0, atol=0)
