"""Jacobians and their figures in closed form, each with its source.

Three tables: ``TABLE`` of single Jacobians, ``LAWS`` of expectations over random weights, ``CHAINS`` of Lyapunov
exponents; and ``FIELDS`` of wide random networks, which meet their mean-field theory as the width grows. This file is
a SPEC too: ``closed_forms.py:build --arch-arg name=softmax --arch-arg n=8``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[Any]]


def normal(*shape: int, seed: int) -> Tensor:
    """Of a generator of its own: the same in every process, whatever ``--seed`` says."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Modules. All of them take (batch, n), and all can be scripted.


class RMSNorm(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + self.eps).sqrt()


class UnitLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Householder(nn.Module):
    """x − 2 v (vᵀx) / vᵀv."""

    v: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("v", normal(n, seed=11))

    def forward(self, x: Tensor) -> Tensor:
        return x - 2 * (x @ self.v)[:, None] * self.v / self.v.dot(self.v)


class Rotations(nn.Module):
    """By angles θ_k in the planes of coordinates 2k and 2k + 1; further coordinates stay."""

    cos: Tensor
    sin: Tensor

    def __init__(self, angles: Tensor) -> None:
        super().__init__()
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        m = 2 * self.cos.shape[0]
        a, b = x[:, 0:m:2], x[:, 1:m:2]
        turned = torch.stack([self.cos * a - self.sin * b, self.sin * a + self.cos * b], 2)
        return torch.cat([turned.flatten(1), x[:, m:]], 1)


class Shift(nn.Module):
    """y_{i+1} = x_i; what leaves comes in at the other end, or is lost."""

    def __init__(self, cyclic: bool) -> None:
        super().__init__()
        self.cyclic = cyclic

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, 1) if self.cyclic else F.pad(x[:, :-1], (1, 0))


class Stencil(nn.Module):
    """A convolution of one channel, y_i = Σ_k w_k x_{i+k−1}, k = 0, 1, 2; circular, or with zeros around."""

    def __init__(self, weights: Sequence[float], circular: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode="circular" if circular else "zeros")
        self.conv.weight.data.copy_(torch.tensor(weights, dtype=torch.float64).view(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])[:, 0]  # type: ignore[no-any-return]


class MeanPool(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x[:, None], self.size)[:, 0]


class ShiftChain(nn.Module):
    """h ← h + c S h, so many times, S the cyclic shift."""

    def __init__(self, c: float, depth: int) -> None:
        super().__init__()
        self.c, self.depth = c, depth

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = x + self.c * torch.roll(x, 1, 1)
        return x


class Coupling(nn.Module):
    """y_a = x_a, y_b = x_b exp s(x_a) + t(x_a) with s = c tanh(A x_a), t = tanh(B x_a); c = 0 is additive coupling."""

    a: Tensor
    b: Tensor

    def __init__(self, n: int, c: float, seed: int, swapped: bool) -> None:
        super().__init__()
        half = n // 2
        self.c, self.swapped = c, swapped
        self.register_buffer("a", normal(half, half, seed=seed) / math.sqrt(half))
        self.register_buffer("b", normal(half, half, seed=seed + 1) / math.sqrt(half))

    def log_scale(self, kept: Tensor) -> Tensor:
        return self.c * torch.tanh(kept @ self.a.T)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        kept, moved = (right, left) if self.swapped else (left, right)
        moved = moved * self.log_scale(kept).exp() + torch.tanh(kept @ self.b.T)
        return torch.cat([moved, kept] if self.swapped else [kept, moved], 1)


class Planar(nn.Module):
    """x + u tanh(wᵀx + c)."""

    u: Tensor
    w: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("u", normal(n, seed=21))
        self.register_buffer("w", normal(n, seed=22) / math.sqrt(n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.u * torch.tanh((x @ self.w)[:, None] + 0.2)


# --- Single Jacobians.


@dataclass(frozen=True)
class Known:
    """What is known of one sample's J without a computer's decompositions.

    Args:
        matrix: J, entry by entry.
        sigma: singular values, in any order; zeros are 0.0.
        eigenvalues: in any order, with their multiplicities.
        spectrum: further figures of J, by the names that ``spectrum`` gives them.
        deviation: further figures of J − I, by the names that ``deviation`` gives them.
    """

    matrix: Array
    sigma: Sequence[float] | None = None
    eigenvalues: Sequence[complex] | None = None
    spectrum: dict[str, float] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)

    @property
    def square(self) -> bool:
        return bool(self.matrix.shape[0] == self.matrix.shape[1])

    @property
    def singular(self) -> bool:
        """Some σ is 0. Where σ are not listed, the case says so by its logarithm."""
        return (self.sigma is not None and min(self.sigma) == 0) or self.spectrum.get("log_volume") == -math.inf

    def of_spectrum(self) -> dict[str, float]:
        """The scalar figures of J that are known: sums over entries, and over σ where those are known."""
        squares, n = float((self.matrix**2).sum()), min(self.matrix.shape)
        found = {"frobenius": math.sqrt(squares), "mean_squared_singular_value": squares / n}
        if self.sigma is not None:
            s = np.asarray(self.sigma)
            share = s[s > 0] / s.sum()
            found |= {
                "spectral_norm": s.max(),
                "stable_rank": (s**2).sum() / s.max() ** 2,
                "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
                "effective_rank": math.exp(-(share * np.log(share)).sum()),
            }
            logs = float(np.log(s).sum()) if s.min() > 0 else -math.inf
            found |= {"log_volume": logs, "condition": s.max() / s.min() if s.min() > 0 else math.inf}
            found |= {"log_abs_det": logs} if self.square else {}
        if self.eigenvalues is not None:
            e = np.asarray(self.eigenvalues)
            found |= {
                "spectral_radius": abs(e).max(),
                "spectral_abscissa": e.real.max(),
                "non_normality": math.sqrt(max(1 - (abs(e) ** 2).sum() / squares, 0.0)),
            }
        return {name: float(value) for name, value in (found | self.spectrum).items()}

    def of_deviation(self) -> dict[str, float]:
        """The figures of J − I that are known: all but ``spectral`` are sums over entries."""
        n = self.matrix.shape[0]
        d = self.matrix - np.eye(n)
        trace, squares = float(self.matrix.trace()), float((self.matrix**2).sum())
        found = {
            "frobenius": math.sqrt((d**2).sum()),
            "relative": math.sqrt((d**2).sum() / n),
            "l1": abs(d).sum(),
            "max_abs": abs(d).max(),
            "trace": trace,
            "alpha": trace / n,
            "identity_share": trace**2 / n / squares,
        }
        return {name: float(value) for name, value in (found | self.deviation).items()}


@dataclass(frozen=True)
class Closed:
    """A module whose Jacobian is known.

    Args:
        name: of the case.
        source: where it is written, or the derivation.
        build: the module of a size, float64.
        known: what is known at one sample ``(n,)``.
        scale: of the samples, which are normal.
        seed: of the probes of the estimates, one at which all intervals hold.
        settles: log|det J| can be estimated; else σ come so near 0 that it may be refused.
    """

    name: str
    source: str
    build: Callable[[int], nn.Module]
    known: Callable[[Any, Array], Known]
    scale: float = 1.0
    seed: int = 1
    settles: bool = True

    def samples(self, n: int, batch: int = 3) -> Tensor:
        return self.scale * normal(batch, n, seed=5)


def dot(*terms: Array) -> Array:
    return np.multiply.outer(*terms)


def layer_norm(module: Any, x: Array) -> Known:
    n, c = len(x), x - x.mean()
    v = float((c**2).mean())
    s = math.sqrt(v + module.eps)
    matrix = (np.eye(n) - 1 / n - dot(c, c) / (n * s * s)) / s
    along = module.eps / s**3
    return Known(
        matrix,
        [*[1 / s] * (n - 2), along, 0.0],
        [*[1 / s] * (n - 2), along, 0.0],
        {"frobenius": math.sqrt((n - 2) / s**2 + along**2)},
        {
            "trace": (n - 2) / s + along,
            "frobenius": math.sqrt((n - 2) * (1 / s - 1) ** 2 + (1 - along) ** 2 + 1),
            "spectral": max(abs(1 / s - 1), abs(1 - along), 1.0),
        },
    )


def rms_norm(module: Any, x: Array) -> Known:
    n, v = len(x), float((x**2).mean())
    r = math.sqrt(v + module.eps)
    along = module.eps / r**3
    values = [*[1 / r] * (n - 1), along]
    deviation = {
        "trace": (n - 1) / r + along,
        "frobenius": math.sqrt((n - 1) * (1 / r - 1) ** 2 + (1 - along) ** 2),
        "spectral": max(abs(1 / r - 1), abs(1 - along)),
    }
    return Known((np.eye(n) - dot(x, x) / (n * r * r)) / r, values, values, {}, deviation)


def unit_length(module: Any, x: Array) -> Known:
    n, length = len(x), float(np.linalg.norm(x))
    values = [*[1 / length] * (n - 1), 0.0]
    deviation = {"trace": (n - 1) / length, "spectral": max(1.0, abs(1 / length - 1))}
    return Known((np.eye(n) - dot(x, x) / length**2) / length, values, values, {}, deviation)


def softmax(module: Any, x: Array) -> Known:
    p = np.exp(x - x.max())
    p /= p.sum()
    squares = (p**2).sum() - 2 * (p**3).sum() + (p**2).sum() ** 2
    trace = float(1 - (p**2).sum())
    deviation = {
        "trace": trace,
        "frobenius": math.sqrt(squares - 2 * trace + len(x)),
        # J is positive semidefinite with J1 = 0 and σ ≤ 1/2 (Gershgorin: 2 p (1 − p)): the largest of |σ − 1| is at 1.
        "spectral": 1.0,
    }
    figures = {
        "frobenius": math.sqrt(squares),
        "log_abs_det": -math.inf,
        "log_volume": -math.inf,
        "condition": math.inf,
    }
    return Known(np.diag(p) - dot(p, p), None, None, figures, deviation)


def uniform_softmax(module: Any, x: Array) -> Known:
    n = len(x)
    values = [*[1 / n] * (n - 1), 0.0]
    return Known(np.eye(n) / n - 1 / n**2, values, values, {}, {"trace": 1 - 1 / n, "spectral": 1.0})


def householder(module: Any, x: Array) -> Known:
    n, v = len(x), module.v.numpy()
    matrix = np.eye(n) - 2 * dot(v, v) / (v @ v)
    return Known(
        matrix,
        [1.0] * n,
        [-1.0, *[1.0] * (n - 1)],
        {"log_abs_det": 0.0, "non_normality": 0.0},
        {"frobenius": 2.0, "spectral": 2.0, "trace": n - 2, "identity_share": (n - 2) ** 2 / n**2},
    )


def rotations(module: Any, x: Array) -> Known:
    n, cos, sin = len(x), module.cos.numpy(), module.sin.numpy()
    angles = np.arctan2(sin, cos)
    matrix = np.eye(n)
    for k, (c, s) in enumerate(zip(cos, sin, strict=True)):
        matrix[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, -s], [s, c]]
    away = 2 * abs(np.sin(angles / 2))
    pairs = [z for theta in angles for z in (np.exp(1j * theta), np.exp(-1j * theta))]
    return Known(
        matrix,
        [1.0] * n,
        [*pairs, *[1.0] * (n - len(pairs))],
        {"log_abs_det": 0.0, "non_normality": 0.0, "condition": 1.0},
        {
            "frobenius": math.sqrt(2 * (away**2).sum()),
            "spectral": away.max(),
            "trace": n - 2 * len(angles) + 2 * cos.sum(),
        },
    )


def roots(n: int) -> Array:
    return np.exp(2j * np.pi * np.arange(n) / n)


def cyclic_shift(module: Any, x: Array) -> Known:
    n = len(x)
    deviation = {"frobenius": math.sqrt(2 * n), "spectral": 2.0, "trace": 0.0, "l1": 2 * n, "identity_share": 0.0}
    matrix = np.roll(np.eye(n), 1, 0)
    return Known(matrix, [1.0] * n, [*roots(n)], {"log_abs_det": 0.0, "non_normality": 0.0}, deviation)


def lossy_shift(module: Any, x: Array) -> Known:
    n = len(x)
    # SᵀS − S − Sᵀ + I is tridiagonal (2, −1), but for a 1 in a corner: eigenvalues 2 + 2 cos(2kπ/(2n + 1)).
    deviation = {"frobenius": math.sqrt(2 * n - 1), "trace": 0.0, "spectral": 2 * math.cos(math.pi / (2 * n + 1))}
    figures = {"non_normality": 1.0, "spectral_radius": 0.0}
    return Known(np.eye(n, k=-1), [*[1.0] * (n - 1), 0.0], [0.0] * n, figures, deviation)


def second_difference(module: Any, x: Array) -> Known:
    n = len(x)
    values = 2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))
    figures = {
        "log_abs_det": math.log(n + 1),
        "condition": 1 / math.tan(math.pi / (2 * n + 2)) ** 2,
        "frobenius": math.sqrt(6 * n - 2),
        "non_normality": 0.0,
    }
    deviation = {"spectral": 1 + 2 * math.cos(math.pi / (n + 1)), "trace": 2 * n, "frobenius": math.sqrt(3 * n - 2)}
    return Known(2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1), [*values], [*values], figures, deviation)


def circular_convolution(module: Any, x: Array) -> Known:
    n, w = len(x), module.conv.weight.detach().numpy().reshape(3)
    shift = np.roll(np.eye(n), 1, 0)
    values = w[0] * roots(n) + w[1] + w[2] * roots(n).conj()
    figures = {"frobenius": math.sqrt(n * (w**2).sum()), "non_normality": 0.0}
    deviation = {"trace": n * w[1], "spectral": abs(values - 1).max()}
    return Known(w[0] * shift + w[1] * np.eye(n) + w[2] * shift.T, [*abs(values)], [*values], figures, deviation)


def mean_pool(module: Any, x: Array) -> Known:
    n, k = len(x), module.size
    matrix = np.kron(np.eye(n // k), np.full((1, k), 1 / k))
    figures = {"condition": 1.0, "log_volume": -n / k / 2 * math.log(k), "frobenius": math.sqrt(n) / k}
    return Known(matrix, [k**-0.5] * (n // k), None, figures)


def shift_chain(module: Any, x: Array) -> Known:
    n, c, depth = len(x), module.c, module.depth
    terms = [math.comb(depth, k) * c**k for k in range(depth + 1)]
    matrix = sum(t * np.roll(np.eye(n), k, 0) for k, t in enumerate(terms))
    values = (1 + c * roots(n)) ** depth
    figures = {"frobenius": math.sqrt(n * sum(t * t for t in terms)), "non_normality": 0.0}
    deviation = {
        "trace": n,
        "frobenius": math.sqrt(n * sum(t * t for t in terms[1:])),
        "spectral": abs(values - 1).max(),
    }
    return Known(np.asarray(matrix), [*abs(values)], [*values], figures, deviation)


def couplings(module: Any, x: Array) -> Known:
    """By the chain rule over layers; log|det J| is the sum of all s, whatever their weights."""
    matrix, logs, h = np.eye(len(x)), 0.0, x
    half = len(x) // 2
    for layer in module:
        a, b = layer.a.numpy(), layer.b.numpy()
        kept, moved = (h[half:], h[:half]) if layer.swapped else (h[:half], h[half:])
        gate, shift = np.tanh(a @ kept), np.tanh(b @ kept)
        s = layer.c * gate
        lower = (moved * np.exp(s) * layer.c * (1 - gate**2))[:, None] * a + (1 - shift**2)[:, None] * b
        one, zero, scaled = np.eye(half), np.zeros((half, half)), np.diag(np.exp(s))
        step = np.block([[scaled, lower], [zero, one]] if layer.swapped else [[one, zero], [lower, scaled]])
        moved = moved * np.exp(s) + shift
        h = np.concatenate([moved, kept] if layer.swapped else [kept, moved])
        matrix, logs = step @ matrix, logs + float(s.sum())
    return Known(matrix, spectrum={"log_abs_det": logs, "log_volume": logs})


def one_additive(module: Any, x: Array) -> Known:
    found = couplings(module, x)
    squares = float((found.matrix**2).sum())
    deviation = {"trace": len(x), "alpha": 1.0, "identity_share": len(x) / squares}
    deviation["frobenius"] = math.sqrt(squares - len(x))
    return Known(found.matrix, None, None, {"log_abs_det": 0.0, "log_volume": 0.0}, deviation)


def planar(module: Any, x: Array) -> Known:
    n, u, w = len(x), module.u.numpy(), module.w.numpy()
    slope = float(1 - np.tanh(w @ x + 0.2) ** 2)
    one, away = 1 + slope * float(u @ w), slope * float(np.linalg.norm(u) * np.linalg.norm(w))
    # The two σ that are not 1: their product is |det|, the sum of their squares ‖J‖_F² − (n − 2) = 2 det + ‖J − I‖².
    both = 2 * one + away**2
    gap = math.sqrt(both**2 - 4 * one**2)
    sigma = [math.sqrt((both + gap) / 2), math.sqrt((both - gap) / 2)]
    deviation = {"frobenius": away, "spectral": away, "trace": n - 1 + one}
    figures = {"log_abs_det": math.log(abs(one))}
    return Known(np.eye(n) + slope * dot(u, w), [*sigma, *[1.0] * (n - 2)], [one, *[1.0] * (n - 1)], figures, deviation)


def one_hardtanh(module: Any, x: Array) -> Known:
    w = module.blocks[0][0].weight.detach().numpy()
    active = abs(w @ x) < 1
    length = float(np.linalg.norm(w[0]))
    return Known(active[:, None] * w, [*[length] * int(active.sum()), *[0.0] * int((~active).sum())])


def isometry(module: Any, x: Array) -> Known:
    matrix, h = np.eye(len(x)), x
    for block in module.blocks:
        w = block[0].weight.detach().numpy()
        matrix, h = w @ matrix, w @ h
        assert abs(h).max() < 1, "not in the linear range"
    trace = float(matrix.trace())
    deviation = {"frobenius": math.sqrt(2 * len(x) - 2 * trace)}
    return Known(matrix, [1.0] * len(x), None, {"log_abs_det": 0.0, "condition": 1.0}, deviation)


def scaled_identity(c: float) -> Callable[[Any, Array], Known]:
    def known(module: Any, x: Array) -> Known:
        n = len(x)
        deviation = {"frobenius": math.sqrt(n) * abs(c - 1), "spectral": abs(c - 1), "trace": c * n, "alpha": c}
        deviation |= {"identity_share": 1.0, "relative": abs(c - 1)}
        return Known(c * np.eye(n), [abs(c)] * n, [c] * n, {"log_abs_det": n * math.log(abs(c))}, deviation)

    return known


class Times(nn.Module):
    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return self.c * x


CIRCULANT = "R. M. Gray, Toeplitz and Circulant Matrices: A Review, 2006, ch. 3: eigenvalues are the DFT of a row"
TABLE = [
    Closed("identity", "J = I", lambda n: nn.Identity(), scaled_identity(1.0)),
    Closed("minus half", "J = −I/2", lambda n: Times(-0.5), scaled_identity(-0.5)),
    Closed(
        "layer norm",
        "J. L. Ba, J. R. Kiros, G. E. Hinton, Layer Normalization, 2016. With c = x − mean, v = mean c², s² = v + eps: "
        "J = (I − 11ᵀ/n − ccᵀ/(n s²))/s, symmetric; on 1: 0; on c: (1 − v/s²)/s = eps/s³; on the rest: 1/s",
        lambda n: nn.LayerNorm(n, 0.3, elementwise_affine=False),
        layer_norm,
        0.7,
    ),
    Closed(
        "layer norm, small eps",
        "as above",
        lambda n: nn.LayerNorm(n, 1e-5, elementwise_affine=False),
        layer_norm,
    ),
    Closed(
        "RMS norm",
        "B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, 2019. With r² = mean x² + eps: "
        "J = (I − xxᵀ/(n r²))/r; on x: eps/r³; on the rest: 1/r",
        lambda n: RMSNorm(0.2),
        rms_norm,
        0.8,
    ),
    Closed(
        "unit length",
        "x/‖x‖: J = (I − xxᵀ/‖x‖²)/‖x‖, a projection over ‖x‖",
        lambda n: UnitLength(),
        unit_length,
    ),
    Closed(
        "softmax",
        "∂p_i/∂x_j = p_i (δ_ij − p_j): J = diag p − ppᵀ, J1 = 0, tr J = 1 − ‖p‖², "
        "‖J‖_F² = Σp² − 2Σp³ + (Σp²)² (B. Gao, L. Pavel, On the Properties of the Softmax Function, 2017)",
        lambda n: nn.Softmax(1),
        softmax,
    ),
    Closed(
        "softmax of equals",
        "p = 1/n: J = (I − 11ᵀ/n)/n, a projection over n",
        lambda n: nn.Softmax(1),
        uniform_softmax,
        0.0,
    ),
    Closed(
        "Householder",
        "G. H. Golub, C. F. Van Loan, Matrix Computations, 4th ed. 2013, §5.1: H = I − 2vvᵀ/vᵀv is orthogonal and "
        "symmetric, −1 on v and 1 on the rest; H − I = −2vvᵀ/vᵀv has rank one and norm 2",
        Householder,
        householder,
    ),
    Closed(
        "one rotation",
        "Golub and Van Loan 2013, §5.1: eigenvalues e^{±iθ}; in its plane R − I is 2|sin(θ/2)| times an isometry, "
        "so that ‖R − I‖_F = √2 · 2|sin(θ/2)|",
        lambda n: Rotations(torch.tensor([0.7], dtype=torch.float64)),
        rotations,
    ),
    Closed(
        "rotations",
        "as above, a plane at a time: ‖R − I‖_F² = Σ 8 sin²(θ/2), tr R = Σ 2 cos θ",
        lambda n: Rotations(torch.linspace(-1.3, 2.2, n // 2, dtype=torch.float64)),
        rotations,
    ),
    Closed("cyclic shift", f"{CIRCULANT}: the n-th roots of unity", lambda n: Shift(True), cyclic_shift),
    Closed(
        "lossy shift",
        "The nilpotent Jordan block: all eigenvalues 0, σ are 1 and one 0. ‖S − I‖₂ = 2 cos(π/(2n + 1)) "
        "(eigenvalues of tridiagonal matrices with changed corners, W.-C. Yueh, 2005)",
        lambda n: Shift(False),
        lossy_shift,
    ),
    Closed(
        "second difference",
        "G. Strang, Computational Science and Engineering, 2007, §1.5: eigenvalues 2 − 2 cos(kπ/(n + 1)), det n + 1",
        lambda n: Stencil([-1.0, 2.0, -1.0], circular=False),
        second_difference,
        settles=False,
    ),
    Closed(
        "circular convolution",
        f"{CIRCULANT}; H. Sedghi, V. Gupta, P. M. Long, The Singular Values of Convolutional Layers, 2019: σ are |DFT|",
        lambda n: Stencil([0.3, 1.0, -0.5], circular=True),
        circular_convolution,
    ),
    Closed("mean pooling", "rows (1, …, 1)/k side by side: JJᵀ = I/k", lambda n: MeanPool(4), mean_pool),
    Closed(
        "residual chain of shifts",
        f"(I + cS)^L = Σ_k (L choose k) c^k S^k; {CIRCULANT}: (1 + cω)^L",
        lambda n: ShiftChain(0.2, 5),
        shift_chain,
    ),
    Closed(
        "affine coupling",
        "L. Dinh, J. Sohl-Dickstein, S. Bengio, Density Estimation Using Real NVP, 2017, §3.2: J is block triangular, "
        "det J = exp Σ s(x_a)",
        lambda n: nn.Sequential(Coupling(n, 0.8, 31, False)),
        couplings,
    ),
    Closed(
        "affine couplings",
        "as above; log|det| of a chain is the sum",
        lambda n: nn.Sequential(*(Coupling(n, 0.5, 31 + 2 * k, bool(k % 2)) for k in range(3))),
        couplings,
        settles=False,  # three of them spread σ over two decades
    ),
    Closed(
        "additive coupling",
        "L. Dinh, D. Krueger, Y. Bengio, NICE, 2015, §3.2: J is unit triangular: det J = 1, tr J = n",
        lambda n: nn.Sequential(Coupling(n, 0.0, 31, False)),
        one_additive,
    ),
    Closed(
        "additive couplings",
        "as above, a chain: det J = 1",
        lambda n: nn.Sequential(*(Coupling(n, 0.0, 31 + 2 * k, bool(k % 2)) for k in range(3))),
        couplings,
        seed=2,
    ),
    Closed(
        "hardtanh, orthogonal, one layer",
        "J. Pennington, S. Schoenholz, S. Ganguli, Resurrecting the Sigmoid, 2017: φ' is 0 or 1, J = DW with "
        "W = σ_w times an isometry: σ is 0 or σ_w, and counts the units with |h| < 1",
        lambda n: wide_network("hardtanh", True, 1.2, 0.0, 1, n, 3),
        one_hardtanh,
    ),
    Closed(
        "hardtanh, orthogonal, small",
        "as above: where all |h| < 1, J is a product of orthogonal matrices at any depth, dynamical isometry",
        lambda n: wide_network("hardtanh", True, 1.0, 0.0, 6, n, 4),
        isometry,
        0.05,
    ),
    Closed(
        "planar flow",
        "D. J. Rezende, S. Mohamed, Variational Inference with Normalizing Flows, 2015, §4.1: J = I + u ψᵀ, "
        "det J = 1 + uᵀψ by the matrix determinant lemma",
        Planar,
        planar,
    ),
]
BY_NAME = {c.name: c for c in TABLE}


def build(name: str, n: int) -> nn.Module:
    """For the command line: ``--arch-arg name=softmax --arch-arg n=8``."""
    return BY_NAME[name].build(n).double().eval()


# --- Expectations over random weights.


class Riding(nn.Module):
    """A network whose weights come with the sample: every sample is a draw of its own.

    A sample is the state ``(widths[0],)`` and then numbers that times σ/√(fan-in) are the weights, layer by layer; J
    is taken from ``state`` on.
    """

    def __init__(self, widths: list[int], sigma: float, kind: str) -> None:
        super().__init__()
        self.state = nn.Identity()
        self.widths: list[int] = widths
        self.sigma, self.relu, self.residual = sigma, kind == "relu", kind == "residual"

    def forward(self, x: Tensor) -> Tensor:
        h = self.state(x[:, : self.widths[0]])
        start = self.widths[0]
        for layer in range(len(self.widths) - 1):
            n_in, n_out = self.widths[layer], self.widths[layer + 1]
            w = x[:, start : start + n_in * n_out].reshape(-1, n_out, n_in) * (self.sigma / n_in**0.5)
            start += n_in * n_out
            y = (w @ h.unsqueeze(2)).squeeze(2)
            if self.relu:
                y = torch.relu(y)
            h = h + y if self.residual else y
        return h


def riding(widths: list[int], sigma: float, kind: str) -> nn.Module:
    return Riding(widths, sigma, kind).double().eval()


@dataclass(frozen=True)
class Moments:
    """Expectations over weights, M = JJᵀ: E tr M, E (tr M)², E tr M², E tr J, E ‖J − I‖_F² (of a square J)."""

    squares: float
    squares_squared: float
    fourths: float
    trace: float | None = None
    deviation: float | None = None

    @property
    def variance(self) -> float:
        """Of tr M = ‖J‖_F²."""
        return self.squares_squared - self.squares**2


@dataclass(frozen=True)
class Law:
    """Random weights, W_ij of N(0, σ²/fan-in), and what is expected of J."""

    name: str
    source: str
    widths: tuple[int, ...]
    sigma: float
    kind: str

    @property
    def numbers(self) -> int:
        """Of one sample: the state and the weights."""
        return self.widths[0] + sum(a * b for a, b in pairwise(self.widths))

    @property
    def truth(self) -> Moments:
        if self.kind == "residual":
            return _residual(self.widths[0], len(self.widths) - 1, self.sigma)
        return _product(self.widths, self.sigma, 0.5 if self.kind == "relu" else 1.0)


def _product(widths: Sequence[int], sigma: float, active: float) -> Moments:
    """For G of m rows g_i of N(0, s²), M' = GMGᵀ, from E (gᵀMg)² = s⁴((tr M)² + 2 tr M²), E (gᵀMh)² = s⁴ tr M².

    tr M' = Σ gᵢᵀMgᵢ and tr M'² = Σ (gᵢᵀMgⱼ)², so that E (tr M')² = s⁴(m (E₁ + 2E₂) + m(m − 1) E₁) and
    E tr M'² = s⁴(m (E₁ + 2E₂) + m(m − 1) E₂) with E₁ = (tr M)², E₂ = tr M². ReLU keeps each row with probability 1/2,
    by the sign of gᵢᵀh; all terms are even in each row, so that signs and terms are independent: 1/2 and 1/4.
    """
    n0 = float(widths[0])
    one, both, two = n0, n0**2, n0
    for n_in, m in pairwise(widths):
        s2 = sigma**2 / n_in
        own, cross = active * m, active**2 * m * (m - 1)
        fourth = both + 2 * two
        one, both, two = s2 * own * one, s2**2 * (own * fourth + cross * both), s2**2 * (own * fourth + cross * two)
    if active < 1:
        return Moments(one, both, two)
    square = widths[0] == widths[-1]
    return Moments(one, both, two, 0.0 if square else None, one + n0 if square else None)


def _residual(n: int, depth: int, sigma: float) -> Moments:
    """M' = (I + W) M (I + W)ᵀ with s² = σ²/n: the terms of even order in W.

    E tr M' = (1 + n s²) tr M; E (tr M')² = (1 + 2n s² + n² s⁴) E₁ + (4s² + 2n s⁴) E₂;
    E tr M'² = (1 + 2s² + 2n s² + n(n + 1) s⁴) E₂ + (2s² + n s⁴) E₁.
    """
    one, both, two = float(n), float(n * n), float(n)
    s2 = sigma**2 / n
    for _ in range(depth):
        one, both, two = (
            (1 + n * s2) * one,
            (1 + n * s2) ** 2 * both + (4 * s2 + 2 * n * s2**2) * two,
            (1 + 2 * (n + 1) * s2 + n * (n + 1) * s2**2) * two + (2 * s2 + n * s2**2) * both,
        )
    return Moments(one, both, two, float(n), n * ((1 + sigma**2) ** depth - 1))


WISHART = "moments of Wishart matrices: R. J. Muirhead, Aspects of Multivariate Statistical Theory, 1982; see _product"
HE = (
    "K. He, X. Zhang, S. Ren, J. Sun, Delving Deep into Rectifiers, 2015, §2.2: each layer multiplies by σ_w²/2; "
    "exact at finite width: B. Hanin, Which Neural Network Architectures Give Rise to Exploding and Vanishing "
    "Gradients?, 2018"
)
RESIDUAL = "E (I + W)ᵀ(I + W) = (1 + σ²) I, so that E ‖J‖_F² = n (1 + σ²)^L; E tr J = n; see _residual"
LAWS = [
    Law("one Gaussian matrix", WISHART, (7, 5), 1.3, "product"),
    Law("Gaussian product", WISHART, (8, 8, 8), 1.0, "product"),
    Law("Gaussian product of widths", WISHART, (6, 10, 7, 9), 1.2, "product"),
    Law("He, critical", HE, (8, 10, 8), math.sqrt(2), "relu"),
    Law("He, too small", HE, (10, 6, 8), 1.1, "relu"),
    Law("residual chain", RESIDUAL, (8,) * 5, 0.3, "residual"),
    Law("residual chain, large steps", RESIDUAL, (10,) * 3, 0.9, "residual"),
]


def dense(widths: list[int], sigma: float, kind: str, seed: int) -> nn.Module:
    """The same networks of ordinary layers, ``blocks.0`` on."""
    blocks: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(n_in, n_out, bias=False)
        linear.weight.data = normal(n_out, n_in, seed=1000 * seed + k) * sigma / math.sqrt(n_in)
        blocks.append(Block(linear, kind))
    return Blocks(blocks).double().eval()


class Block(nn.Module):
    def __init__(self, linear: nn.Module, kind: str) -> None:
        super().__init__()
        self.linear = linear
        self.relu, self.residual = kind == "relu", kind == "residual"

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.relu:
            y = torch.relu(y)
        return x + y if self.residual else y


class Blocks(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# --- Wide random networks.


@dataclass(frozen=True)
class Field:
    """A wide network of W_l = σ_w times Gaussian or orthogonal, biases of N(0, σ_b²), and its mean-field theory.

    At the fixed point q = σ_w² E φ(√q z)² + σ_b² with μ_k = E φ'(√q z)^{2k}: χ = σ_w² μ₁, mean σ² = χ^L, and
    m₂/m₁² − 1 = L (μ₂/μ₁² − 1 − s₁), s₁ = −1 of Gaussian and 0 of orthogonal weights (J. Pennington, S. Schoenholz,
    S. Ganguli, Resurrecting the Sigmoid in Deep Learning through Dynamical Isometry, 2017; the second by freeness:
    relative variances of free factors add up).
    """

    name: str
    activation: str
    orthogonal: bool
    sigma_w: float
    sigma_b: float
    depth: int

    @cached_property
    def q(self) -> float:
        q = 1.0
        for _ in range(1000):
            q = self.sigma_w**2 * self.mean_square(q) + self.sigma_b**2
        return q

    @property
    def x_square(self) -> float:
        """Mean square of the entries of x, at which the first pre-activations have variance q."""
        return (self.q - self.sigma_b**2) / self.sigma_w**2

    def mean_square(self, q: float) -> float:
        """E φ(√q z)²."""
        if self.activation == "tanh":
            return over_normal(lambda z: np.tanh(math.sqrt(q) * z) ** 2)
        inside = math.erf(1 / math.sqrt(2 * q))
        return q * (inside - math.sqrt(2 / (math.pi * q)) * math.exp(-1 / (2 * q))) + 1 - inside

    def mu(self, k: int) -> float:
        """E φ'(√q z)^{2k}."""
        q = self.q
        if self.activation == "tanh":
            return over_normal(lambda z: (1 - np.tanh(math.sqrt(q) * z) ** 2) ** (2 * k))
        return math.erf(1 / math.sqrt(2 * q))

    @property
    def chi(self) -> float:
        return self.sigma_w**2 * self.mu(1)

    def variance(self, depth: int) -> float:
        """m₂/m₁² − 1 of so many layers."""
        return depth * (self.mu(2) / self.mu(1) ** 2 - 1 + (not self.orthogonal))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(120)


def over_normal(f: Callable[[Array], Array]) -> float:
    """E f(z), by Gauss–Hermite quadrature."""
    return float((WEIGHTS * f(NODES)).sum() / math.sqrt(2 * math.pi))


FIELDS = [
    Field("tanh, Gaussian", "tanh", False, 1.5, 0.3, 4),
    Field("tanh, orthogonal", "tanh", True, 1.3, 0.2, 4),
    Field("hardtanh, Gaussian", "hardtanh", False, 1.4, 0.2, 3),
    Field("hardtanh, orthogonal, one layer", "hardtanh", True, 1.5, 0.0, 1),
    Field("hardtanh, orthogonal", "hardtanh", True, 1.3, 0.1, 5),
]
FIELD_BY_NAME = {f.name: f for f in FIELDS}


def mean_field(name: str, n: int, seed: int) -> nn.Module:
    """A network of a field, of Linear layers and activations, ``blocks.0`` on."""
    f = FIELD_BY_NAME[name]
    return wide_network(f.activation, f.orthogonal, f.sigma_w, f.sigma_b, f.depth, n, seed)


def wide_network(
    activation: str, orthogonal: bool, sigma_w: float, sigma_b: float, depth: int, n: int, seed: int
) -> nn.Module:
    blocks: list[nn.Module] = []
    for k in range(depth):
        w = normal(n, n, seed=1000 * seed + k)
        if orthogonal:
            q, r = torch.linalg.qr(w)
            w = q * r.diagonal().sign()
        linear = nn.Linear(n, n)
        linear.weight.data = sigma_w * (w if orthogonal else w / math.sqrt(n))
        linear.bias.data = sigma_b * normal(n, seed=1000 * seed + 500 + k)
        blocks.append(nn.Sequential(linear, nn.Tanh() if activation == "tanh" else nn.Hardtanh()))
    return Blocks(blocks).double().eval()


# --- Chains.


class Cat(nn.Module):
    """Arnold's cat map, (x, y) → (2x + y, x + y) mod 1."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2, bias=False)
        self.map.weight.data = torch.tensor([[2.0, 1.0], [1.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return torch.remainder(self.map(x), 1.0)


class Henon(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 - 1.4 * x[:, 0] ** 2 + x[:, 1], 0.3 * x[:, 0]], 1)


class Logistic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 4 * x * (1 - x)


class Steps(nn.Module):
    """The same kind of step so many times, ``steps.0`` on."""

    def __init__(self, step: type[nn.Module], count: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(step() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


@dataclass(frozen=True)
class Chain:
    """A map, iterated, and the Lyapunov exponents of so many steps of it.

    Args:
        step: one step.
        count: of steps.
        starts: ``(batch, n)``.
        exponents: of one start, descending; exact for this many steps. None: only ``total`` is known.
        total: their sum.
        limit: the largest one of infinitely many steps, and how far the mean over starts may be from it.
    """

    name: str
    source: str
    step: type[nn.Module]
    count: int
    starts: Callable[[], Array]
    total: Callable[[Array], float]
    exponents: Callable[[Array], Sequence[float]] | None = None
    limit: tuple[float, float] | None = None


CAT, CAT_STEPS, LOGISTIC_STEPS, HENON_STEPS = math.log((3 + math.sqrt(5)) / 2), 30, 20, 100


def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def cat(x: Array) -> Sequence[float]:
    largest = math.log(fibonacci(4 * CAT_STEPS + 1)) / (2 * CAT_STEPS)
    return [largest, -largest]


def logistic(x: Array) -> Sequence[float]:
    theta, n = math.asin(math.sqrt(float(x[0]))), LOGISTIC_STEPS
    return [math.log(2) + math.log(abs(math.sin(2 ** (n + 1) * theta) / math.sin(2 * theta))) / n]


def on_henon_attractor() -> Array:
    x = np.stack([np.linspace(0.0, 0.3, 100), np.linspace(0.0, 0.1, 100)], 1)
    for _ in range(500):
        x = np.stack([1 - 1.4 * x[:, 0] ** 2 + x[:, 1], 0.3 * x[:, 0]], 1)
    return x


CHAINS = [
    Chain(
        "cat map",
        "V. I. Arnold, A. Avez, Ergodic Problems of Classical Mechanics, 1968: ±log((3 + √5)/2). Of N steps, exactly: "
        "[[2, 1], [1, 1]]^N = [[F(2N+1), F(2N)], [F(2N), F(2N−1)]], whose first column has the squared length F(4N+1), "
        "and R₁₁ of its QR decomposition is that length; det 1",
        Cat,
        CAT_STEPS,
        lambda: np.array([[0.1, 0.2], [0.3, 0.9]]),
        lambda x: 0.0,
        cat,
        (CAT, 0.02),
    ),
    Chain(
        "logistic map",
        "S. Ulam, J. von Neumann, 1947: x = sin²θ goes to sin²2θ, so that the derivative of N steps is "
        "2^N sin(2^(N+1)θ)/sin 2θ; the limit is log 2",
        Logistic,
        LOGISTIC_STEPS,
        lambda: np.array([[0.3], [0.123], [0.77]]),
        lambda x: logistic(x)[0],
        logistic,
    ),
    Chain(
        "Hénon map",
        "M. Hénon, A Two-Dimensional Mapping with a Strange Attractor, 1976: det J = −b everywhere, so that the sum is "
        "log b at any length; the largest is 0.4192 (J. C. Sprott, Chaos and Time-Series Analysis, 2003)",
        Henon,
        HENON_STEPS,
        on_henon_attractor,
        lambda x: math.log(0.3),
        None,
        (0.4192, 0.01),
    ),
]
CHAIN_BY_NAME = {c.name: c for c in CHAINS}


def chain(name: str) -> nn.Module:
    found = CHAIN_BY_NAME[name]
    return Steps(found.step, found.count).double().eval()


# --- Held against what was found.

LOGS = ("log_abs_det", "log_volume")
# Of quantities that are 0 in truth: the root of a difference of squares loses half the digits.
AROUND_ZERO = {"non_normality": 1e-6}


def hold(found: dict[str, Any], truth: dict[str, float], rel: float = 1e-9) -> None:
    """Every figure that is known in closed form, but the logarithm of a J that is singular."""
    for name, value in truth.items():
        got = float(found[name])
        if value == math.inf:
            assert got > 1e14, (name, got)
        elif value != -math.inf:
            slack = AROUND_ZERO.get(name, 1e-10) + rel * abs(value)
            assert abs(got - value) <= slack, (name, got, value)


def hold_sigma(found: Sequence[float], truth: Sequence[float], slack: float = 1e-10) -> None:
    """Singular values, descending; of an estimate the largest ones."""
    want = np.sort(np.asarray(truth))[::-1][: len(found)]
    assert np.all(np.diff(found) <= 0)
    assert np.abs(np.asarray(found) - want).max() <= slack * want[0], (found, want)


def hold_eigenvalues(found: Sequence[Sequence[float]], truth: Sequence[complex]) -> None:
    """As sets with multiplicities, |λ| descending."""
    got = np.array([complex(*pair) for pair in found])
    assert np.all(np.diff(abs(got)) <= 1e-12)
    gaps = abs(got[:, None] - np.asarray(truth)[None])
    rows, columns = linear_sum_assignment(gaps)
    assert len(rows) == len(truth) == len(got)
    assert gaps[rows, columns].max() < 1e-8


def hold_estimates(found: dict[str, Any], truth: dict[str, float], reach: dict[str, float], settles: bool) -> set[str]:
    """Every figure that is known and was estimated: value ± 1.96 stderr holds it, and the error says something.

    Args:
        found: of one sample, ``<figure>`` and ``<figure>_stderr``.
        truth: of the same sample.
        reach: the largest standard error that says something; of other figures a fifth of the truth.
        settles: log|det J| must not be refused.

    Returns:
        The names of these figures.
    """
    names = {name for name, value in truth.items() if name in found and name != "condition" and math.isfinite(value)}
    for name in sorted(names):
        value, error = float(found[name]), float(found[f"{name}_stderr"])
        if name in LOGS and not settles and math.isnan(value):
            continue
        rounding = 1e-12 * max(abs(truth[name]), 1.0)
        assert abs(value - truth[name]) <= 1.96 * error + rounding, (name, value, error, truth[name])
        assert error <= reach.get(name, 0.2 * abs(truth[name])) + rounding, (name, value, error, truth[name])
    for name in LOGS:
        assert truth.get(name) != -math.inf or math.isnan(float(found.get(name, "nan"))), (name, found[name])
    return names
