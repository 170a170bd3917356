"""Synthetic data for the sample models: made from a seed, nothing is downloaded."""

import math

import torch
from torch import Tensor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A smooth regression task in float64: x (n, 8) normal, y (n, 16) = 0.2·sin(x @ a + b).

    The task (a and b) is the same for every seed; only the samples differ.
    """
    task = _generator(11)
    a = torch.randn(8, 16, generator=task, dtype=torch.float64) / math.sqrt(8)
    b = torch.rand(16, generator=task, dtype=torch.float64) * 2 * math.pi
    x = torch.randn(n, 8, generator=_generator(seed), dtype=torch.float64)
    return x, 0.2 * torch.sin(x @ a + b)


def blobs(n: int, seed: int, size: int = 32) -> Tensor:
    """Images (n, 3, size, size) in [0, 1]: a colour gradient with two soft coloured spots on it."""
    g = _generator(seed)
    axis = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, 1, 1, generator=g)

    angle = uniform(0, 2 * math.pi, 1)
    ramp = 0.5 + 0.35 * (torch.cos(angle) * columns + torch.sin(angle) * rows)
    image = ramp * uniform(0.1, 0.9, 3)
    for _ in range(2):
        x, y, radius = uniform(-0.6, 0.6, 1), uniform(-0.6, 0.6, 1), uniform(0.2, 0.45, 1)
        spot = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
        image = image + spot * (uniform(0.0, 1.0, 3) - image)
    return image.clamp(0, 1)


def patterns(n: int, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) of four kinds with noise, and their labels (n,).

    0: rows, 1: columns, 2: chequers, 3: a disc.
    """
    g = _generator(seed)
    axis = torch.arange(size, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    labels = torch.randint(4, (n,), generator=g)
    phase = torch.rand(n, 2, 1, 1, generator=g) * 2 * math.pi
    by_row, by_column = torch.sin(0.9 * rows + phase[:, 0]), torch.sin(0.9 * columns + phase[:, 1])
    centre = 5 + 6 * torch.rand(n, 2, 1, 1, generator=g)
    distance = torch.hypot(rows - centre[:, 0], columns - centre[:, 1])
    kinds = torch.stack([by_row, by_column, by_row * by_column, torch.tanh(4 - distance)], dim=1)
    chosen = kinds[torch.arange(n), labels].unsqueeze(1)
    colour = 0.3 + torch.rand(n, 3, 1, 1, generator=g)
    # Offset and scale far from 0 and 1, so that the BatchNorm statistics learned here matter.
    image = 2.0 + 1.5 * (chosen * colour + 0.3 * torch.randn(n, 3, size, size, generator=g))
    return image, labels


def signals(n: int, seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Noisy and clean signals of 384 steps, cut into tokens: (n, 12, 32) each."""
    g = _generator(seed)
    time = torch.linspace(0, 1, 12 * 32)
    frequency = 2 + 10 * torch.rand(n, 3, 1, generator=g)
    phase = 2 * math.pi * torch.rand(n, 3, 1, generator=g)
    amplitude = torch.rand(n, 3, 1, generator=g)
    clean = (amplitude * torch.sin(2 * math.pi * frequency * time + phase)).sum(1)
    noisy = clean + noise * torch.randn(clean.shape, generator=g)
    return noisy.reshape(n, 12, 32), clean.reshape(n, 12, 32)


def branches(n: int, seed: int, bright: bool) -> tuple[Tensor, Tensor]:
    """A task in two pieces in float64: x (n, 6) with a positive (bright) or negative mean, y (n, 4).

    Every sample's own mean has the sign asked for, so any part of a batch takes the same branch.
    """
    x = torch.randn(n, 6, generator=_generator(seed), dtype=torch.float64)
    mean = x.mean(1, keepdim=True)
    x = x - mean + (mean.abs() + 0.1) * (1.0 if bright else -1.0)
    pairs = x[:, :4] * x[:, 2:]
    return x, torch.tanh(pairs if bright else x[:, 2:] - x[:, :4])
