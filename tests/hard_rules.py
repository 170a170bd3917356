"""Networks whose backward pass is right, and whose forward mode or second derivative in torch is wrong, absent or NaN.

Each gives J by rows; a product that is made otherwise must notice. ``HARD`` maps a name to what makes the network and
its samples, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]


class Of(nn.Module):
    """A linear layer and a formula."""

    def __init__(self, n_in: int, n_out: int, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.formula = nn.Linear(n_in, n_out), formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self.fc(x))


class _Cube(torch.autograd.Function):
    """x³ with a right backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * grads[0] * x**2


class WrongTangent(_Cube):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0] * x**2


class Once(_Cube):
    backward = staticmethod(torch.autograd.function.once_differentiable(_Cube.backward))


class Graphless(_Cube):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            return _Cube.backward(ctx, *grads)


class InNumpy(_Cube):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * grads[0].detach().cpu().numpy() * x.detach().cpu().numpy() ** 2).to(x)


class HalfDetached(_Cube):
    """Its gradient depends on the cotangent by a half of what it should, for whoever differentiates it."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * (0.5 * grads[0] + 0.5 * grads[0].detach()) * x**2


class ByLogarithms(_Cube):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0].sign() * (grads[0].abs().log() + (3 * x**2).log()).exp()


class WrongBatch(torch.autograd.Function):
    """x³ whose rule for batches has lost a factor."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _Scale.apply(grads[0], x)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(g: Tensor, x: Tensor) -> Tensor:
        return 3 * g * x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g, x = ctx.saved_tensors
        return 3 * grads[0] * x**2, 6 * grads[0] * g * x

    @staticmethod
    def vmap(info: Any, dims: Any, g: Tensor, x: Tensor) -> Any:
        return g * x**2, dims[0]


class Equilibrium(nn.Module):
    """z = tanh(Wz + x), whose derivative a hook puts in: no operator leads there."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Linear(n, n, bias=False)
        with torch.no_grad():
            self.w.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(200):
                z = (self.w(z) + x).tanh()
        z = (self.w(z) + x).tanh()
        if z.requires_grad:
            slope, weight = (1 - z**2).detach(), self.w.weight.detach()
            m = torch.eye(z.shape[1]).to(z) - slope[:, :, None] * weight
            z.register_hook(lambda g: torch.linalg.solve(m.mT, g.unsqueeze(-1)).squeeze(-1))
        return 2 * z


class Settled(nn.Module):
    """An equilibrium over the last dimension of what it is given."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inner = Equilibrium(n)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.reshape(-1, x.shape[-1]))
        return out.reshape(x.shape)


def products_of_groups(h: Tensor) -> Tensor:
    group = (torch.arange(h.shape[1]) // 3).to(h.device).expand(len(h), -1)
    return h.new_ones(len(h), -(-h.shape[1] // 3)).scatter_reduce(1, group, h.sigmoid() + 0.5, "prod")


def spd(h: Tensor) -> Tensor:
    a = h.unflatten(1, (4, 4))
    return a @ a.mT + torch.eye(4).to(h)


def solve_by_cholesky(h: Tensor) -> Tensor:
    b = torch.linspace(-1, 1, 4).to(h).expand(len(h), 4).unsqueeze(-1)
    return torch.cholesky_solve(b, torch.linalg.cholesky(spd(h))).squeeze(-1)


def inverse_by_cholesky(h: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(spd(h))).flatten(1)


def weighted_bag(h: Tensor) -> Tensor:
    table = torch.linspace(-1, 1, 15).to(h).reshape(5, 3)
    words = (torch.arange(h.shape[1]) % 5).to(h.device).expand(len(h), -1)
    return nn.functional.embedding_bag(words, table, per_sample_weights=h, mode="sum")


def distances(h: Tensor) -> Tensor:
    others = torch.linspace(-1, 1, 15).to(h).reshape(5, 3)
    return torch.cdist(h.unflatten(1, (-1, 3)), others, p=1.5).flatten(1)


def zeroed(h: Tensor) -> Tensor:
    """With exact zeros, where rules of products divide."""
    return torch.where((torch.arange(h.shape[-1]) % 4 == 1).to(h.device), 0 * h, h)


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def of(formula: Callable[[Tensor], Tensor], n_out: int = 12, n_in: int = 6) -> Case:
    return lambda: Of(n_in, n_out, formula), normal(3, n_in)


HARD: dict[str, Case] = {
    "groups": of(products_of_groups),
    "wrong tangent": of(WrongTangent.apply),
    "once differentiable": of(Once.apply),
    "no graph": of(Graphless.apply),
    "numpy": of(InNumpy.apply),
    "half a graph": of(HalfDetached.apply),
    "logarithms": of(ByLogarithms.apply),
    "wrong batches": of(WrongBatch.apply),
    "once differentiable, square": (
        lambda: nn.Sequential(Of(9, 9, Once.apply), nn.Linear(9, 9)),
        normal(3, 9),
    ),
    "some of it without a graph": of(lambda h: h.sin() + Graphless.apply(0.3 * h)),
    "equilibrium": (lambda: nn.Sequential(nn.Linear(5, 6), Equilibrium(6), nn.Linear(6, 7)), normal(3, 5)),
    "solve by Cholesky": of(solve_by_cholesky, 16),
    "inverse by Cholesky": of(inverse_by_cholesky, 16),
    "logcumsumexp": of(lambda h: torch.logcumsumexp(h, 1)),
    "cumprod of zeros": of(lambda h: (zeroed(h) + 0.0).cumprod(1)),
    "prod of zeros": of(lambda h: zeroed(h).unflatten(1, (3, 4)).prod(2)),
    "weighted bag": of(weighted_bag),
    "distances": of(distances),
    "pairwise distances": of(lambda h: torch.stack([nn.functional.pdist(points) for points in h.unflatten(1, (4, 3))])),
    "sign of complex numbers": of(
        lambda h: torch.view_as_real(torch.sgn(torch.view_as_complex(h.unflatten(1, (-1, 2))))).flatten(1)
    ),
    # Forward mode ended the process where a dispatch mode was on.
    "scaled constants": of(
        lambda h: torch.addcmul(h, torch.ones_like(h), torch.ones_like(h), value=2).sub(h, alpha=0.5)
    ),
    "a derivative within": of(
        lambda h: torch.func.jvp(lambda t: torch.add(t.sin(), torch.ones_like(t), alpha=2), (h,), (h.cos(),))[1]
    ),
    "soft threshold": of(lambda h: h - 0.1 * torch.sgn(h)),
}
