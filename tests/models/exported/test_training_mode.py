"""What an exported model says about layers that were in training mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jaccli.models.exported.network import ExportedNetwork


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], dropout: float) -> None:
        super().__init__()
        self.layer = kind(4, 4, num_layers=2, dropout=dropout, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_with_dropout_draw(kind: type[nn.Module]) -> None:
    x = torch.randn(2, 3, 4)
    network = ExportedNetwork(torch.export.export(Recurrent(kind, 0.5).train(), (x,)))
    assert network.draws_random_numbers()
    assert "draws random numbers" in network.warnings()[0]
    before = torch.get_rng_state()
    network.run((x,), {})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("train", "dropout"), [(True, 0.0), (False, 0.5)])
def test_without_dropout_or_in_eval_mode_they_do_not(train: bool, dropout: float) -> None:
    model = Recurrent(nn.RNN, dropout).train(train)
    network = ExportedNetwork(torch.export.export(model, (torch.randn(2, 3, 4),)))
    assert network.warnings() == []
    assert not network.draws_random_numbers()
