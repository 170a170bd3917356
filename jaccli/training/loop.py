"""Training a network so that J comes near the identity, or another goal, while its function stays in place.

The parameters that are restored in the end are those with the best objective on the validation samples. So that an
interrupt at any moment leaves a valid result, ``Training`` is a generator of steps, and ``best`` is replaced by one
assignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import RefusedError, UnsupportedError, warn
from jaccli.networks.network import Network
from jaccli.text.wording import worded
from jaccli.training.descent import Descent, Parameter
from jaccli.training.goal import Goal
from jaccli.training.samples import Batch, NoisyCopies, Samples
from jaccli.training.task import TrainingTask, outputs_of

if TYPE_CHECKING:
    from jaxtyping import Float

# The most validation samples that the best parameters are chosen by, and the least products for each. The vectors are
# the same in every evaluation: with new ones an evaluation would win by luck.
VALIDATION_SAMPLES = 512
VALIDATION_PROBES = 4
# How often a run is evaluated, and after how many steps at the latest: an interrupt loses no more than those.
EVALUATIONS = 50
EVALUATE_WITHIN = 20
# The most samples for which outputs are held at noisy copies too: a network can become another function between few.
# Measured with 8 samples of 8 numbers: outputs at other samples moved by 0.2 of their spread with noisy
# copies, by 1.1 without; with 256 samples there was no difference.
FEW_SAMPLES = 256
JITTER = 0.5


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        steps: of Adam.
        lr: the highest learning rate.
        size: samples of a step.
        patience: number of steps without a better one after which it stops; None: go on to the end.
        seed: of batches, noise and random vectors.
        jitter: noise of the copies at which the function is held too, in units of each feature's spread over
            samples; None: ``JITTER`` of at most ``FEW_SAMPLES`` samples, else none.
    """

    steps: int = 1000
    lr: float = 3e-3
    size: int = 256
    patience: int | None = None
    seed: int = 0
    jitter: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Means over the validation samples: the objective that is minimised, and its two parts as they are reported."""

    objective: float
    task: float
    relative: float


@dataclass(frozen=True)
class TrainingStep:
    """Task loss and relative distance of the batch of one step; of some steps an evaluation; the best step so far."""

    number: int
    task: float
    relative: float
    evaluation: Evaluation | None
    best: int


@dataclass(frozen=True)
class Best:
    """The best parameters so far, in copies."""

    step: int
    evaluation: Evaluation
    values: list[Tensor]


class Training:
    """A run: iterate over it, and whenever that ends, however it ends, ``restore`` the best parameters.

    Minimises task/scale + weight · mean ‖J − goal‖²/n by Adam, with the network in the mode that it is in, so that
    BatchNorm and Dropout stand still in eval mode. Without targets the task is to stay where it was, at the samples
    and, with ``recipe.jitter``, at noisy copies of them.

    Args:
        network: whose parameters are changed in place.
        parameters: those that are trained; the others stay.
        samples: to train on.
        validation: by which the best parameters are chosen.
        task: what the network is to do besides.
        goal: what J is trained towards.
        recipe: options of the training.

    Cost of a step: two forward passes and their backward passes, two more with ``jitter``; and those of
    ``identity_deviation`` for each pair. Memory: the parameters five times (gradients, Adam, the best), and the
    copy of the network that the task holds.
    """

    def __init__(
        self,
        network: Network,
        parameters: Sequence[Parameter],
        samples: Samples,
        validation: Samples,
        task: TrainingTask,
        goal: Goal,
        recipe: Recipe,
    ) -> None:
        self.network, self.samples, self.task, self.goal, self.recipe = network, samples, task, goal, recipe
        self.values = [one.value for one in parameters]
        self.steps, self.stopped = 0, "steps"
        self.best: Best | None = None
        self._changed = False  # whether parameters have changed since the last evaluation
        self._validation = list(validation.evenly_spaced(VALIDATION_SAMPLES).batches(recipe.size))
        jitter = recipe.jitter if recipe.jitter is not None else JITTER if len(samples) <= FEW_SAMPLES else 0.0
        outputs_are_held = samples.targets is None and samples.inputs.args[0].is_floating_point()
        self._noisy = NoisyCopies(samples, jitter) if jitter and outputs_are_held else None
        # Batches and noise are drawn on the CPU, so that a seed gives the same run on every device; probes where J is.
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._probes = torch.Generator(self.values[0].device).manual_seed(recipe.seed)

    def __iter__(self) -> Iterator[TrainingStep]:
        """One step at a time.

        Raises:
            RefusedError: the loss is not finite from the start.
            UnsupportedError: J does not depend on the parameters.
        """
        recipe = self.recipe
        batches = self.samples.shuffled(recipe.size, self._generator)
        evaluation = self._first_evaluation(next(batches))
        yield TrainingStep(0, evaluation.task, evaluation.relative, evaluation, 0)
        descent = Descent(self.values, recipe.steps, recipe.lr)
        every = min(max(1, recipe.steps // EVALUATIONS), recipe.patience or recipe.steps, EVALUATE_WITHIN)
        assert self.best is not None
        # ``patience`` bounds the interval as well: it is counted in evaluations that were no better.
        for number, batch in zip(range(1, recipe.steps + 1), batches, strict=False):
            task, squares = self._losses(batch)
            loss = task / self.task.scale + self.goal.weight * squares.mean()
            if not bool(loss.isfinite()):
                self.stopped = "not finite"
                warn(worded("the loss of step {n} is not finite: stopped there; a smaller {lr} may help", n=number))
                return
            self._changed = True
            descent.step(loss)
            self.steps = number
            latest = self._evaluate_and_compare() if number % every == 0 or number == recipe.steps else None
            yield TrainingStep(number, float(task.detach()), self.goal.relative(squares), latest, self.best.step)
            if recipe.patience is not None and number - self.best.step >= recipe.patience:
                self.stopped = "patience"
                return

    def restore(self) -> None:
        """The best parameters so far into the network; the present ones count as well."""
        if self._changed:
            self._evaluate_and_compare()
        if self.best is not None:
            with torch.no_grad():
                for value, kept in zip(self.values, self.best.values, strict=True):
                    value.copy_(kept)

    def _evaluate_and_compare(self) -> Evaluation:
        """A evaluation, and the present parameters kept if they are better."""
        evaluation = self._evaluate()
        self._changed = False
        if self.best is None or evaluation.objective < self.best.evaluation.objective:
            self._record_best(self.steps, evaluation)
        return evaluation

    def _losses(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "pairs batch"]]:
        """The task loss, and the squared distances over n."""
        task = self.task.loss(outputs_of(self.network, batch.inputs), batch)
        if self._noisy is not None:
            near = self._noisy.batch(batch.inputs.batch, self._generator)
            task = (task + self.task.loss(outputs_of(self.network, near.inputs), near)) / 2
        return task, self.goal.squared_distances(self.network, batch, self._probes)

    def _first_evaluation(self, batch: Batch) -> Evaluation:
        evaluation = self._evaluate()
        task, squares = self._losses(batch)
        distance = squares.mean()
        if not math.isfinite(evaluation.objective) or not bool((task + distance).isfinite()):
            parts = f"task {task:g}, deviation {self.goal.relative(squares):g}"
            raise RefusedError(
                f"the loss is not finite before the first step: {parts}",
                "expected finite samples and targets, and layers whose values are finite",
            )
        if bool(distance) and not _depends_on(distance, self.values):
            raise UnsupportedError(
                "J does not change with the parameters: the gradient of its distance is zero",
                "expected weights between source and target, or before an activation that is not piecewise linear",
                "choose other layers",
            )
        self._record_best(0, evaluation)
        return evaluation

    def _record_best(self, number: int, evaluation: Evaluation) -> None:
        # One assignment of a complete object: an interrupt finds the previous best or the new one, both whole.
        self.best = Best(number, evaluation, [value.detach().clone() for value in self.values])

    def _evaluate(self) -> Evaluation:
        probes = torch.Generator(self.values[0].device).manual_seed(self.recipe.seed + 1)
        many = max(self.goal.probes, VALIDATION_PROBES)
        tasks, squares = [], []
        with torch.no_grad():
            for batch in self._validation:
                count = batch.inputs.batch
                tasks.append(float(self.task.loss(outputs_of(self.network, batch.inputs), batch)) * count)
                squares.append(self.goal.squared_distances(self.network, batch, probes, many))
        together = torch.cat(squares, 1)
        task = sum(tasks) / together.shape[1]
        objective = task / self.task.scale + self.goal.weight * float(together.mean())
        return Evaluation(objective, task, self.goal.relative(together))


def _depends_on(loss: Float[Tensor, ""], values: Sequence[Tensor]) -> bool:
    """Whether the gradient of the loss by any of the values, of any shapes, is not zero."""
    if not loss.requires_grad:
        return False
    gradients = torch.autograd.grad(loss, values, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in gradients)
