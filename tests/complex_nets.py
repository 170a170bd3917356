"""Networks that compute y = Re(x A B) with complex A and B, which each keeps in another way; J = Re(A B)ᵀ."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

N_IN, WIDTH, N_OUT = 4, 3, 5


def weight(*shape: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return torch.from_numpy(parts).to(torch.complex64)


A, B = weight(N_IN, WIDTH, seed=0), weight(WIDTH, N_OUT, seed=1)
# Kept in complex64; exact in complex128.
JACOBIAN = (A.to(torch.complex128) @ B.to(torch.complex128)).real.mT.numpy()


class Both(NamedTuple):
    a: Tensor
    b: Tensor


class Kept(nn.Module):
    """What all share: a real parameter of 1, from which the dtype is read, and the product."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def pair(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair()
        return self.gain * ((x.to(a.dtype) @ a) @ b).real


class Parameters(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone(), requires_grad=False)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b


class Buffers(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", A.clone())
        self.register_buffer("b", B.clone(), persistent=False)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b


class Attributes(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.a, self._b = A.clone(), B.clone()

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.a, self._b


class Container(Kept):
    """In one of the containers that Python has, its name private or not."""

    def __init__(self, kind: str = "list") -> None:
        super().__init__()
        self.kind, (a, b) = kind, (A.clone(), B.clone())
        self._held: Any = {
            "list": [a, b],
            "tuple": (a, b),
            "named": Both(a, b),
            "dict": {0: a, 1: b},
            "deque": deque([a, b]),
            "nested": {0: [a], 1: ({"b": b},)},
            "parameters": [nn.Parameter(a), nn.Parameter(b)],
        }[kind]

    def pair(self) -> tuple[Tensor, Tensor]:
        a, b = self._held[0], self._held[1]
        return (a[0], b[0]["b"]) if self.kind == "nested" else (a, b)


class Hidden(Kept):
    """In modules that stand in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = [Parameters(), Attributes()]

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.inside[0].a, self.inside[1]._b


class Tied(Kept):
    """One parameter under two names, in a plain list as well; y = Re(x A Aᵀ)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(A.clone())
        self.inner = nn.Module()
        self.inner.b = self.a
        self.listed = [self.a]

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.a, self.inner.b.mT


class Argument(Kept):
    """A comes as a further argument."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(B.clone())

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.gain * ((x.to(a.dtype) @ a) @ self.b).real


class OnlyComplex(nn.Module):
    """No real tensor tells the dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
        return ((x.to(self.a.dtype) @ self.a) @ self.b).real


class Spelled(nn.Module):
    """Dtypes as a trace and an export write them down: made out of nothing, converted to, and read bytes as."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
        unit = torch.ones(x.shape[1], dtype=torch.complex64) * torch.view_as_complex(torch.tensor([0.0, 1.0]))
        h = ((x.to(torch.complex64) * unit) @ self.a) @ self.b
        return (h * torch.complex(torch.tensor(0.0), torch.tensor(-1.0))).real


class Factors(nn.Module):
    """For ``torch.jit.script``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(A.clone())
        self.register_buffer("b", B.clone())
        self.others = [torch.ones((), dtype=torch.complex64)]

    def forward(self, x: Tensor) -> Tensor:
        return ((x.to(self.a.dtype) @ self.a) @ (self.b * self.others[0])).real


class Square(Kept):
    """J is square."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(weight(WIDTH, N_IN, seed=2))

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b


class Sized(nn.Module):
    """J = diag(1, 0, −2, 0), times a size."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("w", size * torch.tensor([1.0, 0, -2, 0], dtype=torch.float64).diag())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Root(nn.Module):
    """x √|x|, whose derivative at zero is NaN by autograd."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs().sqrt()
