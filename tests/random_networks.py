"""Networks drawn at random: ``random_network(seed)`` gives a model, samples and a layer pair.

An entry of the tables is a kind of block: a module (``nn.…``), or the code of a ``forward``; ``when`` says
what its shape of sample must fulfil. The parts that the code names (``self.fc``, ``self.f``) are drawn too,
``f`` and ``g`` from the same tables, so that a few lines make very different graphs.
``python tests/random_networks.py SEED`` prints one, ``SEEDh`` one of hard rules.
"""

from __future__ import annotations

import itertools
import linecache
import math
import random
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import hard_rules
from tests.oracle import At

Shape = tuple[int, ...]
NUMBERS = itertools.count()

# One entry a line, or several with " | " between. C is the first size of a sample, n the last, N the number of
# its elements; T, D are the sizes of tokens, H, W of images; k and r(a, b) are drawn.
ELEMENTWISE = r"""
nn.ReLU() | nn.LeakyReLU(0.2) | nn.ELU() | nn.SELU() | nn.CELU(0.7) | nn.GELU() | nn.GELU("tanh") | nn.SiLU()
nn.Mish() | nn.Softplus() | nn.Softsign() | nn.Tanh() | nn.Sigmoid() | nn.LogSigmoid() | nn.Hardtanh() | nn.Hardswish()
nn.Hardsigmoid() | nn.ReLU6() | nn.Tanhshrink() | nn.Softshrink(0.3) | nn.Hardshrink(0.3) | nn.Threshold(0.1, -0.2)
nn.PReLU() | nn.PReLU(C) | nn.RReLU() | nn.Identity() | nn.Dropout() | nn.Softmax(-1) when n > 1
nn.Softmin(1) when C > 1 | nn.LogSoftmax(-1) when n > 1 | nn.GLU(-1) when n % 2 == 0
x.sin() | x.cos() + x | 1 - x | -x | 2 / (x**2 + 1) | x.pow(3) * 0.3 | x.square() | x.abs() | torch.exp(-(x**2))
torch.exp(x.clamp(max=1.0)) | torch.sqrt(F.softplus(x) + 0.1) | torch.rsqrt(x**2 + 0.5) | x.clamp(-1.0, 0.8)
torch.log1p(x**2) | torch.log(x.sigmoid() + 0.01) | torch.atan2(x, x.cos() + 2) | torch.erf(x) | x.asinh().sinh()
x * torch.sigmoid(1.7 * x) | torch.where(x > 0, x, 0.2 * x.expm1()) | x.masked_fill(x < -0.5, 0.0) | F.relu(x) ** 2
x / (1 + x.abs()) | x * self.gain + self.shift | self.shift - x | self.shift / (1.5 + x.tanh()) | x * self.mask
torch.where(self.mask, x, -0.5 * x) | x * x.detach().sigmoid() | h = x * 1.0; h.mul_(2).add_(1); return h.tanh_()
h = x + 0.0; h[:, 0] = x[:, -1].sin(); return h | h = x * 0.7; h[:, ::2] += x[:, ::2].sin(); return h
"""
IN_PLACE = r"""
nn.ReLU(True) | nn.ELU(inplace=True) | nn.SiLU(True) | nn.LeakyReLU(0.1, True) | nn.Hardtanh(inplace=True)
nn.Dropout(0.2, True)
"""
ANY = r"""
nn.Flatten() | x.flip(-1) | x.roll(1, -1) | x.cumsum(-1) | (0.5 + x.sigmoid()).cumprod(1) | torch.logcumsumexp(x, 1)
x.logsumexp(-1, keepdim=True) - x when n > 1 | x - x.mean(1, keepdim=True) when C > 1
F.normalize(x + self.ramp, dim=1) when C > 1 | x / ((x + self.ramp).norm(dim=-1, keepdim=True) + 1)
x / ((x + self.ramp).std(1, keepdim=True) + 0.1) when C > 1 | x * x.var(-1, unbiased=False, keepdim=True) when n > 1
torch.cat([x, x.amax(1, keepdim=True)], 1) | x.movedim(1, -1)
torch.cat([x.mean(-1, keepdim=True), x], -1) | x[..., ::2] | x[..., [0, -1]] | x[..., self.order] | F.pad(x, (1, 2))
x[:, 1:] + x[:, :-1] when C > 1 | x.diff(dim=-1) when n > 1 | x.narrow(-1, 1, n - 1) when n > 1
x.index_select(-1, self.order) | x.select(1, -1).unsqueeze(1) | x.unfold(-1, 2, 1).prod(-1) when n > 1
x.repeat_interleave(2, -1) | x.unsqueeze(1).expand(-1, 2, *x.shape[1:]).flatten(1, 2)
torch.stack(x.unbind(1)[::-1], 1) | torch.stack([x, x.sin()], -1).flatten(-2)
a, b = x.split([1, n - 1], -1); return torch.cat([b, a * 2], -1) when n > 1
a, b = x.chunk(2, 1); return torch.cat([a, b * torch.exp(a.tanh()) + a], 1) when C % 2 == 0
a, b = x.tensor_split(2, -1); return a.sum(-1, keepdim=True) * b when n > 1
x.contiguous().view(x.shape[0], -1, 2).transpose(1, 2).reshape(x.shape) when N % 2 == 0
torch.sort(x, -1).values | x.topk(min(2, n), -1).values | x.new_zeros(x.shape).index_add(-1, self.order, x)
torch.zeros_like(x).scatter(-1, self.order.expand(x.shape), x) | x.gather(-1, self.order.expand(x.shape))
torch.cat([x, self.shift.expand(x.shape)], 1) | torch.fft.rfft(x).abs()
torch.view_as_real(torch.fft.rfft(x)).flatten(-2) | x.matmul(self.weight) | nn.Linear(n, k)
nn.Linear(n, k, bias=False) | nn.Sequential(nn.Linear(n, k), activation()) | nn.Sequential(nn.Linear(n, k), in_place())
nn.Sequential(nn.Linear(n, 2), activation(), nn.Linear(2, n))
nn.Sequential(nn.Linear(n, k), activation(), nn.Linear(k, k), in_place(), nn.Linear(k, n))
F.linear(torch.tanh(self.fc(x)), self.fc.weight.t()) | self.square(torch.tanh(self.square(x)))
nn.RMSNorm(n) when n > 1 | nn.LayerNorm(n) when n > 2 | nn.LayerNorm(shape) when N > 2 | nn.GroupNorm(1, C) when N > 2
nn.GroupNorm(C // 2, C) when C % 2 == 0 and N > C
x + self.table(self.ids) | x * self.square(self.ramp).sigmoid()
"""
VECTOR = r"""
nn.BatchNorm1d(n) | nn.Unflatten(1, (2, -1)) when n % 2 == 0 | nn.Unflatten(1, (-1, 2, 2)) when n % 4 == 0
nn.Unflatten(1, (1, 2, -1)) when n % 2 == 0 | self.bilinear(x, x.roll(1, 1)) | x.unsqueeze(2).repeat(1, 1, 3)
x.unsqueeze(-1) * self.ramp | torch.addmm(self.ramp, x, self.weight) | torch.einsum("bi,bj->bij", x, x) when n < 7
torch.outer(self.ramp, self.ramp).matmul(x.unsqueeze(-1)).squeeze(-1) | x[:, self.mask] | self.wing(x[:, n // 2 :])
h = torch.zeros_like(x); h[:, self.order] = x * 2; return h
a, b = x[:, ::2], x[:, 1::2]; return torch.cat([a, b * torch.exp(self.wing(a).tanh()) + a], 1) when n % 2 == 0
a = x * self.keep; return a + (1 - self.keep) * (x * torch.exp(self.square(a).tanh()) + self.weight.mv(self.ramp))
"""
TOKENS = r"""
x[:, 0] | x[:, -1] | x.mean(1) | x.amax(1) | x.logsumexp(1) | x.transpose(1, 2) | x.unsqueeze(1) | x.tril()
x.tanh().softmax(1) | x.permute(0, 2, 1).reshape(x.shape[0], -1) | x.roll((1, 1), (1, 2)) | x.flip((-2, -1))
torch.bmm(x, x.transpose(1, 2)) | torch.cat([self.ramp[:1].expand(x.shape[0], -1, -1), x], 1)
torch.einsum("btd,bsd->bts", x, x.flip(1))
torch.baddbmm(self.ramp, x, self.weight.expand(x.shape[0], -1, -1)) | nn.BatchNorm1d(T)
nn.InstanceNorm1d(T, affine=True) when D > 2 | nn.Conv1d(T, k, r(1, 3), stride=r(1, 2), padding=2, dilation=r(1, 2))
nn.Conv1d(T, T, 3, padding=1, groups=T) | nn.ConvTranspose1d(T, k, 2, stride=r(1, 2)) | nn.AdaptiveAvgPool1d(2)
self.conv(x.transpose(1, 2)).transpose(1, 2) | nn.MaxPool1d(2, 1) when D > 1 | nn.AvgPool1d(2, padding=1) when D > 1
self.mha(x, x, x)[0] | self.mha(x, x, x, attn_mask=self.later, need_weights=False)[0]
h = x.transpose(0, 1); return self.first(h, h, h, need_weights=False)[0].transpose(0, 1)
nn.TransformerEncoderLayer(D, 2 - D % 2, 2 * D, batch_first=True, norm_first=r(0, 1) == 1, activation=F.gelu) when D > 2
self.decoder(x, x.flip(1), tgt_mask=self.later) when D > 2
F.scaled_dot_product_attention(self.fc(x), self.fc(x).sin(), x, is_causal=True)
F.scaled_dot_product_attention(x, self.square(x), x, attn_mask=self.later.logical_not())
F.scaled_dot_product_attention(x, self.square(x), self.fc(x), attn_mask=self.bias)
w = torch.einsum("btd,bsd->bts", self.fc(x), self.fc(x)).softmax(-1); return torch.einsum("bts,bsd->btd", w, x)
q, p, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0); \
return (q @ p.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
(self.square(x) @ x.transpose(1, 2)).masked_fill(self.later, float("-inf")).softmax(-1) @ x
self.rnn(x)[0] | self.lstm(x)[0] | self.lstm(x)[1][1][-1]
out, last = self.gru(x); return out[:, -1:] * last.transpose(0, 1).sum(1, keepdim=True)
self.early(x.transpose(0, 1))[0].transpose(0, 1) | self.inner(x.transpose(0, 1)).transpose(0, 1)
h = self.ramp[0].expand(x.shape[0], -1) \n for t in range(T): h = self.cell(x[:, t], h) \n return h
out, h = x.new_empty(x.shape), x[:, 0] \n for t in range(T): h = (self.square(h) + x[:, t]).tanh(); out[:, t] = h \
\n return out
h = x.new_zeros(x.shape[0], D); c = h; out = [] \n for t in range(T): h, c = self.lstm_cell(x[:, t], (h, c)); \
out.append(h) \n return torch.stack(out, 1)
"""
IMAGES = r"""
nn.Conv2d(C, k, 3, padding=1) | nn.Conv2d(C, k, (2, 3), stride=(2, 1)) when H > 1 and W > 2
nn.Conv2d(C, k, r(1, 3), stride=r(1, 2), padding=2, dilation=r(1, 2), bias=False)
nn.Conv2d(C, C * r(1, 2), 3, padding=1, groups=C) | nn.Conv2d(C, 4, 3, padding="same", groups=2) when C % 2 == 0
nn.Conv2d(C, k, 3, padding=1, padding_mode="circular") | nn.ConvTranspose2d(C, C, (1, 2), groups=C)
nn.Conv2d(C, k, 3, padding=1, padding_mode="reflect") when H > 1 and W > 1
nn.ConvTranspose2d(C, k, r(2, 3), stride=2, padding=1, output_padding=1)
nn.Sequential(nn.Conv2d(C, k, 3, padding=1), nn.BatchNorm2d(k), in_place())
nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv3d(1, 2, (C, 2, 1), padding=(0, 1, 0)), nn.Flatten(1, 2))
nn.MaxPool2d(2, 1) when H > 1 and W > 1 | nn.MaxPool2d(3, 2, padding=1) | nn.AvgPool2d(2, 1) when H > 1 and W > 1
nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False) | nn.AdaptiveAvgPool2d(r(1, 2))
nn.AdaptiveMaxPool2d((1, 2)) when W > 1 | nn.Upsample(scale_factor=2) | F.interpolate(x, (H + 2, W + 1), mode="bicubic")
nn.Upsample((H + 1, W + 2), mode="bilinear", align_corners=r(0, 1) == 1) | nn.BatchNorm2d(C)
F.interpolate(x, scale_factor=1.5, mode="bilinear") | nn.InstanceNorm2d(C, affine=True) when H * W > 2
nn.LocalResponseNorm(3) | nn.ChannelShuffle(2) when C % 2 == 0 | nn.PixelShuffle(2) when C % 4 == 0
nn.PixelUnshuffle(2) when H % 2 == 0 and W % 2 == 0 | x.flatten(2).transpose(1, 2) | x.permute(0, 2, 3, 1)
x.mean((2, 3)) | x.amax((-2, -1)).sum(1, keepdim=True) | x.flip((2, 3)) | x[:, :, ::2, 1:] when W > 1
F.unfold(x, 2) when H > 1 and W > 1 | F.pad(x, (1, 1, 0, 1), mode="replicate")
F.max_pool2d(x, 2, 1, padding=1) - F.avg_pool2d(x, 2, 1, padding=1) | x * x.mean((2, 3), keepdim=True).sigmoid()
F.grid_sample(x, self.grid.expand(x.shape[0], -1, -1, -1), align_corners=False)
torch.cat([x, F.interpolate(self.lower(F.max_pool2d(x, 2)), (H, W))], 1) when H > 1 and W > 1
"""
JOINTS = r"""
x + self.f(x) | x + 0.3 * self.f(x) | x + self.gain * self.f(x) | self.f(x) - x | h = self.f(x) + 1; h += x; return h
x * self.f(x).sigmoid() | self.f(x) * self.g(x).tanh() | self.f(x) / (1 + self.g(x) ** 2)
torch.lerp(x, self.f(x), 0.3) | torch.maximum(self.f(x), self.g(x)) | torch.where(x > 0, self.f(x), self.g(x))
self.f(x) - self.f(x.flip(1)) | torch.cat([self.f(x), self.g(x)], 1) | torch.cat([x, self.f(x)], -1)
torch.stack([self.f(x), self.g(x), x], 1).mean(1) | self.f(self.f(x)) | self.g(x + self.f(self.g(x)))
h = self.f(x); return h + self.g(h + x) | torch.addcmul(x, self.f(x), self.g(x), value=0.5)
u, v = self.pair(x); return u * torch.sigmoid(v) + u
self.f(x) if bool(x.mean() > 0) else self.g(x) | torch.einsum("b...,b...->b...", self.f(x), self.g(x).softmax(1))
a, b = self.f(x).chunk(2, 1); return torch.cat([a * torch.exp(b.tanh()), b], 1) when C % 2 == 0
"""
# Backward passes that are right, and whose derivative, or whose forward mode, is wrong or absent.
HARD = r"""
hard.WrongTangent.apply(x) | hard.Once.apply(0.5 * x) | hard.Graphless.apply(0.5 * x) | hard.InNumpy.apply(0.5 * x)
hard.HalfDetached.apply(x) | hard.ByLogarithms.apply(x) | hard.WrongBatch.apply(x) | x + hard.Graphless.apply(0.2 * x)
x + 0.1 * hard.Once.apply(x) | self.settle(x) | torch.logcumsumexp(x, -1) | hard.zeroed(x).cumprod(1)
hard.zeroed(x).flatten(1).prod(1, keepdim=True) + x.flatten(1) | hard.products_of_groups(x.flatten(1)) when N > 2
hard.solve_by_cholesky(x.flatten(1)[:, :16]) when N > 15 | hard.inverse_by_cholesky(x.flatten(1)[:, -16:]) when N > 15
hard.weighted_bag(x.flatten(1)) | hard.distances(x.flatten(1)[:, : N // 3 * 3]) when N > 2 | x - 0.1 * torch.sgn(x)
torch.stack([F.pdist(p) for p in x.flatten(1)[:, : N // 3 * 3].unflatten(1, (-1, 3))]) when N > 5
torch.view_as_real(torch.sgn(torch.fft.rfft(x + self.ramp))).flatten(-2)
"""
BY_RANK = {1: VECTOR, 2: TOKENS, 3: IMAGES}
# What networks are commonly made of, by the number of dimensions of a sample.
COMMON = {
    1: r"""
nn.Linear(n, n) | nn.Sequential(nn.Linear(n, k), activation()) | nn.Sequential(nn.Linear(n, k), in_place())
nn.Sequential(nn.Linear(n, 3), nn.BatchNorm1d(3), in_place(), nn.Linear(3, n)) | nn.LayerNorm(n) when n > 2
x + self.f(x) when deep | x + self.f(F.layer_norm(x, [n])) when deep and n > 2
""",
    2: r"""
nn.Linear(n, n) | nn.Sequential(nn.Linear(n, k), activation()) | x + self.mha(x, x, x, need_weights=False)[0]
nn.TransformerEncoderLayer(D, 1, 2 * D, batch_first=True, norm_first=True) when D > 2 | self.lstm(x)[0] | self.gru(x)[0]
nn.LayerNorm(n) when n > 2 | x + self.f(F.layer_norm(x, [n])) when deep and n > 2
""",
    3: r"""
nn.Sequential(nn.Conv2d(C, k, 3, padding=1), activation()) | nn.Conv2d(C, C, r(1, 3), padding=1, groups=C)
nn.Sequential(nn.Conv2d(C, k, 3, padding=1, bias=False), nn.BatchNorm2d(k), in_place()) | x + self.f(x) when deep
nn.MaxPool2d(3, 1, padding=1) | nn.AvgPool2d(2) when H > 3 and W > 3
nn.ConvTranspose2d(C, k, 3, padding=1) | nn.Mish() | torch.cat([x, self.f(x)], 1) when deep
""",
}
# What the names behind ``self.`` are; f, g, lower and pair are drawn blocks.
PARTS = r"""
gain = nn.Parameter(1 + 0.3 * randn(shape)) | shift = 0.5 * randn(shape) | keep = arange(n).remainder(2).float()
ramp = linspace(-1, 1, N).reshape(shape) + 0.1 | mask = arange(n) % 3 != 1 | order = randperm(n)
ids = randint(5, shape[:-1]) | later = ones(C, C).triu(1).bool() | bias = randn(C, C)
weight = nn.Parameter(randn(n, n)) | grid = 1.4 * rand(1, 2, 3, 2) - 0.7
 fc = nn.Linear(n, n + 1) | square = nn.Linear(n, n) | table = nn.Embedding(5, n)
wing = nn.Linear(n - n // 2, n - n // 2) | bilinear = nn.Bilinear(n, n, k) | conv = nn.Conv1d(n, k, 3, padding=1)
qkv = nn.Linear(n, 6 * r(1, 2)) | mha = nn.MultiheadAttention(n, 2 - n % 2, batch_first=True)
first = nn.MultiheadAttention(n, 2 - n % 2) | gru = nn.GRU(n, k, batch_first=True) | early = nn.GRU(n, k)
decoder = nn.TransformerDecoderLayer(n, 2 - n % 2, 2 * n, batch_first=True) | lstm_cell = nn.LSTMCell(n, n)
rnn = nn.RNN(n, k, r(1, 2), batch_first=True, nonlinearity=["tanh", "relu"][r(0, 1)]) | cell = nn.GRUCell(n, n)
lstm = nn.LSTM(n, r(1, 3), r(1, 2), batch_first=True, bidirectional=r(0, 2) == 0)
settle = hard.Settled(n)
inner = nn.Sequential(nn.Linear(n, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, k))
f = same(shape) | g = same(shape) | lower = same((C, H // 2, W // 2)) | pair = formula("self.f(x), self.g(x)", TWO)
"""
TWO = "tuple[Tensor, Tensor]"


@cache
def entries(table: str) -> list[tuple[str, str]]:
    """Code and condition of each entry."""
    lines = table.replace("\\\n", "").strip().splitlines()
    pairs = [entry.strip().partition(" when ") for line in lines for entry in line.split(" | ")]
    return [(code.replace(r" \n ", "\n"), needs or "True") for code, _, needs in pairs]


@cache
def compiled(code: str, returns: str) -> type[nn.Module]:
    """A module class with this forward; its source can be found, as TorchScript needs it."""
    body = code if "return " in code else f"return {code}"
    text = f"def forward(self, x: Tensor) -> {returns}:\n" + textwrap.indent(body, "    ") + "\n"
    number = next(NUMBERS)
    name = f"<formula {number}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space: dict[str, Any] = {"hard": hard_rules, "torch": torch, "F": F, "Tensor": Tensor, "__name__": __name__}
    exec(compile(text, name, "exec"), space)
    members = {"forward": space["forward"], "extra_repr": lambda self: code, "_get_name": lambda self: "Formula"}
    return type(f"Formula{number}", (nn.Module,), members)


def formula(code: str, parts: dict[str, Any], returns: str = "Tensor") -> nn.Module:
    """``code`` as a module; tensors among its parts become buffers."""
    module = compiled(code, returns)()
    for name, part in parts.items():
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            module.register_buffer(name, part)
        else:
            setattr(module, name, part)
    return module


def settled(module: nn.Module, shape: Shape, limit: int) -> tuple[nn.Module, Shape]:
    """The block with values of size 1 and at most ``limit`` of them, and the shape that it gives."""
    module.eval()
    with torch.no_grad():
        y = module(torch.randn(3, *shape))
    size, out = float(y.square().mean().sqrt()), tuple(y.shape[1:])
    chain = [module]
    if not 0.2 < size < 3 and size > 0:
        chain.append(formula(f"x * {1 / size:.1g}", {}))
    if math.prod(out) > limit:
        smaller = {1: (9,), 2: (3, 4), 3: (2, 3, 3)}[len(out)]
        chain.append(adapter(out, smaller))
        out = smaller
    return (chain[0] if len(chain) == 1 else nn.Sequential(*chain)), out


def adapter(given: Shape, wanted: Shape) -> nn.Module:
    """A linear layer from shape to shape, within the channels or positions where it can be."""
    if given[:-1] == wanted[:-1]:
        return nn.Linear(given[-1], wanted[-1])
    if len(given) == 3 and given[1:] == wanted[1:]:
        return nn.Conv2d(given[0], wanted[0], 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(given), math.prod(wanted)), nn.Unflatten(1, wanted))


def jittered(module: nn.Module) -> nn.Module:
    """Biases, norms and running statistics that are not 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return module


@dataclass
class Draw:
    """Draws blocks.

    ``depth``: how far blocks may stand within blocks; ``limit``: elements of a sample between blocks;
    ``width``: of layers; ``common``: take nothing but what networks are commonly made of; ``hard``: often take what
    has no second derivative, or a wrong one.
    """

    rng: random.Random
    depth: int
    limit: int
    width: int
    common: bool
    hard: bool = False

    def r(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def chain(self, shape: Shape, length: int) -> tuple[nn.Module, Shape]:
        blocks: list[nn.Module] = []
        for _ in range(length):
            block, shape = settled(self.block(shape), shape, self.limit)
            blocks.append(block)
        return nn.Sequential(*blocks), shape

    def same(self, shape: Shape) -> nn.Module:
        """A chain that keeps the shape."""
        body, given = replace(self, depth=self.depth - 1).chain(shape, self.r(1, 2))
        return body if given == shape else nn.Sequential(body, adapter(given, shape))

    def block(self, shape: Shape) -> nn.Module:
        own = BY_RANK[len(shape)]
        tables = [COMMON[len(shape)]] if self.common else [ELEMENTWISE, ANY, ANY, own, own] + [JOINTS] * self.depth
        tables += [HARD] * (len(tables) if self.hard else 0)
        return self.made(shape, self.rng.choice(self.fitting(shape, self.rng.choice(tables))))

    def fitting(self, shape: Shape, table: str) -> list[str]:
        """The entries that take this shape."""
        names = self.names(shape)
        return [code for code, needs in entries(table) if eval(needs, names)]

    def made(self, shape: Shape, code: str) -> nn.Module:
        """The block of an entry."""
        return jittered(eval(code, self.names(shape))) if code.startswith("nn.") else self.formula(shape, code)

    def formula(self, shape: Shape, code: str, returns: str = "Tensor") -> nn.Module:
        """Code as a module, with its sizes written in and its parts drawn."""
        names = self.names(shape)
        text = re.sub(r"\b[CnNTDHW]\b", lambda found: str(names[found[0]]), code)
        makers = dict(entry.split(" = ", 1) for entry, _ in entries(PARTS))
        parts = {name: eval(makers[name], names) for name in dict.fromkeys(re.findall(r"self\.(\w+)", code))}
        return formula(text, {n: jittered(p) if isinstance(p, nn.Module) else p for n, p in parts.items()}, returns)

    def names(self, shape: Shape) -> dict[str, Any]:
        """What the tables speak of, for a sample of this shape."""
        sizes = dict(zip({1: "C", 2: "TD", 3: "CHW"}[len(shape)], shape, strict=True))
        sizes |= {"C": shape[0], "n": shape[-1], "N": math.prod(shape), "k": self.r(1, self.width)}
        sizes["deep"] = self.depth > 0
        blocks = {"r": self.r, "same": self.same, "formula": partial(self.formula, shape), "TWO": TWO}
        layers = {"activation": partial(self.layer, ELEMENTWISE), "in_place": partial(self.layer, IN_PLACE)}
        return vars(torch) | {"F": F, "hard": hard_rules, "shape": shape} | sizes | blocks | layers

    def layer(self, table: str) -> nn.Module:
        """Of a table, a module that takes any shape."""
        free = [c for c, needs in entries(table) if c.startswith("nn.") and "(C)" not in c and needs == "True"]
        module: nn.Module = eval(self.rng.choice(free), {"nn": nn})
        return module


class Conditioned(nn.Module):
    """Two halves with further arguments between them: one per sample, one shared, and a number."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, gate: Tensor, shift: Tensor, power: float = 2.0) -> Tensor:
        h: Tensor = self.second(self.first(x) * gate + shift**power)
        return h


@dataclass(frozen=True)
class Drawn:
    """A model in float64 and eval mode, samples, a pair by name and as the oracle takes it, further arguments.

    ``chooses``: a branch hangs on the values.
    """

    model: nn.Module
    x: Tensor
    source: str
    target: str
    description: str
    at: tuple[At, At]
    args: tuple[Any, ...]
    chooses: bool


def random_network(seed: int, hard: bool = False) -> Drawn:
    """The network of this seed, always the same; the random generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drawn(seed, random.Random(seed), hard)


def _drawn(seed: int, rng: random.Random, hard: bool) -> Drawn:
    large, depth, common = rng.random() < 0.15, rng.choice([0, 1, 2, 2]), rng.random() < 0.3
    draw = Draw(rng, depth, 160 if large else 60, 24 if large else 6, common, hard)
    low, most = rng.choice([1, 2, 2]), rng.choice([(60,), (8, 12), (2, 9, 9)] if large else [(12,), (5, 6), (3, 5, 5)])
    shape = tuple(draw.r(low, size) for size in most)
    model, middle = draw.chain(shape, draw.r(1, 6))
    form, shared = rng.choice(["plain"] * 8 + ["tuple", "conditioned"]), torch.randn(1, *middle)
    if form == "tuple":
        model = formula("h = self.body(x); return h, h.sum()", {"body": model}, "tuple[Tensor, Tensor]")
    elif form == "conditioned":
        model = Conditioned(model, draw.chain(middle, draw.r(1, 3))[0])
    model = model.double().eval()
    batch = rng.choice([1, 2, 3, 4, 7])

    def inputs(samples: int) -> tuple[Any, ...]:
        x, gate = torch.randn(samples, *shape).double(), torch.randn(samples, *middle).double()
        return (x, gate, shared.double(), 2.0) if form == "conditioned" else (x,)

    x, *args = inputs(batch)
    places = list(_activations(model, inputs(2), inputs(3), (x, *args)))
    source, target = _pair(rng, places)
    text = f"seed {seed}: {source[0]} -> {target[0]}, x {tuple(x.shape)}"
    return Drawn(model, x, source[0], target[0], text, (source[1], target[1]), tuple(args), "bool(" in repr(model))


Place = tuple[str, At]
INDICES: list[tuple[str, Any]] = [("[-1]", -1), ("[::2]", slice(None, None, 2)), ("[..., 0]", (..., 0)), ("[[0]]", [0])]


def _pair(rng: random.Random, places: list[Place]) -> tuple[Place, Place]:
    """Often the whole model, otherwise two places in the order of the run."""
    outputs = [place for place in places if place[1].path == "output"]
    kind = rng.choice(["whole", "whole", "from", "to", "within"])
    first = 0 if kind in ("whole", "to") else rng.randrange(len(places))
    end = rng.randrange(first, len(places)) if kind in ("to", "within") else places.index(rng.choice(outputs))
    chosen = places[first], places[max(first, end)]
    source, target = (_indexed(place, rng.choice(INDICES)) if rng.random() < 0.05 else place for place in chosen)
    return source, target


def _indexed(place: Place, index: tuple[str, Any]) -> Place:
    return place[0] + index[0], replace(place[1], index=index[1])


def _activations(model: nn.Module, *runs: tuple[Any, ...]) -> Iterator[Place]:
    """Name and address of every floating-point activation of which one dimension is the samples'.

    ``runs``: arguments for two samples, for three, and those that must reach it.
    """
    with torch.no_grad():
        once, again, wanted = (_events(model, run) for run in runs)
    calls = {at.path: at.call for at in wanted}
    for at, a in once.items():
        b = again.get(at, a) if at in wanted else a
        differing = [(d, m, n) for d, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
        if a.is_floating_point() and len(differing) == 1 and differing[0][1:] == (2, 3):
            dim = differing[0][0]
            ending = ":in" * (at.port == "in") + ":out" * bool(at.keys and at.port == "out")
            ending += "".join(f".{key}" for key in at.keys if at.port == "out") + f"@{dim}" * (dim > 0)
            name = at.path + f"#{at.call}" * (calls[at.path] > 1) + ending
            yield name, replace(at, dim=dim)


def _events(model: nn.Module, inputs: tuple[Any, ...]) -> dict[At, Tensor]:
    """What enters and leaves the modules, in the order of the run."""
    calls: Counter[str] = Counter()
    events = {At("input"): inputs[0]}

    def entered(path: str, args: tuple[Any, ...]) -> None:
        calls[path] += 1
        if len(args) == 1:
            events[At(path, "in", calls[path], (0, 0))] = args[0]

    def left(path: str, value: Any, keys: tuple[int, ...] = ()) -> None:
        for key, item in enumerate(value if isinstance(value, tuple) else ()):
            left(path, item, (*keys, key))
        if isinstance(value, Tensor):
            events[At(path, "out", calls[path] or 1, keys)] = value

    hooks = []
    for path, module in list(model.named_modules())[1:]:
        hooks.append(module.register_forward_pre_hook(lambda _, args, path=path: entered(path, args)))
        hooks.append(module.register_forward_hook(lambda _, __, out, path=path: left(path, out)))
    left("output", model(inputs[0].clone(), *inputs[1:]))
    for hook in hooks:
        hook.remove()
    return events


if __name__ == "__main__":
    for given in sys.argv[1:]:  # "17", or "17h" for one of hard rules
        drawn = random_network(int(given.rstrip("h")), given.endswith("h"))
        print(drawn.description, [tuple(a.shape) for a in drawn.args[:2]], drawn.model, sep="\n")
