"""‖J‖_F² and tr J of a map from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import note
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.linear_maps.norms import orthonormal
from jaccli.statistics.jackknife import Estimate, NamedFigures, jackknifed, within

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Probes of the pilot, which shows whether a few directions make up most of the map.
PILOT = 8
# They do if the variance of a probe's square is this share of its squared mean, or more. For a map with r equal
# singular values that share is about 2 / r: up to four directions.
CONCENTRATED = 0.5
# The first number of probes where a tolerance is stated.
FIRST = 16
# The number of probes where neither a tolerance nor a number is stated.
PROBES = 64
# The rounding of products, in units of their machine epsilon.
ROUNDING = 4


@dataclass(frozen=True)
class Effort:
    """How much an estimate may cost.

    Args:
        probes: independent random vectors; each figure's own number if None.
        tolerance: the largest 95 % interval to either side, as a share of the main figure.
        generator: draws the probes.
        most: vectors that may be in memory at once.
    """

    probes: int | None
    tolerance: float | None
    generator: torch.Generator
    most: int | None = None

    @property
    def products(self) -> int | None:
        """Products of a probing without a tolerance: ``probes``, or as many as fit the memory."""
        if self.tolerance is not None or self.probes is not None or self.most is None:
            return self.probes
        return min(self.most, PROBES)


def effort_of(probes: int | None, tolerance: float | None, seed: int) -> Effort:
    """An effort whose probes are drawn from a seed."""
    return Effort(probes, tolerance, torch.Generator().manual_seed(seed))


def random_signs(a: MatrixFree, n: int, count: int, generator: torch.Generator) -> Shaped[Tensor, "batch n k"]:
    """Vectors of ±1 for each sample of a map, drawn on the CPU."""
    signs = torch.randint(0, 2, (a.shape[0], n, count), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(a.device, a.dtype)


@dataclass
class Probing:
    """Probes of a map, and the directions that are known exactly.

    With Q an orthonormal basis of r directions, ‖J‖² = ‖QᵀJ‖² + ‖(I − QQᵀ)J‖² and tr J = tr QᵀJQ + tr (I − QQᵀ)J;
    the first terms are known, the second ones are means over probes g of ±1 of ‖(I − QQᵀ)Jg‖² and gᵀ(I − QQᵀ)Jg
    (R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, *Hutch++*, 2021). Q comes from products with other vectors,
    so that given Q the probes are independent and unbiased, and their spread is an honest error.

    Args:
        a: the map.
        generator: draws the probes, on the CPU.
        spent: products so far, with J and with Jᵀ.
        vectors: the probes g, ``(batch, n_in, k)`` each, of a square map.
        images: Jg, ``(batch, n_out, k)`` each.
        basis: Q, ``(batch, n_out, r)``.
        known: JᵀQ, ``(batch, n_in, r)``.
    """

    a: MatrixFree
    generator: torch.Generator
    spent: int = 0
    vectors: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    basis: Tensor | None = None
    known: Tensor | None = None

    @property
    def square(self) -> bool:
        """Whether the map is square: only then it has a trace."""
        return self.a.shape[1] == self.a.shape[2]

    def draw(self, count: int) -> None:
        """Take ``count`` more probes. Cost: as many products."""
        g = random_signs(self.a, self.a.shape[2], count, self.generator)
        self.images.append(self.a.matmat(g))
        if self.square:
            self.vectors.append(g)
        self.spent += count

    def deflate(self, rank: int) -> None:
        """Make ``rank`` directions known exactly, once. Cost: twice as many products, and a QR decomposition."""
        self.basis, _ = orthonormal(self.a.matmat(random_signs(self.a, self.a.shape[2], rank, self.generator)))
        self.known = self.a.rmatmat(self.basis)
        self.spent += rank + self.basis.shape[2]

    def samples(self) -> Shaped[Tensor, "m batch 2"]:
        """‖(I − QQᵀ)Jg‖² and gᵀ(I − QQᵀ)Jg of each of m probes: float64, on the CPU."""
        samples = []
        for number, image in enumerate(self.images):
            rest = image if self.basis is None else image - self.basis @ (self.basis.mT @ image)
            squares = rest.double().square().sum(1)
            traces = (rest.double() * self.vectors[number]).sum(1) if self.square else torch.zeros_like(squares)
            samples.append(torch.stack([squares, traces], -1).movedim(1, 0))
        return torch.cat(samples).cpu()

    def exact(self) -> Shaped[Tensor, "batch 2"]:
        """‖QᵀJ‖² and tr QᵀJQ: float64, on the CPU."""
        if self.basis is None or self.known is None:
            return torch.zeros(self.a.shape[0], 2, dtype=torch.float64)
        known = self.known.double()
        trace = (known * self.basis).sum((1, 2)) if self.square else known.new_zeros(self.a.shape[0])
        return torch.stack([known.square().sum((1, 2)), trace], -1).cpu()

    @property
    def concentrated(self) -> bool:
        """Whether, for any sample, few directions make up most of what is not known yet."""
        squares = self.samples()[..., 0]
        share = squares.mean(0) / (squares.mean(0) + self.exact()[:, 0]).clamp(min=1e-300)
        varies = squares.var(0) / squares.mean(0).square().clamp(min=1e-300)
        return bool((varies * share.square() > CONCENTRATED).any())


def estimated(
    a: MatrixFree, figures: Callable[[Tensor], NamedFigures], main: str, effort: Effort
) -> dict[str, Estimate]:
    """Figures of ‖J‖_F² and tr J, each with its standard error.

    Args:
        a: the map.
        figures: ``(…, batch, 2)``, the squared norm and the trace (0 of a map that is not square) → figures.
        main: the figure that the tolerance is of.
        effort: its ``products`` are spent, 64 if it states neither those nor a tolerance; with as many as rows or
            columns the figures are exact. With a tolerance, probes are doubled until it is met.

    Cost: as many products; memory for (batch, n, probes) numbers, twice.

    Example:
        >>> import jaccli
        >>> j = jaccli.operator(torch.nn.Tanh(), torch.zeros(1, 9))  # the identity
        >>> moments = lambda mean: {"norm": mean[..., 0].sqrt(), "trace": mean[..., 1]}
        >>> estimates = estimated(j, moments, "norm", effort_of(probes=4, tolerance=None, seed=0))
        >>> estimates["norm"].value.item(), estimates["trace"].value.item()
        (3.0, 9.0)
    """
    smaller, probes, tolerance = min(a.shape[1:]), effort.products, effort.tolerance
    limit = probes if probes is not None else smaller if tolerance is not None else min(PROBES, smaller)
    if limit >= smaller and tolerance is None:
        return _exact(a, figures)
    run = Probing(a, effort.generator)
    run.draw(min(PILOT, limit) if tolerance is None else min(FIRST, smaller))
    while True:
        count = run.samples().shape[0]
        estimates = jackknifed(run.samples(), lambda mean: figures(mean + run.exact()))
        if tolerance is not None and within(estimates[main], tolerance):
            return _rounded(estimates, a)
        if tolerance is not None and run.spent + count >= smaller:
            return _exact(a, figures)
        # Without a tolerance what is left of the products; with one, as many probes again.
        left = limit - run.spent if tolerance is None else count
        if left <= 0:
            return _rounded(estimates, a)
        if run.concentrated and run.basis is None and left >= PILOT:
            # A direction costs two products, one that finds it and one with Jᵀ: half of what is left, the rest probes.
            run.deflate(max(1, left // 4 if tolerance is None else left))
        else:
            run.draw(left)


def _exact(a: MatrixFree, figures: Callable[[Tensor], NamedFigures]) -> dict[str, Estimate]:
    """Figures of ‖J‖_F² and tr J, ``(batch, 2)``, from all rows or columns. Cost: as many products."""
    square = a.shape[1] == a.shape[2]
    squares = a.frobenius().square()
    trace = a.trace() if square else torch.zeros_like(squares)
    values = figures(torch.stack([squares, trace], -1).cpu())
    note(f"as many products as J of {a.shape[1]} x {a.shape[2]} takes: the norm and the trace are exact")
    exact = {name: Estimate(value, torch.zeros_like(value)) for name, value in values.items()}
    return _rounded(exact, a)


def _rounded(estimates: dict[str, Estimate], a: MatrixFree) -> dict[str, Estimate]:
    """Standard errors no smaller than the rounding of products."""
    eps = ROUNDING * torch.finfo(a.dtype).eps
    return {
        name: Estimate(e.value, torch.maximum(e.stderr, eps * e.value.abs().clamp(min=a.shape[2] ** 0.5 * eps)))
        for name, e in estimates.items()
    }
