"""Networks whose J is sparse without being local along an axis: none of the benchmark's is, and parts serve them alone.

Each node of a fixed random graph depends on a few others, wherever these are: neither windows nor diagonals hold that,
and few coloured passes do. Their sizes are such that these are tried: ``elimination/accumulate`` does so where J is
predicted to take long, and ``sparsity/pattern`` gives up where the pattern takes longer than J.
"""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from networks import CASES, Case
from torch import Tensor, nn


def neighbours(nodes: int, count: int) -> Tensor:
    """``(nodes, count)``: each node, and others drawn at random."""
    draw = torch.Generator().manual_seed(5)
    others = torch.stack([torch.randperm(nodes, generator=draw)[: count - 1] for _ in range(nodes)])
    return torch.cat([torch.arange(nodes)[:, None], others], 1)


class Stencil(nn.Module):
    """Steps of a difference scheme on a graph: each node is drawn to its neighbours, (batch, nodes)."""

    places: Tensor

    def __init__(self, nodes: int = 1024, count: int = 4, steps: int = 2) -> None:
        super().__init__()
        self.register_buffer("places", neighbours(nodes, count))
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(nodes, count)) for _ in range(steps)])

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + torch.tanh(x[:, self.places] * weight).sum(-1)
        return x


class GraphAttention(nn.Module):
    """Attention in which each node sees its neighbours alone, by a mask before the softmax: (batch, nodes, width)."""

    def __init__(self, nodes: int = 128, count: int = 2, width: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(layers)])
        mask = torch.full((nodes, nodes), float("-inf"))
        self.register_buffer("mask", mask.scatter(1, neighbours(nodes, count), 0.0))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            query, key, value = layer(x).chunk(3, -1)
            x = x + (query @ key.transpose(1, 2) + self.mask).softmax(-1) @ value
        return x


SPARSE_CASES = {
    case.name: case
    for case in (
        Case("stencil", Stencil, (1024,), 4, 0),
        Case("graph_attention", GraphAttention, (128, 4), 8, 0),
    )
}
ALL_CASES = CASES | SPARSE_CASES
