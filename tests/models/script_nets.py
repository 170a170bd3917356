"""Scripted and traced networks of every kind, with the arguments to call them with.

No postponed annotations and no new spellings of types here: TorchScript reads them.
"""

# ruff: noqa: UP006, UP035, UP045, SIM108

from collections.abc import Callable
from functools import cache
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Twice(nn.Module):
    """One layer called twice, an Identity, and the same layer under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.skip = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(self.fc(torch.tanh(self.fc(x))))


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: Tensor, steps: int = 3, scale: float = 2.0) -> Tensor:
        for i in range(steps):
            x = torch.tanh(self.cell(x))
            if i % 2 == 1:
                x = x * scale
            else:
                x = x - i / 3
        while bool(x.abs().sum() > 1e6):
            x = x / 2
        if steps > 5:
            return x
        assert steps >= 0, "steps must not be negative"
        return x + steps


class Stateful(nn.Module):
    """State in a plain attribute and in a buffer, written to by assignment and in place."""

    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.h = torch.zeros(0)
        self.seen: List[int] = [1]
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.h.numel() == 0:
            self.h = torch.zeros_like(x)
        self.count += 1
        self.count[0] = self.count[1] * 2
        self.seen.append(x.size(0))
        self.h = torch.tanh(self.fc(x) + self.h)
        return self.h * self.count.sum() + len(self.seen)


@torch.jit.script
class Meter:
    def __init__(self, start: int):
        self.total = start
        self.log: List[Tensor] = []

    def add(self, x: Tensor) -> int:
        self.log.append(x)
        self.total += x.dim()
        return self.total


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Objects(nn.Module):
    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Dict[str, Tensor]:
        meter = Meter(1)
        for _ in range(2):
            meter.add(x * 2)
        pair = Pair(meter.log[0], meter.log[1] + meter.total)
        if mask is not None:
            return {"sum": pair.first + pair.second, "masked": pair.first * mask}
        return {"sum": pair.first + pair.second}


class Named(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        with torch.no_grad():
            shift = x.mean()
        return Pair(x.sin() - shift, x.cos())


class Strings(nn.Module):
    def forward(self, x: Tensor, xs: List[Tensor]) -> Tuple[Tensor, Dict[str, Tensor]]:
        print("never seen", x)
        kinds: Dict[str, int] = {"a": 1}
        kinds["b"] = 7 // 2 - (-7) % 3
        names = sorted([f"{n}{i}" for i, n in enumerate(["y", "x"])])
        total = torch.zeros_like(x)
        for i, t in enumerate(xs):
            total = total + t * (i + 1) * kinds["b"]
        parts = torch.split(total, [1, x.size(-1) - 1], dim=-1)
        if torch.jit.isinstance(xs, List[Tensor]) and x.dtype == torch.float32:
            total = torch.cat(parts[::-1], -1)
        shape = list(x.shape)
        shape[-1] *= 1
        return total.view(shape)[:, 1:].contiguous(), {names[0] + "!": torch.einsum("bi,bj->b", x, total)}


class Inplace(nn.Module):
    """Writes to its input, to views and through ReLU(inplace=True)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.5
        y = self.act(self.fc(x)) + 1
        y[:, 1:].mul_(2)
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        return self.attend(x, x, x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.gru = nn.GRU(5, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x)
        z, _ = self.gru(y)
        return z[:, -1] + h.sum()


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.up = nn.Upsample(scale_factor=2.0, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.up(self.body(x)), size=[4, 4], mode="nearest")
        return F.max_pool2d(F.group_norm(y, 2), 2)


@torch.jit.interface
class Layer(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        pass


class Dynamic(nn.Module):
    """Layers picked at run time, through an interface, and run in forked tasks."""

    pick: Layer

    def __init__(self) -> None:
        super().__init__()
        self.pick = nn.Tanh()
        self.table = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Sigmoid()})

    def forward(self, x: Tensor) -> Tensor:
        task = torch.jit.fork(self.table["a"], x)
        return self.pick.forward(torch.jit.wait(task)) + self.table["b"](x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
        return self.head(self.embed(ids) * weight.unsqueeze(-1))


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


def make(build: Callable[[], nn.Module], *shapes: tuple[int, ...], trace: bool = False) -> Any:
    """``(eager module, scripted or traced module, arguments)``, in eval mode, always the same numbers."""
    torch.manual_seed(0)
    eager = build().eval()
    args = tuple(torch.randn(shape) for shape in shapes)
    script = torch.jit.trace(eager, args, check_trace=False) if trace else torch.jit.script(eager)
    return eager, script, args


def _tokens() -> Any:
    eager, script, _ = make(Tokens)
    return eager, script, (torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.rand(2, 3))


def _strings() -> Any:
    eager, script, (x,) = make(Strings, (2, 4))
    return eager, script, (x, [x + 1, x * 2])


def _chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.GELU(), nn.Dropout(), nn.LayerNorm(6), nn.Linear(6, 3))


SCENARIOS: dict[str, Callable[[], Any]] = {
    "chain": lambda: make(_chain, (2, 4)),
    "chain traced": lambda: make(_chain, (2, 4), trace=True),
    "twice": lambda: make(Twice, (2, 4)),
    "twice traced": lambda: make(Twice, (2, 4), trace=True),
    "control": lambda: make(Control, (2, 4)),
    "state": lambda: make(Stateful, (2, 4)),
    "objects": lambda: make(Objects, (2, 4), (2, 4)),
    "named tuple": lambda: make(Named, (2, 4)),
    "strings": _strings,
    "in place": lambda: make(Inplace, (2, 4)),
    "in place traced": lambda: make(Inplace, (2, 4), trace=True),
    "attention": lambda: make(Attention, (2, 3, 8)),
    "encoder": lambda: make(encoder, (2, 3, 8)),
    "encoder traced": lambda: make(encoder, (2, 3, 8), trace=True),
    "encoder norm first": lambda: make(lambda: encoder(norm_first=True, activation="gelu"), (2, 3, 8)),
    "transformer": lambda: make(lambda: nn.TransformerEncoder(encoder(), 2), (2, 3, 8)),
    "recurrent": lambda: make(Recurrent, (2, 3, 4)),
    "recurrent traced": lambda: make(Recurrent, (2, 3, 4), trace=True),
    "images": lambda: make(Images, (2, 2, 6, 6)),
    "images traced": lambda: make(Images, (2, 2, 6, 6), trace=True),
    "dynamic": lambda: make(Dynamic, (2, 4)),
    "tokens": _tokens,
}


@cache
def _kept(name: str) -> Any:
    return SCENARIOS[name]()


def scenario(name: str) -> Any:
    """``(eager module, scripted module, arguments)``, made once where a call leaves no state behind."""
    return SCENARIOS[name]() if name == "state" else _kept(name)
