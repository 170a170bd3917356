"""Scripts that choose modules by a number, and hold objects of their own classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from jaccli.models.screening.operator_names import permitted
from jaccli.models.torchscript.load import load_torchscript
from jaccli.models.torchscript.network import ScriptNetwork


@torch.jit.script
class Scale:
    def __init__(self, factor: Tensor) -> None:
        self.factor = factor
        self.calls = 0

    def apply(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.factor * self.calls


@torch.jit.interface
class Layer:
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for i in range(2):
            layer: Layer = self.layers[i]
            x = layer.forward(x)
        return x, x + 1


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.apply(self.scale.apply(x))


def test_modules_by_number() -> None:
    model = torch.jit.script(Chooses())
    assert "prim::ModuleContainerIndex" in str(model.graph)
    x = torch.randn(2, 3)
    for result, expected in zip(ScriptNetwork(model).run((x,), {}), model(x), strict=True):
        assert torch.equal(result, expected)


def test_objects_are_as_they_were_in_each_run(tmp_path: Path) -> None:
    model = torch.jit.script(Scales())
    torch.jit.save(model, tmp_path / "m.pt")
    network = ScriptNetwork(load_torchscript(tmp_path / "m.pt", trust=True))
    x = torch.ones(3)
    before = network.fingerprint()
    for _ in range(2):
        assert torch.equal(network.run((x,), {}), 8 * x)
    assert network.fingerprint() == before
    assert network.cast(dtype=torch.float64).run((x.double(),), {}).dtype == torch.float64


def test_decompositions_have_operators_of_their_own() -> None:
    assert permitted(torch.ops.prims.add.default._schema)
    assert not permitted(torch.ops.prims.copy_to.default._schema)
