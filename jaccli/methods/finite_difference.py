"""Columns of J by central differences, with a step for every sample and coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.seeds import spans
from jaccli.methods.backward import check_tiling
from jaccli.methods.base import Method, MethodGap, MethodTask, attempt
from jaccli.methods.steps import (
    Pilot,
    Trials,
    best_columns,
    choose_step,
    column_norms,
    judge,
    step_scale,
    trial_steps,
)

if TYPE_CHECKING:
    from jaxtyping import Shaped


class FiniteDifference(Method):
    """Central differences of values. Needs no gradients, so it works where the backward pass is broken.

    The step of coordinate i in sample b is ``factor * scale[b, i]``. The scale comes from the point, the factor from a
    pilot: a few columns at many steps show the rounding noise and where truncation begins. Columns that a kink or
    strong curvature spoils are computed again with smaller steps. Columns of small coordinates are computed again with
    larger steps, where those prove right.

    Cost: 2 n_in evaluations, 28 (float32) or 46 (float64) for each pilot column, and the repeated columns; of at most
    16 columns each is a pilot, at more steps: 50 or 80. ``chunk`` of them are stacked in the batch, or one after
    another where the model accepts no other number of samples.
    Source: ``jaccli.methods.steps``; compare Moré and Wild 2012, "Estimating derivatives of noisy simulations".
    """

    name = "finite-difference"
    by = "column"
    kind = "plain forward"
    passes_each = 2
    differentiates = False
    drawback = "not exact"

    def fill(self, task: MethodTask) -> None:
        # Not inference_mode: a model may take gradients of its own inside.
        with torch.no_grad():
            difference = CentralDifferences(task)
            trial_bytes = defaults.TRY_ALL * task.out.numel() * 8  # all steps of all columns at once, in float64
            few = difference.n_in <= defaults.TRY_ALL and trial_bytes <= defaults.WORKING_SET
            squares = _every_step(difference) if few else _one_factor(difference)
            size = float(torch.linalg.vector_norm(task.out.double()))
        task.error_estimate = squares**0.5 / size if size else None


def _every_step(difference: CentralDifferences) -> float:
    """Few columns: the best of all steps for each sample and column. Returns the sum of squared errors."""
    task = difference.task
    columns, squares = best_columns(
        _trials(difference, difference.columns, difference.most, difference.n_out, defaults.STEPS_A_DECADE)
    )
    task.out.copy_(columns)
    task.tick(difference.n_in)
    return squares


def _one_factor(difference: CentralDifferences) -> float:
    """Many columns: steps by the factor of a pilot, corrected where it is wrong. Returns the sum of squared errors."""
    task, n_in = difference.task, difference.n_in
    count = min(max(n_in // 8, defaults.PILOT_COLUMNS), defaults.TRY_ALL)
    # Coordinates that are small by chance would ask for a factor far too large for the others: they grow later.
    share = (difference.scale / difference.most).amin(0)
    typical = (share * defaults.GROW >= 1).nonzero().flatten()
    candidates = typical if len(typical) >= defaults.PILOT_COLUMNS else share.argsort(descending=True)[:count]
    columns = candidates[_evenly(count, candidates)]
    trials = _trials(difference, columns, difference.scale, defaults.PILOT_OUTPUTS)
    pilot = choose_step(trials, difference.scale[:, columns].double())
    squares = 0.0
    for start, stop in spans(n_in, max(task.chunk // 2, 1)):
        block = CoordinateBlock(difference, pilot, difference.columns[start:stop])
        block.shrink()
        block.grow()
        task.out[:, :, start:stop] = block.quotients
        squares += block.squared_error()
        task.tick(stop - start)
    return squares


def _trials(
    difference: CentralDifferences,
    columns: Shaped[Tensor, "k"],
    most: Shaped[Tensor, "batch n_in"],
    outputs: int,
    a_decade: int = defaults.PILOT_STEPS_A_DECADE,
) -> Trials:
    """Some columns at many steps.

    Args:
        difference: f at the samples.
        columns: coordinates.
        most: the largest scale that each coordinate could have.
        outputs: how many of each sample are compared, at most.
        a_decade: steps for each factor of ten.
    """
    steps = trial_steps(difference.scale[:, columns], most[:, columns], a_decade)
    rows = _evenly(min(outputs, difference.n_out), difference.value[0])
    weight = (difference.n_out / len(rows)) ** 0.5  # so that norms are those of whole columns
    quotients, bends = [], []
    for step in steps:
        quotient, bend = difference.central(columns, step.to(difference.point.dtype))
        quotients.append(weight * quotient[:, rows].double())
        bends.append(bend.double())
    # Rounding to the nearest in f(x+h) − f(x−h), over 2: each output contributes eps/√24 of itself.
    rounding = torch.finfo(difference.value.dtype).eps / 24**0.5
    floor = rounding * torch.linalg.vector_norm(difference.value.double(), dim=1)
    return judge(steps, torch.stack(quotients), torch.stack(bends), floor)


def _evenly(count: int, vector: Shaped[Tensor, "n"]) -> Shaped[Tensor, "k"]:
    """At most ``count`` positions in a vector, evenly spaced, on its device."""
    last, device = len(vector) - 1, vector.device
    positions: Tensor = torch.linspace(0, last, count, dtype=torch.float64, device=device).round().long().unique()
    return positions


class CentralDifferences:
    """Evaluations of f around the point, as central differences of chosen columns.

    Attributes:
        point, value: ``(batch, n_in)`` and ``(batch, n_out)``.
        scale, most: ``(batch, n_in)``, see ``step_scale``.
        columns: ``(n_in,)`` all coordinates.
        tiling: whether several points can be stacked in the batch.
    """

    def __init__(self, task: MethodTask) -> None:
        self.task, self.linear = task, task.linear
        self.point = self.linear.point.reshape(self.linear.batch, -1)
        self.value = self.linear.value.reshape(self.linear.batch, -1)
        self.scale, self.most = step_scale(self.point)
        self.batch, self.n_out, self.n_in = self.linear.shape
        self.columns = torch.arange(self.n_in, device=self.point.device)
        self.tiling = not task.samples_mix and self._can_tile()

    def _can_tile(self) -> bool:
        try:
            check_tiling(self.task)
        except MethodGap as gap:
            self.task.notes.append(f"finite differences, one evaluation at a time: {gap}")
            return False
        return True

    def central(
        self, columns: Shaped[Tensor, "k"], steps: Shaped[Tensor, "batch k"]
    ) -> tuple[Shaped[Tensor, "batch n_out k"], Shaped[Tensor, "batch k"]]:
        """Difference quotients and second differences of some columns.

        Args:
            columns: coordinates.
            steps: in the units of the point.

        Returns:
            The quotients, and the norms of f(x+h) + f(x−h) − 2f(x).
        """
        quotients, curvature = [], []
        for start, stop in spans(len(columns), max(self.task.chunk // 2, 1)):
            up, down, width = self._both_sides(columns[start:stop], steps[:, start:stop])
            quotients.append((up - down) / width.unsqueeze(1))
            bend = (up - self.value.unsqueeze(-1)) + (down - self.value.unsqueeze(-1))
            curvature.append(column_norms(bend))
        return torch.cat(quotients, -1), torch.cat(curvature, -1)

    def _both_sides(
        self, columns: Shaped[Tensor, "k"], steps: Shaped[Tensor, "batch k"]
    ) -> tuple[Shaped[Tensor, "batch n_out k"], Shaped[Tensor, "batch n_out k"], Shaped[Tensor, "batch k"]]:
        """f at x + h and x − h, and the distance of these points in floating point."""
        k = len(columns)
        coordinates = self.point[:, columns]
        above, below = coordinates + steps, coordinates - steps
        points = self.point.repeat(2 * k, 1, 1)
        rows = torch.arange(k, device=points.device)
        points[rows, :, columns] = above.T
        points[k + rows, :, columns] = below.T
        values = self._evaluate(points)
        up, down = values[:k].permute(1, 2, 0), values[k:].permute(1, 2, 0)
        # Not 2h: x + h and x − h are rounded, and a quotient must divide by the distance that they really have.
        return up, down, above - below

    def _evaluate(self, points: Tensor) -> Tensor:
        """f at ``(copies, batch, n_in)`` points: ``(copies, batch, n_out)``."""
        shaped = points.reshape(-1, *self.linear.point.shape[1:])
        if self.tiling:
            values = attempt(self.linear.evaluate, shaped, points.shape[0])
        else:
            evaluate = self._alone if self.task.samples_mix else self._together
            values = torch.cat([attempt(evaluate, p) for p in points])
        return values.reshape(points.shape[0], self.batch, self.n_out)

    def _together(self, points: Tensor) -> Tensor:
        """f ``(batch, …)`` at ``(batch, n_in)`` points."""
        return self.linear.evaluate(points.reshape(self.linear.point.shape))

    def _alone(self, points: Tensor) -> Tensor:
        """f ``(batch, n_out)`` with one sample of ``(batch, n_in)`` points moved at a time, where samples mix."""
        moved = []
        for sample in range(self.batch):
            one = self.point.clone()
            one[sample] = points[sample]
            moved.append(self._together(one).reshape(self.batch, -1)[sample])
        return torch.stack(moved)


class CoordinateBlock:
    """Some columns with their steps, and estimates of their errors; ``(batch, k)``, quotients ``(batch, n_out, k)``."""

    def __init__(self, difference: CentralDifferences, pilot: Pilot, columns: Shaped[Tensor, "k"]) -> None:
        self.difference, self.pilot, self.columns = difference, pilot, columns
        self.steps = pilot.factor * difference.scale[:, columns]
        self.quotients, self.bend = difference.central(columns, self.steps)
        self.bias = pilot.bias * column_norms(self.quotients).double()

    def noise(self, steps: Shaped[Tensor, "batch k"]) -> Shaped[Tensor, "batch k"]:
        """The rounding error of columns at these steps."""
        return self.pilot.noise.reshape(-1, 1) / steps.double()

    def shrink(self) -> None:
        """Smaller steps where the second difference stands out: a kink within the step, or curvature."""
        for _ in range(defaults.MEND_ROUNDS):
            if not self._retry(self._spoilt(), self.steps / defaults.MEND_SHRINK):
                return
        # Out of rounds: what still stands out has an error of about its second difference.
        remaining = self.bend.double() / self.steps.double()
        self.bias = torch.where(self._spoilt(), remaining, self.bias)

    def _spoilt(self) -> Shaped[Tensor, "batch k"]:
        usual = self.noise(self.steps) + self.pilot.curve * column_norms(self.quotients).double()
        return self.bend.double() / self.steps.double() > defaults.MEND_RATIO * usual

    def grow(self) -> None:
        """Larger steps where a coordinate is small: by chance, if the quotient stays the same.

        Rounding is shared by the outputs, so the quotient of a small step is sometimes several times further off than
        usual. A change that stands out is therefore compared once more, from the larger step, where noise is less and
        a true change is as clear: a kink changes the quotient by as much again.
        """
        most = self.pilot.factor * self.difference.most[:, self.columns]
        # Of every column the last quotient that was tried and its step, whether it was used or not.
        last_quotient, last_step = self.quotients.clone(), self.steps.clone()
        may_grow = (most > defaults.GROW * last_step) & (last_step > 0)
        doubtful = torch.zeros_like(may_grow)
        while (in_play := may_grow.any(0)).any():
            further = torch.minimum(most, defaults.GROW * last_step)[:, in_play]
            quotients, _ = self.difference.central(self.columns[in_play], further)
            change = column_norms(quotients.double() - last_quotient[:, :, in_play].double())
            noise = self.noise(last_step[:, in_play])
            unchanged = may_grow[:, in_play] & (change <= defaults.STANDS_OUT * noise)
            self._use(in_play, unchanged, quotients, further)
            limit = torch.where(doubtful[:, in_play], defaults.STANDS_FAR_OUT, defaults.STANDS_BEYOND_DOUBT)
            unsure = change <= limit * noise
            last_quotient[:, :, in_play], last_step[:, in_play] = quotients, further
            doubtful[:, in_play] = ~unchanged
            may_grow[:, in_play] &= unchanged | unsure
            may_grow &= most > last_step

    def _retry(self, spoilt: Tensor, steps: Tensor) -> bool:
        """Compute spoilt columns with smaller steps, and use those that differ by more than noise; whether any did.

        Args:
            spoilt: ``(batch, k)`` booleans.
            steps: ``(batch, k)``.
        """
        in_play = spoilt.any(0)
        if not in_play.any():
            return False
        quotients, bend = self.difference.central(self.columns[in_play], steps[:, in_play])
        change = column_norms(quotients.double() - self.quotients[:, :, in_play].double())
        differs = change > defaults.STANDS_OUT * self.noise(steps[:, in_play])
        better = spoilt[:, in_play] & differs
        self._use(in_play, better, quotients, steps[:, in_play])
        # A column that is no better is not tried again.
        self.bend[:, in_play] = torch.where(better, bend, torch.zeros_like(bend))
        self.bias[:, in_play] = torch.where(better, torch.zeros_like(change), self.bias[:, in_play])
        return bool(better.any())

    def _use(self, in_play: Tensor, better: Tensor, quotients: Tensor, steps: Tensor) -> None:
        """Replace quotients and steps by the better ones; ``better`` is ``(batch, columns that are tried)``."""
        self.quotients[:, :, in_play] = torch.where(better.unsqueeze(1), quotients, self.quotients[:, :, in_play])
        self.steps[:, in_play] = torch.where(better, steps, self.steps[:, in_play])

    def squared_error(self) -> float:
        """Sum over samples and columns of the squared error expected."""
        error = self.noise(self.steps).square() + self.bias.square()
        return float(error[error.isfinite()].sum())
