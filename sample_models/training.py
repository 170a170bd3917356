"""Short training runs that turn the fresh networks into trained ones, by the caller's random state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nets import ControlFlowNet, Decoder, IdentityMLP, ResidualNet, Transformer
from synthetic import blobs, branches, patterns, signals, waves
from torch import Tensor, nn


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, what to print about it, and what a checkpoint keeps besides it."""

    model: nn.Module
    report: str
    optimizer_state: dict[str, Any]
    steps: int


def descend(optimizer: torch.optim.Optimizer, steps: int, loss: Callable[[int], Tensor]) -> None:
    """Minimise ``loss(step)`` with a one-cycle learning rate."""
    top = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, top, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def explained(output: Tensor, target: Tensor) -> float:
    """The share of the target's variance that the output explains (1 is perfect)."""
    residual = (output - target).square().mean()
    return 1 - float(residual / (target - target.mean(0)).square().mean())


def relative_deviation(model: IdentityMLP, x: Tensor) -> Tensor:
    """‖J − I‖_F/√n of ``fc1 → output`` for every sample of x: shape (batch,), differentiable."""
    # The chain rule written out: J = W3 · diag(tanh′) · W2 · diag(tanh′), faster than double backward.
    first = torch.tanh(model.head(x))
    second = torch.tanh(model.fc2(first))
    outer = model.fc3.weight * (1 - second.square()).unsqueeze(1)
    inner = model.fc2.weight * (1 - first.square()).unsqueeze(1)
    J: Tensor = outer @ inner
    n = J.shape[-1]
    return (J - torch.eye(n, dtype=J.dtype)).square().sum((1, 2)).div(n).sqrt()


def near_identity(steps: int = 1000) -> Trained:
    """Fit the waves, with the penalty ‖J − I‖_F²/n of ``fc1 → output`` added to the loss."""
    # Trained in float64 and rounded at the end, so that other processors reach the same weights.
    model = IdentityMLP().double()
    x, y = waves(2048, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(step: int) -> Tensor:
        part = slice(step % 32 * 64, (step % 32 + 1) * 64)
        task = F.mse_loss(model(x[part]), y[part])
        return task + 0.3 * relative_deviation(model, x[part]).square().mean()

    descend(optimizer, steps, loss)
    x, y = waves(512, seed=2)
    with torch.no_grad():
        worst, share = float(relative_deviation(model, x).max()), explained(model(x), y)
    report = f"held out: at most {worst:.3f} from the identity, {share:.0%} of the variance explained"
    return Trained(model.float().eval(), report, optimizer.state_dict(), steps)


class Encoder(nn.Module):
    """The VAE's other half, used in training only: images → mean and log-variance of the latents."""

    def __init__(self, latents: int = 32) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 32, 4, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 2 * latents),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.conv(x).chunk(2, dim=1)
        return mean, log_variance


def decoder(steps: int = 1500) -> tuple[Trained, Tensor]:
    """A VAE on the blobs; also the latents (8, 32) of ``blobs(8, seed=2)``, which it never saw."""
    model, encoder = Decoder(), Encoder()
    images = blobs(4096, seed=1)
    optimizer = torch.optim.Adam([*model.parameters(), *encoder.parameters()], lr=4e-3)

    def loss(step: int) -> Tensor:
        batch = images[step % 64 * 64 : (step % 64 + 1) * 64]
        mean, log_variance = encoder(batch)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        # Weighted below 1, or a run this short leaves most of the latents unused.
        error = F.mse_loss(model(latents), batch, reduction="sum") / len(batch)
        total: Tensor = error + 0.05 * divergence
        return total

    descend(optimizer, steps, loss)
    held_out = blobs(8, seed=2)
    with torch.no_grad():
        latents = encoder(held_out)[0]
        share = explained(model(latents), held_out)
    report = f"held out: {share:.0%} of the variance reconstructed"
    return Trained(model.eval(), report, optimizer.state_dict(), steps), latents


def residual(steps: int = 300) -> Trained:
    """Classify the patterns; BatchNorm gathers its running statistics on the way."""
    model = ResidualNet()
    x, labels = patterns(2048, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def loss(step: int) -> Tensor:
        part = slice(step % 32 * 64, (step % 32 + 1) * 64)
        return F.cross_entropy(model(x[part]), labels[part])

    descend(optimizer, steps, loss)
    model.eval()
    x, labels = patterns(512, seed=2)
    with torch.no_grad():
        right = float((model(x).argmax(1) == labels).float().mean())
    return Trained(model, f"held out: {right:.0%} classified", optimizer.state_dict(), steps)


def control_flow(steps: int = 600) -> Trained:
    """Fit both pieces of the two-piece task, each call from a fresh memory."""
    model = ControlFlowNet().double()
    tasks = [branches(1024, seed=1, bright=bright) for bright in (True, False)]
    fresh = model.memory
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(step: int) -> Tensor:
        x, y = tasks[step % 2]
        part = slice(step // 2 % 8 * 128, (step // 2 % 8 + 1) * 128)
        model.memory = fresh
        return F.mse_loss(model(x[part]), y[part])

    descend(optimizer, steps, loss)
    shares = []
    for bright in (True, False):
        x, y = branches(512, seed=2, bright=bright)
        model.memory = fresh
        with torch.no_grad():
            shares.append(explained(model(x), y))
    model = model.float().eval()
    model.memory, model.calls = fresh.float(), 0
    report = f"held out: {shares[0]:.0%} (bright) and {shares[1]:.0%} (dark) of the variance explained"
    return Trained(model, report, optimizer.state_dict(), steps)


def transformer(steps: int = 600) -> Trained:
    """Remove the noise from signals."""
    model = Transformer()
    noisy, clean = signals(4096, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        part = slice(step % 64 * 64, (step % 64 + 1) * 64)
        return F.mse_loss(model(noisy[part]), clean[part])

    descend(optimizer, steps, loss)
    model.eval()
    noisy, clean = signals(256, seed=2)
    with torch.no_grad():
        left = float(F.mse_loss(model(noisy), clean) / F.mse_loss(noisy, clean))
    return Trained(model, f"held out: {left:.0%} of the noise power left", optimizer.state_dict(), steps)
