"""Training a network so that J comes near the identity, or another end, while its function stays in place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli.errors import RefusedError, UnsupportedError, warn
from jaccli.networks.network import Network
from jaccli.text.wording import worded
from jaccli.training.descent import Descent, Parameter
from jaccli.training.goal import Goal
from jaccli.training.samples import Around, Batch, Samples
from jaccli.training.task import TrainingTask, outputs_of

# The best parameters are chosen by so many held-out samples, and that many products with the same vectors each time.
WATCHED = 512
WATCH_PROBES = 4
# The held-out samples are looked at so often in a run, and at least every so many steps: an interrupt loses no more.
LOOKS = 50
LOOK_WITHIN = 20
# Between so few samples, or fewer, a network has room to become another function: it is held at noisy copies too.
# Of 8 samples of 8 numbers, outputs at others moved by 0.2 of their spread so, by 1.1 without; of 256 it was one.
FEW = 256
AROUND = 0.5


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        steps: of Adam.
        lr: the highest learning rate.
        size: samples of a step.
        patience: stop after so many steps without a better one; None: go on to the end.
        seed: of batches, noise and random vectors.
        around: noise of the copies at which the function is held too, in units of each feature's spread over
            samples; None: some, where samples are few.
    """

    steps: int = 1000
    lr: float = 3e-3
    size: int = 256
    patience: int | None = None
    seed: int = 0
    around: float | None = None


@dataclass(frozen=True)
class Look:
    """Where the network stands on the watched samples: what is minimised, and its two parts as they are reported."""

    objective: float
    task: float
    relative: float


@dataclass(frozen=True)
class TrainingStep:
    """What a step saw: task loss and relative distance of its batch, and now and then a look at other samples."""

    number: int
    task: float
    relative: float
    look: Look | None
    best: int


@dataclass(frozen=True)
class Best:
    """The best parameters so far, in copies."""

    step: int
    look: Look
    values: list[Tensor]


class Training:
    """A run: iterate over it, and whenever that ends, however it ends, ``restore`` the best parameters.

    Minimises task/scale + weight · mean ‖J − end‖²/n by Adam, with the network in the mode that it is in, so that
    BatchNorm and Dropout stand still in eval mode. Without targets the task is to stay where it was, at the samples
    and, with ``recipe.around``, at noisy copies of them.

    Args:
        network: whose parameters are changed in place.
        parameters: those of them that are.
        samples: to train on.
        watched: by which the best parameters are chosen.
        task: what the network is to do besides.
        goal: where J is to come.
        recipe: how.

    Cost of a step: two forward passes and their backward passes, two more with ``around``; and those of
    ``identity_deviation`` for each pair. Memory: the parameters five times (gradients, Adam, the best), and the
    copy of the network that the task holds.
    """

    def __init__(
        self,
        network: Network,
        parameters: Sequence[Parameter],
        samples: Samples,
        watched: Samples,
        task: TrainingTask,
        goal: Goal,
        recipe: Recipe,
    ) -> None:
        self.network, self.samples, self.task, self.goal, self.recipe = network, samples, task, goal, recipe
        self.values = [one.value for one in parameters]
        self.steps, self.stopped = 0, "steps"
        self.best: Best | None = None
        self._unseen = False  # whether parameters have changed since the last look
        few = watched.spread_out(WATCHED)
        self._watched = list(few.batches(recipe.size))
        around = recipe.around if recipe.around is not None else AROUND if len(samples) <= FEW else 0.0
        held = samples.targets is None and samples.inputs.args[0].is_floating_point()
        self._around = Around(samples, around) if around and held else None
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._probes = torch.Generator(self.values[0].device).manual_seed(recipe.seed)

    def __iter__(self) -> Iterator[TrainingStep]:
        """One step at a time.

        Raises:
            RefusedError: the loss is not finite from the start.
            UnsupportedError: J does not depend on the parameters.
        """
        recipe = self.recipe
        batches = self.samples.drawn(recipe.size, self._generator)
        look = self._first(next(batches))
        yield TrainingStep(0, look.task, look.relative, look, 0)
        descent = Descent(self.values, recipe.steps, recipe.lr)
        every = min(max(1, recipe.steps // LOOKS), recipe.patience or recipe.steps, LOOK_WITHIN)
        assert self.best is not None
        for number, batch in zip(range(1, recipe.steps + 1), batches, strict=False):
            task, squares = self._losses(batch)
            loss = task / self.task.scale + self.goal.weight * squares.mean()
            if not bool(loss.isfinite()):
                self.stopped = "not finite"
                warn(worded("the loss of step {n} is not finite: stopped there; a smaller {lr} may help", n=number))
                return
            self._unseen = True
            descent.step(loss)
            self.steps = number
            seen = self._compared() if number % every == 0 or number == recipe.steps else None
            yield TrainingStep(number, float(task.detach()), self.goal.relative(squares), seen, self.best.step)
            if recipe.patience is not None and number - self.best.step >= recipe.patience:
                self.stopped = "patience"
                return

    def restore(self) -> None:
        """The best parameters so far into the network; the present ones count as well."""
        if self._unseen:
            self._compared()
        if self.best is not None:
            with torch.no_grad():
                for value, kept in zip(self.values, self.best.values, strict=True):
                    value.copy_(kept)

    def _compared(self) -> Look:
        """A look, and the present parameters kept if they are better."""
        look = self._look()
        self._unseen = False
        if self.best is None or look.objective < self.best.look.objective:
            self._keep(self.steps, look)
        return look

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        task = self.task.loss(outputs_of(self.network, batch.inputs), batch)
        if self._around is not None:
            near = self._around.batch(batch.inputs.batch, self._generator)
            task = (task + self.task.loss(outputs_of(self.network, near.inputs), near)) / 2
        return task, self.goal.squares(self.network, batch, self._probes)

    def _first(self, batch: Batch) -> Look:
        look = self._look()
        task, squares = self._losses(batch)
        distance = squares.mean()
        if not math.isfinite(look.objective) or not bool((task + distance).isfinite()):
            parts = f"task {task:g}, deviation {self.goal.relative(squares):g}"
            raise RefusedError(
                f"the loss is not finite before the first step: {parts}",
                "expected finite samples and targets, and layers whose values are finite",
            )
        if bool(distance) and not _moves(distance, self.values):
            raise UnsupportedError(
                "J does not change with the parameters: the gradient of its distance is zero",
                "expected weights between source and target, or before an activation that is not piecewise linear",
                "choose other layers",
            )
        self._keep(0, look)
        return look

    def _keep(self, number: int, look: Look) -> None:
        # Made first, assigned at once: an interrupt finds the one or the other, whole.
        self.best = Best(number, look, [value.detach().clone() for value in self.values])

    def _look(self) -> Look:
        probes = torch.Generator(self.values[0].device).manual_seed(self.recipe.seed + 1)
        many = max(self.goal.probes, WATCH_PROBES)
        tasks, squares = [], []
        with torch.no_grad():
            for batch in self._watched:
                count = batch.inputs.batch
                tasks.append(float(self.task.loss(outputs_of(self.network, batch.inputs), batch)) * count)
                squares.append(self.goal.squares(self.network, batch, probes, many))
        together = torch.cat(squares, 1)
        task = sum(tasks) / together.shape[1]
        objective = task / self.task.scale + self.goal.weight * float(together.mean())
        return Look(objective, task, self.goal.relative(together))


def _moves(loss: Tensor, values: Sequence[Tensor]) -> bool:
    if not loss.requires_grad:
        return False
    gradients = torch.autograd.grad(loss, values, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in gradients)
