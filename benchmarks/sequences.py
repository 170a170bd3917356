"""The networks of the benchmark, as anybody would write them: vectors, tokens and sequences."""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


class MlpBlock(nn.Module):
    """x + W₂ gelu(W₁ norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class ResidualMlp(nn.Module):
    def __init__(self, width: int = 192, hidden: int = 384, depth: int = 7) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[MlpBlock(width, hidden) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = MlpBlock(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x)))


class Transformer(nn.Module):
    """Two pre-norm blocks over 12 tokens × 48, then a projection to 8 numbers a token."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mlp = mlp((tokens, 2 * tokens, tokens), nn.GELU)
        self.norm2 = nn.LayerNorm(width)
        self.channel_mlp = mlp((width, 4 * width, width), nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class Mixer(nn.Module):
    """MLP-mixer: 3×16×16 in 4×4 patches, 16 tokens × 32, to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(h).mean(dim=1))


class RecurrentNet(nn.Module):
    """An Elman network over 20 steps of 8 numbers, its last state read out."""

    def __init__(self, inner: int = 8, hidden: int = 64, outer: int = 10) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter = nn.Linear(inner, hidden)
        self.recur = nn.Linear(hidden, hidden)
        self.read = nn.Linear(hidden, outer)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            h = torch.tanh(self.enter(x[:, t]) + self.recur(h))
        return self.read(h)


class GruNet(nn.Module):
    """nn.GRU over 16 steps of 8 numbers; every step read out."""

    def __init__(self, inner: int = 8, hidden: int = 32, outer: int = 4) -> None:
        super().__init__()
        self.gru = nn.GRU(inner, hidden, batch_first=True)
        self.read = nn.Linear(hidden, outer)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.read(states)


class LstmNet(nn.Module):
    """An LSTM cell written out, 12 steps of 16 numbers to a last state of 48."""

    def __init__(self, inner: int = 16, hidden: int = 48) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Linear(inner + hidden, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        c = torch.zeros_like(h)
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class Coupling(nn.Module):
    """Affine coupling (RealNVP): one half scales and shifts the other."""

    def __init__(self, size: int, hidden: int, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        self.net = mlp((size // 2, hidden, hidden, size), nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        if self.swap:
            a, b = b, a
        scale, shift = self.net(a).chunk(2, dim=-1)
        b = b * torch.exp(torch.tanh(scale)) + shift
        return torch.cat([b, a] if self.swap else [a, b], dim=-1)


class Flow(nn.Module):
    """Eight coupling layers over 32 numbers."""

    def __init__(self, size: int = 32, hidden: int = 128, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Coupling(size, hidden, swap=bool(i % 2)) for i in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class SinusoidNet(nn.Module):
    """2 → 3 coordinates to colour (SIREN): sine layers."""

    def __init__(self, hidden: int = 128, frequency: float = 6.0) -> None:
        super().__init__()
        self.frequency = frequency
        layers = [nn.Linear(2, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(hidden, 3)
        for i, layer in enumerate(layers):
            bound = 0.5 if i == 0 else math.sqrt(6 / hidden) / frequency
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return self.last(x)
