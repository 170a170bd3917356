"""One small network for every kind of segment that the structured engine knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import nets


@dataclass(frozen=True)
class Segment:
    """A network, the shape of one sample, and the pair; ``args`` makes further arguments."""

    name: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    source: str = "input"
    target: str = "output"
    args: Callable[[], tuple[Any, ...]] = tuple

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = self.build().to(dtype).eval()
            for module in model.modules():
                _unsettled(module)
            return model

    def x(self, seed: int, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
        return normal((batch, *self.sample), seed).to(dtype)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unsettled(module: nn.Module) -> None:
    """A fresh norm layer is the identity up to a scale."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d) and module.weight is not None:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias)
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        assert module.running_var is not None
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 1.5)


class Of(nn.Module):
    """A function, and modules that it uses."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.function(self, x, *args)


def of(function: Callable[..., Tensor], **modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Of(function, **{name: build() for name, build in modules.items()})


def chain(*modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(build() for build in modules))


def linear(n_in: int, n_out: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(n_in, n_out)


def conv(n_in: int, n_out: int, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(n_in, n_out, *args, **kwargs)


def conv1(n_in: int, n_out: int, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv1d(n_in, n_out, *args, **kwargs)


def _coupling(self: Any, x: Tensor) -> Tensor:
    for net, first in ((self.one, True), (self.two, False)):
        a, b = x.chunk(2, -1)
        a, b = (a, b) if first else (b, a)
        scale, shift = net(a).chunk(2, -1)
        b = b * scale.tanh().exp() + shift
        x = torch.cat([a, b] if first else [b, a], -1)
    return x


def _windows(self: Any, x: Tensor) -> Tensor:
    return torch.stack([x[:, ::2].cumsum(1), x.flip(1)[:, ::2]], 2).flatten(1).roll(1, 1)


def _reductions(self: Any, x: Tensor) -> Tensor:
    parts = [x.sum(1), x.mean((1, 2)).unsqueeze(1), x.amax(2), x.var(1), x.norm(dim=2), x.logsumexp(1), x.prod(2)]
    return torch.cat(parts, 1)


def _gathered(self: Any, x: Tensor) -> Tensor:
    order = x.argsort(1)
    return torch.cat([x.gather(1, order), x[:, [2, 0, 0]] ** 2, x.index_select(1, torch.tensor([1, 3]))], 1)


def _two_levels(self: Any, x: Tensor) -> Tensor:
    """A U-net in one dimension, its skips concatenated and added."""
    a = self.down(x).tanh()
    b = self.middle(F.max_pool1d(a, 2)).relu()
    c = self.bottom(F.avg_pool1d(b, 2)).tanh()
    b = self.merge(torch.cat([self.up(c), b], 1)).tanh()
    return self.last(a + F.interpolate(b, scale_factor=2.0)) + x


def _side(self: Any, x: Tensor) -> Tensor:
    """The input goes around the hidden layer ``fc``."""
    return torch.tanh(self.head(torch.tanh(self.fc(x)))) * torch.sigmoid(self.gate(x)) + x.sum(1, keepdim=True)


_TOKENS = chain(linear(4, 9), nn.GELU, linear(9, 4))
_MLP = chain(linear(3, 8), nn.Tanh, linear(8, 6))

SEGMENTS = [
    Segment("matrix", linear(6, 4), (6,)),
    Segment("matrix, then diagonal", chain(linear(6, 4), nn.Tanh, linear(4, 5)), (6,)),
    Segment("diagonal", of(lambda self, x: x.sin() * x.exp() + F.softplus(x) / (1 + x**2)), (5,)),
    Segment("diagonal with kinks", chain(linear(6, 8), nn.ReLU, linear(8, 4), nn.Hardtanh), (6,)),
    Segment("view", of(lambda self, x: self.fc(x.transpose(1, 2).reshape(-1, 12)).sin().view(-1, 2, 3),
                       fc=linear(12, 6)), (3, 4)),
    Segment("slice and cat", of(lambda self, x: self.fc(torch.cat([x[:, 3:].sin(), x[:, :2] ** 2, x[:, ::3]], 1)),
                                fc=linear(7, 4)), (6,)),
    Segment("shifted, stacked, summed up", of(_windows), (6,)),
    Segment("blocks over tokens", _TOKENS, (5, 4)),
    Segment("mixing tokens", of(lambda self, x: x + self.mlp(x.mT).tanh().mT, mlp=linear(5, 5)), (5, 4)),
    Segment("convolution windows", chain(conv(1, 3, 3, padding=1), nn.SiLU, conv(3, 1, 3, padding=1)), (1, 9, 9)),
    Segment("strided and dilated", chain(conv(2, 4, 3, stride=2), nn.ReLU, conv(4, 2, 2, dilation=2)), (2, 9, 9)),
    Segment("windows that stride",
            chain(conv(1, 3, 3, stride=2, padding=1), nn.Tanh, lambda: nn.ConvTranspose2d(3, 1, 2, 2)), (1, 12, 12)),
    Segment("windows that stride by three",
            chain(conv1(2, 3, 3, stride=3), nn.Tanh, lambda: nn.ConvTranspose1d(3, 2, 3, 3), nn.Tanh,
                  lambda: nn.ConvTranspose1d(2, 1, 5, 3, 1)), (2, 30)),
    Segment("two levels", of(_two_levels, down=conv1(1, 2, 3, padding=1), middle=conv1(2, 4, 3, padding=1),
            bottom=conv1(4, 4, 1), up=lambda: nn.ConvTranspose1d(4, 4, 2, 2), merge=conv1(8, 2, 3, padding=1),
            last=conv1(2, 1, 1)), (1, 32)),
    Segment("dense convolution", chain(conv(2, 6, 4), nn.Tanh, nn.Flatten, linear(6, 3)), (2, 4, 4)),
    Segment("grouped convolution", chain(conv(4, 8, 3, groups=4), nn.Tanh, conv(8, 2, 1)), (4, 5, 5)),
    Segment("transposed convolution", chain(lambda: nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.Tanh), (2, 3, 3)),
    Segment("strides over single pixels",
            chain(nn.Tanh, conv(2, 3, 1, stride=2), nn.Tanh, lambda: nn.ConvTranspose2d(3, 2, 1, 3), nn.SiLU,
                  conv(2, 2, 3)), (2, 5, 6)),
    Segment("output padding beyond single pixels",
            chain(nn.Tanh, lambda: nn.ConvTranspose1d(2, 3, 1, 2, dilation=4, output_padding=3), nn.SiLU,
                  conv1(3, 2, 2)), (2, 3)),
    Segment("dilated in one direction",
            chain(conv1(1, 3, 2, dilation=4), nn.Tanh, conv1(3, 4, 2, dilation=8, padding=8), nn.Tanh, conv1(4, 2, 2)),
            (1, 40)),
    Segment("pooling", chain(conv(1, 4, 3), lambda: nn.MaxPool2d(2), nn.Tanh, lambda: nn.AvgPool2d(2)), (1, 10, 10)),
    Segment("pooling of one pixel", chain(conv(2, 2, 2), nn.Tanh, lambda: nn.MaxPool2d(2, 1, 1)), (2, 2, 2)),
    Segment("adaptive pooling", chain(conv(1, 4, 3), nn.GELU, lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten), (1, 7, 7)),
    Segment("layer norm", chain(linear(6, 5), lambda: nn.LayerNorm(5), nn.GELU, linear(5, 4)), (6,)),
    Segment("group norm", chain(conv(2, 4, 3, padding=1), lambda: nn.GroupNorm(2, 4), nn.Tanh), (2, 4, 4)),
    Segment("instance norm", chain(conv(2, 3, 1), lambda: nn.InstanceNorm2d(3), nn.Tanh), (2, 4, 4)),
    Segment("batch norm", chain(conv(2, 3, 3), lambda: nn.BatchNorm2d(3), nn.ReLU), (2, 5, 5)),
    Segment("root mean square norm", chain(linear(6, 5), lambda: nn.RMSNorm(5), nn.Tanh), (6,)),
    Segment("normalised", of(lambda self, x: F.normalize(self.fc(x), dim=1), fc=linear(6, 4)), (6,)),
    Segment("attention", nets.Attention, (5, 4)),
    Segment("attention heads", nets.MultiHead, (5, 4)),
    Segment("LSTM", nets.Recurrent, (5, 3)),
    Segment("GRU", lambda: nets.Recurrent("GRU"), (5, 3)),
    Segment("residual", chain(nets.Residual, nets.Residual), (5,)),
    Segment("coupling", of(_coupling, one=_MLP, two=_MLP), (6,)),
    Segment("index", of(_gathered), (5,)),
    Segment("softmax", chain(linear(6, 5), lambda: nn.Softmax(1), linear(5, 4), lambda: nn.LogSoftmax(1)), (6,)),
    Segment("reductions", of(_reductions), (4, 3)),
    Segment("upsampling", chain(lambda: nn.Upsample(scale_factor=2), conv(2, 1, 3, padding=1), nn.Tanh), (2, 3, 3)),
    Segment(
        "few channels of what is repeated",
        chain(linear(4, 32), lambda: nn.Unflatten(1, (2, 4, 4)), lambda: nn.Upsample(scale_factor=3),
              conv(2, 2, 5, padding=2), nn.Tanh, lambda: nn.Upsample(scale_factor=(2, 1)), conv(2, 1, 3, padding=1)),
        (4,),
    ),
    Segment(
        "few channels in blocks",
        chain(conv(1, 5, 3, padding=1), nn.Tanh, conv(5, 3, (3, 5), padding=(0, 1)), nn.Sigmoid, nn.Flatten,
              linear(180, 3)),
        (1, 8, 12),
    ),
    Segment(
        "few channels by strides",
        chain(linear(4, 24), lambda: nn.Unflatten(1, (2, 3, 4)),
              lambda: nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), nn.Tanh,
              lambda: nn.ConvTranspose2d(3, 1, 3, stride=(1, 2), padding=1, output_padding=(0, 1))),
        (4,),
    ),
    Segment("bilinear upsampling", chain(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), nn.Tanh), (2, 3, 3)),
    Segment("shared module", nets.Shared, (4,)),
    Segment("product of branches", nets.Branches, (4,)),
    Segment("in place", nets.InPlace, (4,)),
    Segment("extra argument", nets.Arguments, (4,), args=lambda: (normal((3, 3), 7), 2)),
    Segment("input around a hidden source",
            of(_side, fc=linear(5, 6), head=linear(6, 3), gate=linear(5, 3)), (5,), "fc"),
    Segment("hidden pair", chain(linear(6, 5), nn.Tanh, linear(5, 5), nn.GELU, linear(5, 4)), (6,), "0", "3"),
    Segment("branch by a value", nets.Choosing, (4,)),
]  # fmt: skip
BY_NAME = {segment.name: segment for segment in SEGMENTS}
