"""The table of networks: what is differentiated, at how many samples, and the fewest operations known.

Every network is a plain ``nn.Module`` in float32 and eval mode with seeded weights; ``source`` and
``target`` are the names that jaccli is given. ``head`` (input → source activation) and ``tail`` (source
activation → target) are the same computation as plain functions, which is what the peers differentiate.
"""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from modules import (
    Classifier,
    ConvAutoencoder,
    Decoder,
    ResNet,
    UNet,
    UpsampleDecoder,
    VaeDecoder,
    WaveNet,
    conv_local,
)
from sequences import Flow, GruNet, LstmNet, Mixer, RecurrentNet, ResidualMlp, SinusoidNet, Transformer, mlp
from torch import Tensor, nn


def _same(_model: Any, x: Tensor) -> Tensor:
    return x


def _whole(model: Any, x: Tensor) -> Tensor:
    return model(x)


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    Args:
        name: of the network, and of its twin in ``jax_networks``.
        build: makes the module; called with the seed set.
        sample: shape of one sample of the input.
        batch: samples.
        operations: floating-point operations of one sample's J after the forward pass, in the cheapest
            order known by hand for the network's own operators; a multiply and an add are two.
        goal: the issue's target for planned call ÷ best peer of all.
        source: layer name.
        target: layer name.
        head: input → activation of source.
        tail: activation of source → activation of target.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    batch: int
    operations: int
    goal: float = 1.0
    source: str = "input"
    target: str = "output"
    head: Callable[[Any, Tensor], Tensor] = _same
    tail: Callable[[Any, Tensor], Tensor] = _whole

    def model(self) -> nn.Module:
        """The module with its seeded weights; no parameter asks for gradients, which spares every peer work."""
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for module in model.modules():
                _settle_norm(module)
        return model.eval().requires_grad_(False)

    def samples(self, seed: int) -> Tensor:
        """``(batch, *sample)`` of normal numbers."""
        return torch.randn(self.batch, *self.sample, generator=torch.Generator().manual_seed(1000 + seed))


def _settle_norm(module: nn.Module) -> None:
    """Fresh norm layers are the identity up to a scale; a trained network's are not."""
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.1)
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.5, 1.5)


def _mm(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def _conv(inner: int, outer: int, taps: int, positions: int) -> int:
    return 2 * inner * outer * taps * positions


# One attention block of 12 tokens × 48 with 4 heads of 12: the MLP as one 48×48 block a token; that block
# times the output projection of each head; the value path, one 48×48 matrix a head and token; then for
# every pair of tokens and head a scaled copy (values) and a rank-one update (keys); queries on the diagonal.
_MLP_48 = 12 * _mm(48, 192, 48)
_ATTENTION_48 = 12 * 4 * (2 * _mm(48, 48, 12) // 2 + 2 * _mm(48, 12, 48)) + 12 * 12 * 4 * 2 * 2 * 48 * 48
_BLOCK_48 = _MLP_48 + _ATTENTION_48

_RESNET_CONVS = (
    _conv(3, 16, 9, 1024)
    + 2 * _conv(16, 16, 9, 1024)
    + (_conv(16, 32, 9, 256) + _conv(32, 32, 9, 256) + _conv(16, 32, 1, 256))
    + (_conv(32, 64, 9, 64) + _conv(64, 64, 9, 64) + _conv(32, 64, 1, 64))
)

# One output pixel of the U-net pulled back in windows: 1 → 3×3 at full size, 2×2 → 4×4 at half, 3×3 → 5×5
# at a quarter, and the max-pools pick one position of each cell.
_UNET_ROW = (
    _conv(8, 16, 9, 1)
    + _conv(1, 8, 9, 9 + 36 + 49)
    + _conv(16, 8, 1, 9)
    + _conv(16, 32, 9, 4)
    + _conv(8, 16, 9, 16 + 25)
    + _conv(16, 32, 1, 16)
    + _conv(16, 32, 9, 9)
)

CASES = {
    case.name: case
    for case in (
        # Two Jacobians of the 32-wide bottleneck, then their product.
        Case(
            "bottleneck",
            lambda: mlp((784, 256, 32, 256, 784), nn.Tanh),
            (784,),
            16,
            _mm(32, 256, 784) + _mm(784, 256, 32) + _mm(784, 32, 784),
            goal=0.25,
        ),
        # The same with convolutions: 16 rows back through the encoder, 16 columns through the decoder.
        Case(
            "conv_autoencoder",
            ConvAutoencoder,
            (1, 28, 28),
            8,
            16 * (_conv(16, 32, 9, 49) + _conv(1, 16, 9, 196) + _conv(32, 16, 16, 49) + _conv(16, 1, 16, 196))
            + _mm(784, 16, 784),
            goal=0.25,
        ),
        # Rows back from the last weight.
        Case("mlp_classifier", lambda: mlp((784, 512, 512, 10)), (784,), 64, _mm(10, 512, 512) + _mm(10, 512, 784)),
        Case("mlp_tiny", lambda: mlp((2, 64, 64, 2), nn.Tanh), (2,), 4096, _mm(2, 64, 64) + _mm(2, 64, 2)),
        # Columns forward from the first weight.
        Case("mlp_tall", lambda: mlp((8, 256, 256, 2048)), (8,), 16, _mm(256, 256, 8) + _mm(2048, 256, 8)),
        Case("mlp_square", lambda: mlp((512,) * 6, nn.Tanh), (512,), 1, 4 * _mm(512, 512, 512)),
        Case("sinusoid", SinusoidNet, (2,), 1024, 2 * _mm(128, 128, 2) + _mm(3, 128, 2)),
        # Block Jacobians I + W₂ D W₁ and six products; LayerNorm folds into weights and a rank-one term.
        Case("residual_mlp", ResidualMlp, (192,), 16, 7 * _mm(192, 384, 192) + 6 * _mm(192, 192, 192), goal=0.8),
        # Each output pixel pulled back through its 3×3 and 5×5 windows.
        Case("conv_local", conv_local, (1, 32, 32), 4, 1024 * (_conv(16, 16, 9, 9) + _conv(1, 16, 9, 25)), goal=0.1),
        Case("unet", UNet, (1, 32, 32), 2, 1024 * _UNET_ROW),
        # Windows again: 1, 2, 4 and 8 positions of the four layers, two taps of filter and of gate.
        Case("wavenet", WaveNet, (1, 128), 8, 128 * (15 * (_mm(16, 16, 1) + 4 * _mm(16, 16, 1)) + 2 * _mm(16, 16, 1))),
        # Columns forward through the convolutions; the first linear layer is known.
        Case(
            "decoder_48",
            Decoder,
            (24,),
            8,
            24 * (_conv(64, 32, 16, 36) + _conv(32, 16, 16, 144) + _conv(16, 3, 16, 576)),
            goal=0.8,
        ),
        Case(
            "decoder_64",
            UpsampleDecoder,
            (32,),
            2,
            32 * (_conv(32, 24, 9, 256) + _conv(24, 12, 9, 1024) + _conv(12, 3, 9, 4096)),
            goal=0.8,
        ),
        Case(
            "vae_decoder",
            VaeDecoder,
            (16,),
            16,
            16 * (_mm(1, 256, 1568) + _conv(32, 32, 9, 49) + _conv(32, 16, 9, 196) + _conv(16, 1, 9, 784)),
            goal=0.8,
        ),
        # Ten rows back.
        Case("resnet", ResNet, (3, 32, 32), 4, 10 * _RESNET_CONVS, goal=0.6),
        Case(
            "classifier",
            Classifier,
            (3, 32, 32),
            1,
            10 * (_mm(1, 128, 4096) + _conv(32, 64, 9, 256) + _conv(3, 32, 9, 1024)),
        ),
        Case(
            "transformer_block",
            Transformer,
            (12, 48),
            4,
            _BLOCK_48,
            goal=0.4,
            source="blocks.0",
            target="blocks.1",
            head=lambda model, x: model.blocks[0](x),
            tail=lambda model, h: model.blocks[1](h),
        ),
        Case(
            "transformer",
            Transformer,
            (12, 48),
            4,
            2 * _BLOCK_48 + _mm(576, 576, 576),
            goal=0.4,
            target="blocks.1",
            tail=lambda model, x: model.blocks[1](model.blocks[0](x)),
        ),
        # A 16×16 block a channel, a 32×32 block a token, and for each pair of tokens a scaled copy and a
        # rank-one term (LayerNorm).
        Case(
            "mixer",
            Mixer,
            (3, 16, 16),
            8,
            32 * _mm(16, 32, 16) + 16 * _mm(32, 128, 32) + 6 * 32 * 32 * 16 * 16,
            source="blocks.0",
            target="blocks.1",
            head=lambda model, x: model.blocks[0](model.embed(x).flatten(2).transpose(1, 2)),
            tail=lambda model, h: model.blocks[1](h),
        ),
        # One sweep of the rows back through time.
        Case("recurrent", RecurrentNet, (20, 8), 16, 20 * (_mm(10, 64, 64) + _mm(10, 64, 8))),
        # The rows of step t go back over t steps: 136 pairs of steps.
        Case("gru", GruNet, (16, 8), 16, 136 * (_mm(4, 96, 32) + _mm(4, 96, 8))),
        Case("lstm", LstmNet, (12, 16), 16, 12 * _mm(48, 192, 64)),
        # Each coupling net from its 16 inputs, then a 16×16 block times the running J.
        Case("flow", Flow, (32,), 64, 8 * (_mm(128, 128, 16) + _mm(32, 128, 16) + _mm(16, 16, 32))),
    )
}
