"""The networks of the sample models, each usable as ``--arch sample_models/nets.py:NAME``.

Every forward pass takes one float tensor whose first dimension is the samples. Annotations are kept
as real objects (no postponed evaluation): TorchScript reads them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearMap(nn.Module):
    """``y = w @ x`` for each sample: (batch, 2) → (batch, 2). Its Jacobian is ``w``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w)


class IdentityMLP(nn.Module):
    """(batch, 8) → (batch, 16); everything after ``fc1`` can be trained towards the identity."""

    def __init__(self, inputs: int = 8, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, hidden)
        self.fc1 = nn.Linear(hidden, width)
        self.fc2 = nn.Linear(width, hidden)
        self.fc3 = nn.Linear(hidden, width)

    def head(self, x: Tensor) -> Tensor:
        """Input → activation of ``fc1``, (batch, width)."""
        h: Tensor = self.fc1(torch.tanh(self.embed(x)))
        return h

    def tail(self, h: Tensor) -> Tensor:
        """Activation of ``fc1`` → output: the map whose Jacobian is held against the identity."""
        y: Tensor = self.fc3(torch.tanh(self.fc2(torch.tanh(h))))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x))


class Decoder(nn.Module):
    """Decoder of a convolutional VAE: latents (batch, 32) → images (batch, 3, 32, 32) in (0, 1)."""

    def __init__(self, latents: int = 32, channels: int = 32) -> None:
        super().__init__()
        self.fc = nn.Linear(latents, channels * 4 * 4)
        self.up1 = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1)
        self.up3 = nn.ConvTranspose2d(channels // 2, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.fc(z)).reshape(z.shape[0], -1, 4, 4)
        h = F.silu(self.up1(h))
        h = F.silu(self.up2(h))
        return torch.sigmoid(self.up3(h))


class ResidualBlock(nn.Module):
    """``relu(h + f(h))``, f with two convolutions and two BatchNorms; shapes stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, h: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(h)))))
        return F.relu(h + residual)


class ResidualNet(nn.Module):
    """Images (batch, 3, 16, 16) → logits (batch, 4); blocks act on (batch, 12, 8, 8)."""

    def __init__(self, channels: int = 12, blocks: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.fc(h.mean((2, 3)))
        return logits


class Split(nn.Module):
    """A hidden module with a tuple for output: a value and a gate, (batch, width) each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.value(h)), torch.sigmoid(self.gate(h))


class Heads(nn.Module):
    """A hidden module with a dict for output: ``mean`` and ``scale``, (batch, outputs) each."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Linear(width, outputs)
        self.scale = nn.Linear(width, outputs)

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": self.mean(h), "scale": F.softplus(self.scale(h))}


class ControlFlowNet(nn.Module):
    """(batch, 6) → (batch, 4), with what makes scripted files hard.

    A branch chosen by the data (``bright`` runs where the batch mean of the input is positive, else
    ``dark``, twice in a loop), a loop over a list of modules, tuple and dict outputs inside, and state
    in plain attributes: ``memory`` enters the next call of the same batch size, ``calls`` counts.
    Like many published files it keeps ``memory`` attached to the graph that made it.
    """

    def __init__(self, inputs: int = 6, width: int = 12, outputs: int = 4, steps: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.split = Split(width)
        self.bright = nn.Linear(width, width)
        self.dark = nn.Linear(width, width)
        self.heads = Heads(width, outputs)
        self.steps: int = steps
        self.calls: int = 0
        self.memory: Tensor = torch.zeros(0, width)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.memory.size(0) != x.size(0):
            self.memory = x.new_zeros(x.size(0), self.memory.size(1))
        h: Tensor = torch.tanh(self.embed(x)) + 0.5 * self.memory
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        value, gate = self.split(h)
        h = value * gate
        if float(x.mean()) > 0.0:
            h = h + torch.tanh(self.bright(h))
        else:
            for _ in range(self.steps):
                h = torch.sin(self.dark(h))
        self.memory = h
        heads: dict[str, Tensor] = self.heads(h)
        return heads["mean"] * heads["scale"]


class Attention(nn.Module):
    """Multi-head self-attention without a mask: (batch, tokens, width) → the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = self.proj(mixed)
        return y


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then a GELU MLP, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Transformer(nn.Module):
    """Denoiser of signals cut into tokens: (batch, 12, 32) → (batch, 12, 32)."""

    def __init__(self, tokens: int = 12, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.embed(x) + self.position)
        y: Tensor = self.unembed(self.norm(h))
        return y
