"""Small networks with the traits that make Jacobians go wrong."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = namedtuple("Pair", ["mean", "spread"])


class Residual(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc(torch.tanh(self.fc(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: str = "LSTM", batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.rnn = getattr(nn, kind)(3, 4, batch_first=batch_first)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(out[:, -1] if self.batch_first else out[-1])


class TimeFirstInside(nn.Module):
    """Samples first outside, and in dimension 1 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.rnn(x.transpose(0, 1))
        return self.head(last[0]) + out.sum((0, 2)).unsqueeze(1)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(11, 3), nn.Linear(12, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.fc(self.emb(ids).flatten(1)))


class Outputs(nn.Module):
    """Layers that give tuples, dicts and named tuples."""

    class Body(nn.Module):
        def __init__(self, form: str) -> None:
            super().__init__()
            self.form, self.a, self.b = form, nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            a, b = torch.tanh(self.a(x)), torch.sigmoid(self.b(x))
            if self.form == "dict":
                return {"mean": a, "spread": b, "name": "body"}
            return Pair(a, b) if self.form == "named" else (a, [b, None])

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body, self.head = Outputs.Body(form), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Any:
        value = self.body(x)
        if isinstance(value, dict):
            a, b = value["mean"], value["spread"]
        else:
            a, b = value[0], value[1] if isinstance(value, Pair) else value[1][0]
        y = self.head(torch.cat([a, b], 1)) ** 2
        return {"logits": y, "extra": y.sum(1)} if self.body.form == "dict" else y


class Branches(nn.Module):
    """A layer with several arguments, by position and by name."""

    class Mix(nn.Module):
        def forward(self, a: Tensor, b: Tensor, *, gain: Tensor, power: int = 2) -> Tensor:
            return a * b.roll(1, -1) + gain**power

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.mix = nn.Linear(4, 3), nn.Linear(4, 3), Branches.Mix()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.mix(self.one(x), self.two(x), gain=x[:, :3]))


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return self.up(h) if h.abs().sum() > 0 else self.down(h)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        h.mul_(2).add_(1)
        h[:, 0] = h[:, 1] + h[:, 2]
        h.tanh_()
        return self.head(h)


class Remembering(nn.Module):
    """Keeps a tensor, a list of tensors, a counter and a buffer between calls, and uses them all."""

    trace: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("trace", torch.ones(4))
        self.hidden = torch.full((1, 4), 0.25)
        self.past: list[Tensor] = [torch.full((1, 4), 0.5)]
        self.calls = 0

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.hidden = fn(self.hidden)
        self.past = [fn(t) for t in self.past]
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x) + self.hidden + self.past[-1] + self.trace) / (1 + self.calls)
        self.calls += 1
        self.hidden = h
        self.past.append(h * 2)
        self.trace.mul_(1.5)
        return h


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


class _Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class Cubed(nn.Module):
    """A custom function without forward mode and without vmap."""

    def forward(self, x: Tensor) -> Tensor:
        return _Cubed.apply(x)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("the backward pass is broken")


class NoBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _NoBackward.apply(x)


class _OnlyForward(_NoBackward):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.cos() * tangents[0]


class OnlyForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _OnlyForward.apply(x)


class Fixed(nn.Module):
    """Bound to four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x.view(4, -1)))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).detach() * 2


class Arguments(nn.Module):
    """Further arguments: per sample by position, shared by name, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, gate: Tensor, power: int = 1, *, shift: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.fc(x)) * gate
        return h**power if shift is None else h**power + shift * x[:, :3] ** 2


class Apart(nn.Module):
    """Two branches that never meet."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.left(x)
        return self.right(x)


class Rolled(nn.Module):
    """Each sample's output hangs on the sample two places on, and never on a neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2 + torch.roll(x, 2, 0).sin()


class Widened(nn.Module):
    """Computes in float64 inside, whatever the input is."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x.double() ** 2, 1)


class Cumulative(nn.Module):
    """Each sample's output hangs on those before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2 + x.sin().cumsum(0)


class CumulativeBack(nn.Module):
    """Each sample's output hangs on those after it."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2 + x.sin().flip(0).cumsum(0).flip(0)
