"""‖J‖_F² and tr J of a map from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli.errors import note
from jaccli.linear_maps.matrix_free import MatrixFree
from jaccli.linear_maps.norms import orthonormal
from jaccli.statistics.jackknife import Estimate, Figures, jackknifed, within

# Products of a first look, which shows whether a few directions make up most of the map.
PILOT = 8
# They do if the square of one probe varies by this share of its mean, or more: the share is 2 over the number of
# directions that count.
CONCENTRATED = 0.5
# With a tolerance: the first number of probes.
FIRST = 16
# Without one, and without a number of probes: so many.
PROBES = 64
# The rounding of products, in units of their machine epsilon.
ROUNDING = 4


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
        g = self._signs(count)
        self.images.append(self.a.matmat(g))
        if self.square:
            self.vectors.append(g)
        self.spent += count

    def deflate(self, rank: int) -> None:
        """Make ``rank`` directions known exactly. Cost: twice as many products, and a QR decomposition."""
        image = self.a.matmat(self._signs(rank))
        if self.basis is not None:
            image = torch.cat([self.basis, image], 2)
        self.basis, _ = orthonormal(image)
        self.known = self.a.rmatmat(self.basis)
        self.spent += rank + self.basis.shape[2]

    def _signs(self, count: int) -> Tensor:
        batch, _, n_in = self.a.shape
        signs = torch.randint(0, 2, (batch, n_in, count), generator=self.generator, dtype=torch.int8)
        return (2 * signs - 1).to(self.a.device, self.a.dtype)

    def samples(self) -> Tensor:
        """‖(I − QQᵀ)Jg‖² and gᵀ(I − QQᵀ)Jg of every probe: ``(m, batch, 2)`` float64, on the CPU."""
        samples = []
        for number, image in enumerate(self.images):
            rest = image if self.basis is None else image - self.basis @ (self.basis.mT @ image)
            squares = rest.double().square().sum(1)
            traces = (rest.double() * self.vectors[number]).sum(1) if self.square else torch.zeros_like(squares)
            samples.append(torch.stack([squares, traces], -1).movedim(1, 0))
        return torch.cat(samples).cpu()

    def exact(self) -> Tensor:
        """‖QᵀJ‖² and tr QᵀJQ: ``(batch, 2)`` float64, on the CPU."""
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
    a: MatrixFree,
    figures: Callable[[Tensor], Figures],
    main: str,
    *,
    probes: int | None = None,
    tolerance: float | None = None,
    generator: torch.Generator,
) -> dict[str, Estimate]:
    """Figures of ‖J‖_F² and tr J, each with its standard error.

    Args:
        a: the map.
        figures: ``(…, batch, 2)``, the squared norm and the trace (0 of a map that is not square) → figures.
        main: the figure that ``tolerance`` is of.
        probes: products to spend; 64 if neither is given. With as many as rows or columns figures are exact.
        tolerance: the largest 95 % interval to either side, as a share of the main figure; probes are doubled until
            it is met.
        generator: draws the probes.

    Cost: as many products; memory for (batch, n, probes) numbers, twice.
    """
    smaller = min(a.shape[1:])
    limit = probes if probes is not None else smaller if tolerance is not None else min(PROBES, smaller)
    if limit >= smaller and tolerance is None:
        return _exact(a, figures)
    run = Probing(a, generator)
    run.draw(min(PILOT, limit) if tolerance is None else min(FIRST, smaller))
    while True:
        count = run.samples().shape[0]
        estimates = jackknifed(run.samples(), lambda mean: figures(mean + run.exact()))
        if tolerance is not None and within(estimates[main], tolerance):
            return _rounded(estimates, a)
        if tolerance is not None and run.spent + count >= smaller:
            return _exact(a, figures)
        left = limit - run.spent if tolerance is None else count
        if left <= 0:
            return _rounded(estimates, a)
        if run.concentrated and run.basis is None and left >= PILOT:
            run.deflate(max(1, left // 4 if tolerance is None else left))
        else:
            run.draw(left)


def _exact(a: MatrixFree, figures: Callable[[Tensor], Figures]) -> dict[str, Estimate]:
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
