"""The network whose weights the corpus pretends to hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Three numbers to two."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))
