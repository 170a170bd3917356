"""Programs that write in place, against the modules that they were exported from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jaccli.models.exported.network import ExportedNetwork


class AliasLivesOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 3
        flat = y.view(-1, 2)
        y.relu_()
        return flat.sin()


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 3).sub_(1).mul_(2).clamp_(max=2).pow_(2)


class PartWritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = y[:, 1] * 2
        y[:, 2:].mul_(x[:, :2])
        return y


class SourceReadAfterwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        z = y.exp_()
        return y * z + y


class DtypeKept(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(x.double() * 0.1)
        return y


class BufferInNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0))
        return x * self.mean


class StatisticsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) * 2) + self.norm.running_mean


CASES = [AliasLivesOn, Chain, PartWritten, SourceReadAfterwards, DtypeKept, BufferInNoGrad, StatisticsTwice]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("form", ["traced", "module", "core"])
def test_values_gradients_and_state(kind: type[nn.Module], form: str) -> None:
    torch.manual_seed(0)
    model = kind()
    program: Any = torch.export.export(model, (torch.randn(3, 4),))
    program = program.run_decompositions() if form == "core" else program
    network = ExportedNetwork(program.module() if form == "module" else program)
    x = torch.randn(3, 4, requires_grad=True)
    kept, before = x.detach().clone(), {key: value.clone() for key, value in model.state_dict().items()}
    wanted = copy.deepcopy(model)(x.clone())
    cotangent = torch.randn_like(wanted)
    (row,) = torch.autograd.grad(wanted, x, cotangent)
    for _ in range(2):
        got = network.run((x,), {})
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted)
        # Decomposing an export forgets what was without gradients, in torch itself too.
        if form != "core" or kind is not BufferInNoGrad:
            torch.testing.assert_close(torch.autograd.grad(got, x, cotangent)[0], row)
    assert torch.equal(x, kept)
    held = dict(network.model.state_dict())
    assert all(torch.equal(held[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", [BufferInNoGrad, StatisticsTwice])
def test_a_call_leaves_the_state_that_the_module_leaves(kind: type[nn.Module]) -> None:
    model = kind()
    program = torch.export.export(model, (torch.randn(3, 4),))
    exported, eager = ExportedNetwork(program).model, copy.deepcopy(model)
    x = torch.randn(3, 4)
    for _ in range(2):
        torch.testing.assert_close(exported(x), eager(x))
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[key], value)


@pytest.mark.parametrize("kind", [Chain, SourceReadAfterwards])
def test_writes_into_fresh_values_work_under_vmap(kind: type[nn.Module]) -> None:
    program = torch.export.export(kind(), (torch.randn(1, 4),))
    network, x = ExportedNetwork(program), torch.randn(3, 1, 4)
    got = torch.func.vmap(lambda t: network.run((t,), {}))(x)
    torch.testing.assert_close(got, torch.stack([kind()(t) for t in x]))


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.view(x.shape[0], -1) * 2).sin()


class ViewedInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2).clone(memory_format=torch.preserve_format)
        flat = y.transpose(1, 2).view(x.shape[0], -1)
        y.relu_()
        return flat.sin()


@pytest.mark.parametrize("decompose", [False, True], ids=["training", "core"])
def test_a_view_of_strides_that_the_export_did_not_see(decompose: bool) -> None:
    x = torch.randn(2, 3, 4)
    other = x.transpose(1, 2).contiguous().transpose(1, 2)
    program = torch.export.export(Viewed(), (x,))
    program = program.run_decompositions() if decompose else program
    torch.testing.assert_close(ExportedNetwork(program).run((other,), {}), Viewed()(x))


def test_a_view_of_what_is_written_to_is_never_a_copy() -> None:
    x = torch.randn(2, 3, 4)
    network = ExportedNetwork(torch.export.export(ViewedInPlace(), (x,)))
    torch.testing.assert_close(network.run((x,), {}), ViewedInPlace()(x))
    with pytest.raises(RuntimeError, match="view"):
        network.run((x.transpose(1, 2).contiguous().transpose(1, 2),), {})
