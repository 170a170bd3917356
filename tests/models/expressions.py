"""One-line networks around what a dtype may come from: numbers, tensors without dimensions, sizes, items, factories.

Each is Python and TorchScript at once, in ``x``, a matrix of (2, 3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

EXPRESSIONS = """
torch.tensor(1.7).sqrt() * 0.3
torch.tensor(1.7, dtype=torch.float64) * x.sum()
x.sum() * 0.3
x.sum() + 2
x.sum() - 1.5
x.sum() / 3
1 - x.sum()
2 / x.sum()
x.sum() ** 0.5
2 ** x.sum()
torch.pow(2, x.sum())
x.sum() // 0.7
x.sum() % 0.7
x % 0.7
torch.div(x, 0.7, rounding_mode="trunc")
torch.where(x > 0, 0.5, x)
torch.where(x.sum() > 0, x.sum(), 0.5)
torch.where(x > 0, 1, 0)
torch.clamp(x.sum(), 0, 1)
torch.full([2], 3)
torch.full([2], 3.5)
torch.arange(4) * 0.5
torch.arange(0, 2, 0.5)
torch.linspace(0, 1, 3) * x
torch.tensor([1, 2]) * 0.5
torch.tensor(2) / 4
torch.tensor(7) // 2
torch.tensor(2) * x.sum()
torch.tensor(2.5, dtype=torch.float64) + x
x.sum() * torch.tensor(2.5, dtype=torch.float64)
x.sum() * torch.tensor(2, dtype=torch.int64)
torch.as_tensor(0.5) * x
torch.ones([], dtype=torch.float64) * x.sum()
x.new_full([2], 3)
x.new_full([2], 0.5) * 2
x / x.size(1)
x.sum() * (x.size(0) * 0.5)
x.size(0) / 2 + x.sum()
x.size(1) ** -0.5 * x.sum()
x.size(1) // 2 + x
x.sum().item() * x
float(x.sum()) * x
x.sum() > 0
(x > 0) * 0.5
(x > 0).sum() / 2
(x > 0).float().mean() * 2
x.long() ** 2.0
2 ** x.long().abs()
x.long().float() * 0.3
x.int() + x.long()
torch.mean(x.long(), dtype=torch.float64)
torch.softmax(x, 1, dtype=torch.float64)
torch.cumsum(x > 0, 1)
torch.cumsum(x.int(), 1)
torch.prod(x > 0)
torch.sqrt(x.long().abs())
torch.add(x.sum(), x.sum(), alpha=2)
torch.rsub(x.sum(), 1)
torch.addcmul(x, x, x, value=0.5)
torch.copysign(x.sum(), -1.0)
torch.xlogy(2, x.abs() + 1)
torch.float_power(x.sum().abs(), 0.5)
x.masked_fill(x > 0, torch.tensor(2.0))
torch.cat([x, torch.tensor(0.5).expand(2, 1)], 1)
torch.cat([x, torch.ones([2, 1], dtype=torch.float64)], 1)
torch.stack([x.sum(), x.mean() * 0.3])
torch.complex(x.float(), x.float()).sum() * 0.5
x.sum() * 1j
torch.tensor(1j) * x
torch.view_as_real(torch.fft.fft(x.float())).sum() * 2
torch.nn.functional.one_hot((x > 0).long(), 3) * 0.5
x.norm(2, 1, keepdim=True) * 0.5
torch.rsqrt(x.square().mean() + 1e-6)
x.half().sum() * 0.3
x.half().sum() + x.sum()
x.mean().sqrt().abs() * 0.3 + 0.1
torch.exp(torch.arange(0, 4, 2) * (-9.2 / 4))
10000 ** (torch.arange(0, 4, 2) / 4)
torch.scalar_tensor(0.5, dtype=torch.float64) * x.sum()
x.clone().mul_(0.3)
x.sum().clone().mul_(0.3)
x.clone().pow_(2)
x.clone().div_(3)
x[0, 0] + x[1, 1] * 2
torch.tensor(x.size(0) / 3) * x.sum()
torch.maximum(x.sum(), torch.tensor(0.5, dtype=torch.float64))
torch.where(x.sum() > 0, x.sum(), torch.tensor(0.5, dtype=torch.float64))
"""
NUMBERS = """
math.sqrt(x.size(1)) * x
math.floor(x.size(1) / 2) + x
math.pow(2, 3) * x
max(x.size(0), 2.5) * x.sum()
round(x.size(1) / 2) * x
x.size(0) ** -1 * x.sum()
-x.size(1) // 2 * x.sum()
-x.size(1) % 2 * x.sum()
-7.5 // 2 * x.sum()
int(x.size(0) / 3.0) * x
x.sum() * complex(1, 2)
abs(complex(3, 4)) * x.sum()
sum([0.5, 1.5]) * x.sum()
torch.tensor(math.sqrt(2.0)) * x.sum()
torch.tensor(x.sum().item()) * 2
math.fmod(-7, 3) * x
(True + 2) * x.sum()
(3 & 5 | 8) * x
(1 << 4) * x
(x.size(0) + 9223372036854775806) * x.sum()
(x.size(0) * -4611686018427387904 - 2) * x.sum()
float("nan") * x
math.sqrt(-x.size(0)) * x
torch.full([2], True)
"""


def lines(table: str) -> list[str]:
    return table.strip().splitlines()


class Evaluated(nn.Module):
    """The tensors that some expressions give."""

    def __init__(self, expressions: list[str]) -> None:
        super().__init__()
        self._code = [compile(text, "<expression>", "eval") for text in expressions]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [eval(code, {"torch": torch, "math": math, "x": x}) for code in self._code]


def scripted(expressions: list[str]) -> Any:
    """The same as one TorchScript module."""

    class Scripted(torch.jit.ScriptModule):
        pass

    module = Scripted()
    body = "".join(f"    y{i} = {text}\n" for i, text in enumerate(expressions))
    source = f"def forward(self, x):\n{body}    return ({''.join(f'y{i}, ' for i in range(len(expressions)))})\n"
    module._c._define(module._concrete_type, source, {"math": math, "torch": torch}.get)
    return module.eval()


def runs(expression: str, x: Tensor) -> bool:
    """Whether PyTorch itself takes this dtype there."""
    try:
        return isinstance(Evaluated([expression])(x)[0], Tensor)
    except (RuntimeError, TypeError):
        return False
