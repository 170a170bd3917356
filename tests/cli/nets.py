"""Small networks for the command-line tests; also named by ``--arch`` there."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """y = [[1, 2], [3, 4]] x: J is the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """3 -> 4 -> 4 -> 4 -> 2, the middle square."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Tricky(nn.Module):
    """A layer called twice, one never called, a tuple, a dict, samples second, whole numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.split = Split()
        self.named = Named()
        self.flip = Flip()
        self.count = Count()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        left, right = self.split(x)
        found = self.named(torch.cat([left, right], 1))
        return self.flip(found["a"] * found["b"]).T + self.count(x)[:, None]  # type: ignore[no-any-return]


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2], x[:, 2:]


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": x, "b": 2 * x}


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T.contiguous()


class Count(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).sum(1)


class Args(nn.Module):
    """y = rate * x + shift * mask, so that J = rate * I."""

    def forward(self, x: Tensor, rate: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return rate * x if mask is None else rate * x * mask


class Words(nn.Module):
    """Whole numbers in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).sum(1)  # type: ignore[no-any-return]


class Single(nn.Module):
    """Makes float32 of whatever it gets: there is no float64 form."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc.weight.float()
        return torch.tanh(x.float() @ weight.T)


class Slow(nn.Module):
    """A long chain: some milliseconds a row, so seconds for all rows of the loop."""

    def __init__(self, width: int = 400, depth: int = 30) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Detached(nn.Module):
    """Its backward pass is broken."""

    def forward(self, x: Tensor) -> Tensor:
        return Broken.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no backward here")


def wide() -> nn.Module:
    """70 -> 60: too large for a terminal."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 60), nn.Tanh())


def hostile() -> nn.Module:
    """A layer whose name is markup and escape codes."""
    model = nn.Sequential()
    model.add_module("[red]\x1b[31mfc[/red]", nn.Linear(2, 2))
    return model
