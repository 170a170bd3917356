"""The goal that J is trained towards, and how far J is from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import UnsupportedError, note
from jaccli.linear_maps.norms import norm
from jaccli.linear_maps.square import check_square
from jaccli.networks.network import Network
from jaccli.penalty.choices import Estimator, EstimatorOption, Towards
from jaccli.penalty.identity import deviation_from, of_factors
from jaccli.planning.decide import TooLarge
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.blocks import RunOptions, Stopwatch, stream
from jaccli.text.wording import worded
from jaccli.training.samples import Batch, Samples
from jaccli.training.task import TrainingTask, outputs_of

if TYPE_CHECKING:
    from jaxtyping import Float

# The most rows and columns of a J that is trained on itself. Of a larger one, products with random vectors cost a tenth
# and less of it for each step (768 x 768, convolutions: a hundredth), and came as far in as many steps.
EXACT_UP_TO = 64
# Products a sample that the report is estimated from where J does not fit the memory: good to a few per cent.
REPORT_PROBES = 64


@dataclass(frozen=True)
class Goal:
    """What J of each pair is trained towards, and how its distance from that is taken.

    Args:
        pairs: source and target.
        sizes: n of each, the smaller side of J; what is trained is the squared distance over n.
        shapes: of the source and target activations of each.
        towards: the goal, by name.
        weight: of the distance, against the task.
        estimator: how the distance is taken while training.
        probes: products for each sample, of ``hutchinson``.
    """

    pairs: tuple[Pair, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    towards: Towards = "identity"
    weight: float = 1.0
    estimator: Estimator = "exact"
    probes: int = 1

    def squared_distances(
        self, network: Network, batch: Batch, generator: torch.Generator, probes: int = 0
    ) -> Float[Tensor, "pairs batch"]:
        """Squared distance over n, differentiable where gradients are on."""
        inputs = batch.inputs
        options = (self.estimator, probes or self.probes, generator, inputs.args[1:], inputs.kwargs)
        distances = [
            deviation_from(self.towards, network, inputs.args[0], str(source), str(target), *options) / n
            for (source, target), n in zip(self.pairs, self.sizes, strict=True)
        ]
        return torch.stack(distances)

    def relative(self, squares: Float[Tensor, "pairs batch"]) -> float:
        """The mean relative distance: the mean of the roots; of estimates the root of the mean.

        An estimate is unbiased, and its root is too small on average (Jensen's inequality).
        """
        values = squares.detach()
        return float(values.sqrt().mean() if self.estimator == "exact" else values.mean().sqrt())


def goal_of(
    network: Network,
    samples: Samples,
    pairs: Sequence[Pair],
    towards: Towards,
    weight: float,
    estimator: EstimatorOption,
    probes: int,
) -> Goal:
    """The goal for pairs that can have it. Cost: a forward pass of two samples, and a backward pass for each pair.

    Raises:
        UsageError: J is not square, and the goal is a multiple of the identity.
        UnsupportedError: no path leads from source to target.
    """
    two_samples = samples.first(2).inputs
    with computing(network), exact_attention(True):
        linearizations = linearize(network, two_samples, pairs)
    fitting = [one for one in linearizations if _fits(one, square="identity" in towards)]
    if not fitting:
        raise UnsupportedError("none of the layers that the glob matches can be trained", "notes say why of each")
    functions = [one.linear.f for one in fitting]
    sizes = tuple(min(f.n_out, f.n_in) for f in functions)
    largest = max(max(f.n_out, f.n_in) for f in functions)
    chosen: Estimator = ("exact" if largest <= EXACT_UP_TO else "hutchinson") if estimator == "auto" else estimator
    shapes = tuple((f.source.view.shape, f.target.view.shape) for f in functions)
    return Goal(tuple(one.pair for one in fitting), sizes, shapes, towards, weight, chosen, probes)


def _fits(linearization: Linearization, square: bool) -> bool:
    """Whether a pair can be trained. One that was named must fit; one that a glob gave is left out with a note."""
    f, globbed = linearization.linear.f, linearization.pair[0].globbed
    size = f"J of {linearization.name} is {f.n_out} x {f.n_in}"
    if square and f.n_out != f.n_in:
        if not globbed:
            remedy = worded("{layer_sizes}; {towards:orthogonal} and {towards:zero} take any J")
            check_square(f.n_out, f.n_in, f"J of {linearization.name}", remedy)
        note(f"left out: {size}, not square")
    elif linearization.trivial:
        same = f"{linearization.name}: source and target are the same activation"
        if not globbed:
            raise UnsupportedError(same, "J is I, whatever the parameters are", "choose other layers")
        note(f"left out: {same}, J is I")
    elif not linearization.connected:
        if not globbed:
            raise UnsupportedError(
                f"{linearization.name}: {linearization.why_zero}",
                "J is zero, whatever the parameters are",
                "choose other layers",
            )
        note(f"left out: {linearization.name}: {linearization.why_zero}")
    return linearization.connected and not linearization.trivial and (f.n_out == f.n_in or not square)


@dataclass(frozen=True)
class TrainingFigures:
    """Means over samples.

    Args:
        samples: how many.
        task: loss.
        moved: how far outputs are from the original's: root mean square, in units of their spread over samples.
        frobenius: ‖J − goal‖_F of each pair; for ``orthogonal`` ‖JJᵀ − I‖_F.
        relative: that over √n.
        worst: the largest ``relative``.
        estimated: from products, where J does not fit the memory.
    """

    samples: int
    task: float
    moved: float
    frobenius: tuple[float, ...]
    relative: tuple[float, ...]
    worst: tuple[float, ...]
    estimated: bool = False


def figures(
    network: Network, samples: Samples, goal: Goal, task: TrainingTask, size: int, watch: Stopwatch
) -> TrainingFigures:
    """The figures of the network at its present parameters, from J in float64, as ``jaccli deviation`` takes it.

    Where J does not fit the memory they are estimated, with a note.
    """
    moved, losses = 0.0, 0.0
    with torch.no_grad():
        for batch in samples.batches(size):
            outputs, count = outputs_of(network, batch.inputs), batch.inputs.batch
            moved += float(task.original.moved(outputs, batch)) * count
            losses += float(task.loss(outputs, batch)) * count
    try:
        distances, estimated = _exact(network, samples, goal, watch), False
    except TooLarge as error:
        note(f"{error.given}: the report is estimated from {REPORT_PROBES} products a sample")
        distances, estimated = _estimated(network, samples, goal, size), True
    shares = [row / math.sqrt(n) for row, n in zip(distances, goal.sizes, strict=True)]
    return TrainingFigures(
        len(samples),
        losses / len(samples),
        math.sqrt(moved / len(samples)),
        tuple(float(row.mean()) for row in distances),
        tuple(float(row.mean()) for row in shares),
        tuple(float(row.max()) for row in shares),
        estimated,
    )


def _exact(network: Network, samples: Samples, goal: Goal, watch: Stopwatch) -> list[Tensor]:
    """Of each pair the distances of J from the goal, one a sample: the shape of each is ``(samples, )``."""
    distances: dict[Pair, list[Tensor]] = {pair: [] for pair in goal.pairs}
    for piece in stream(network, samples.inputs, goal.pairs, RunOptions(), watch=watch):
        for matrix in piece.outcome.matrix:  # one by one: in float64 a block may not fit a second time
            j = matrix.detach().to("cpu", torch.float64)
            distances[piece.pair].append(_distance(goal.towards, j))
    return [torch.stack(rows) for rows in distances.values()]


def _distance(towards: Towards, j: Float[Tensor, "n_out n_in"]) -> Float[Tensor, ""]:
    """The distance of a float64 J from the goal, by ``norm``: its square may be out of range."""
    if towards == "orthogonal":
        return of_factors(towards, j[None]).clamp(min=0).sqrt()[0]
    if towards == "zero":
        return norm(j)
    n = len(j)
    return norm(j - (1.0 if towards == "identity" else j.trace() / n) * torch.eye(n, dtype=j.dtype))


def _estimated(network: Network, samples: Samples, goal: Goal, size: int) -> list[Tensor]:
    """``_exact`` from products with random vectors: the shape of each is ``(samples, )``."""
    products = replace(goal, estimator="hutchinson")
    generator = torch.Generator(samples.inputs.args[0].device).manual_seed(0)
    with torch.no_grad():
        rows = [products.squared_distances(network, batch, generator, REPORT_PROBES) for batch in samples.batches(size)]
    squares = torch.cat(rows, 1).double().cpu().clamp(min=0)
    return [(row * n).sqrt() for row, n in zip(squares, goal.sizes, strict=True)]
