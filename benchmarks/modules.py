"""The networks of the benchmark, as anybody would write them: convolutions and images."""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """24 → 3×48×48 by transposed convolutions."""

    def __init__(self, latent: int = 24, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.expand = nn.Linear(latent, width * 6 * 6)
        self.up1 = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(width // 2, width // 4, 4, stride=2, padding=1)
        self.up3 = nn.ConvTranspose2d(width // 4, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.expand(z)).view(-1, self.width, 6, 6)
        h = F.relu(self.up1(h))
        h = F.relu(self.up2(h))
        return torch.sigmoid(self.up3(h))


class UpsampleDecoder(nn.Module):
    """32 → 3×64×64 by upsampling and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(32, 32 * 8 * 8)
        self.convs = nn.ModuleList([nn.Conv2d(32, 24, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1)])
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.expand(z)).view(-1, 32, 8, 8)
        for conv in self.convs:
            h = F.silu(conv(F.interpolate(h, scale_factor=2.0, mode="nearest")))
        return torch.tanh(self.last(F.interpolate(h, scale_factor=2.0, mode="nearest")))


class VaeDecoder(nn.Module):
    """16 → 1×28×28, with BatchNorm between transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 32 * 7 * 7), nn.ReLU())
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.1),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.deconv(self.fc(z).view(-1, 32, 7, 7)))


class ConvAutoencoder(nn.Module):
    """1×28×28 → 16 → 1×28×28."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 16),
        )
        self.expand = nn.Linear(16, 32 * 7 * 7)
        self.decoder = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.expand(self.encoder(x)).view(-1, 32, 7, 7))


class ResidualBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride=stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """3×32×32 → 10 classes: stem and three stages of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Classifier(nn.Module):
    """3×32×32 → 10 with max-pooling and dropout, as in a first tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class UNet(nn.Module):
    """1×32×32 → 1×32×32 with two levels and concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.merge2 = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU())
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge1 = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], dim=1))
        a = self.merge1(torch.cat([self.up1(b), a], dim=1))
        return self.last(a)


def conv_local() -> nn.Module:
    """1×32×32 → 1×32×32 with a receptive field of 7×7."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )


class WaveNet(nn.Module):
    """1×128 → 1×128: dilated causal convolutions, gated, with residual and skip connections."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.dilations = (1, 2, 4, 8)
        self.start = nn.Conv1d(1, channels, 1)
        self.filters = nn.ModuleList([nn.Conv1d(channels, channels, 2, dilation=d) for d in self.dilations])
        self.gates = nn.ModuleList([nn.Conv1d(channels, channels, 2, dilation=d) for d in self.dilations])
        self.mixes = nn.ModuleList([nn.Conv1d(channels, channels, 1) for _ in self.dilations])
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        total = torch.zeros_like(h)
        for dilation, filt, gate, mix in zip(self.dilations, self.filters, self.gates, self.mixes, strict=True):
            padded = F.pad(h, (dilation, 0))
            out = mix(torch.tanh(filt(padded)) * torch.sigmoid(gate(padded)))
            total = total + out
            h = h + out
        return self.end(total)
