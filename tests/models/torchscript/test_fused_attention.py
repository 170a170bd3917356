"""Attention that a trace without gradients recorded as one fused operator: the same values, with derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jaccli.models.torchscript.network import ScriptNetwork


def traced(module: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.trace(module.eval(), inputs)


def kinds(model: torch.jit.ScriptModule) -> str:
    return str(model.inlined_graph)


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layers(options: dict[str, object], padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)  # type: ignore[arg-type]
    x = torch.randn(3, 5, 8)
    mask = torch.arange(5) >= torch.tensor([5, 4, 2])[:, None]

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, src_key_padding_mask=mask) if padded else self.layer(x)

    model = traced(Masked(), x)
    assert "_transformer_encoder_layer_fwd" in kinds(model)
    x.requires_grad_()
    result = ScriptNetwork(model).run((x,), {})
    expected = layer(x, src_key_padding_mask=mask) if padded else layer(x)
    assert torch.allclose(result, expected, atol=1e-5)
    (slope,) = torch.autograd.grad(result.square().sum(), x)
    (expected_slope,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(slope, expected_slope, atol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_attention(need_weights: bool, average: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            out, weights = self.attention(x, x, x, need_weights=need_weights, average_attn_weights=average)
            return (out, weights) if need_weights else (out,)

    x = torch.randn(3, 5, 8)
    model = traced(Attends(), x)
    assert "_native_multi_head_attention" in kinds(model)
    x.requires_grad_()
    results = ScriptNetwork(model).run((x,), {})
    expected = Attends()(x)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.allclose(result, wanted, atol=1e-5)
    assert torch.autograd.grad(results[0].sum(), x)[0].shape == x.shape
