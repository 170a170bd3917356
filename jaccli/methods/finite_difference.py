"""Columns of J by central differences, with a step for every sample and coordinate."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import JaccliError
from jaccli.methods.backward import check_tiling
from jaccli.methods.base import Method, MethodGap, Task, is_out_of_memory, reason, spans
from jaccli.methods.steps import Pilot, choose_step, column_norms, step_scale
from jaccli.names import MethodName


class FiniteDifference(Method):
    """Central differences; needs no gradients at all, so it works where backward is broken.

    The step of coordinate i in sample b is ``factor * scale[b, i]``. The scale comes from the
    point, the factor from a pilot: a few columns at several steps show the rounding noise and
    where truncation begins. Columns that a kink or strong curvature spoils are taken again with
    smaller steps. Cost: 2 n_in evaluations and about 14 for each pilot column, ``chunk`` of them
    stacked in the batch; one after another where the model is bound to its number of samples.
    """

    name: MethodName = "finite-difference"
    by: Literal["row", "column"] = "column"
    needs_graph = False

    def fill(self, task: Task) -> None:
        with torch.inference_mode():
            difference = Differences(task)
            pilot = _pilot(difference)
            steps = pilot.factor * difference.scale
            estimate = torch.zeros((), dtype=torch.float64)
            for start, stop in spans(difference.n_in, max(task.chunk // 2, 1)):
                columns = torch.arange(start, stop)
                block = _mended(difference, columns, steps, pilot)
                task.out[:, :, start:stop] = block[0]
                estimate += block[1]
                task.tick(stop - start)
            size = float(task.out.double().norm())
        task.error_estimate = float(estimate.sqrt()) / size if size else None


class Differences:
    """Evaluations of f around the point, as central differences of chosen columns."""

    def __init__(self, task: Task) -> None:
        self.task, self.linear = task, task.linear
        self.point = self.linear.point.reshape(self.linear.batch, -1)
        self.value = self.linear.value.reshape(self.linear.batch, -1)
        self.scale = step_scale(self.point)
        self.batch, self.n_out, self.n_in = self.linear.shape
        self.tiling = not task.samples_mix and self._can_tile()

    def _can_tile(self) -> bool:
        try:
            check_tiling(self.task)
        except MethodGap as gap:
            self.task.notes.append(f"finite differences, one evaluation at a time: {gap}")
            return False
        return True

    def central(self, columns: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Difference quotients and second differences of some columns.

        Args:
            columns: ``(k,)`` coordinates.
            steps: ``(batch, k)`` steps, in the units of the point.

        Returns:
            ``(batch, n_out, k)`` quotients, and ``(batch, k)`` norms of f(x+h) + f(x−h) − 2f(x).
        """
        quotients, curvature = [], []
        for start, stop in spans(len(columns), max(self.task.chunk // 2, 1)):
            up, down, width = self._both_sides(columns[start:stop], steps[:, start:stop])
            quotients.append((up - down) / width.unsqueeze(1))
            bend = (up - self.value.unsqueeze(-1)) + (down - self.value.unsqueeze(-1))
            curvature.append(column_norms(bend))
        return torch.cat(quotients, -1), torch.cat(curvature, -1)

    def _both_sides(self, columns: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f at x + h and x − h, ``(batch, n_out, k)``, and the distance there is in floating point."""
        k = len(columns)
        here = self.point[:, columns]
        above, below = here + steps, here - steps
        points = self.point.repeat(2 * k, 1, 1)
        rows = torch.arange(k)
        points[rows, :, columns] = above.T
        points[k + rows, :, columns] = below.T
        values = self._evaluate(points)
        up, down = values[:k].permute(1, 2, 0), values[k:].permute(1, 2, 0)
        return up, down, above - below

    def _evaluate(self, points: Tensor) -> Tensor:
        """f at ``(copies, batch, n_in)`` points: ``(copies, batch, n_out)``."""
        shaped = points.reshape(-1, *self.linear.point.shape[1:])
        try:
            if self.tiling:
                values = self.linear.evaluate(shaped, copies=points.shape[0])
            elif self.task.samples_mix:
                values = torch.cat([self._alone(p) for p in points])
            else:
                values = torch.cat([self.linear.evaluate(p.reshape(self.linear.point.shape)) for p in points])
        except JaccliError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise MethodGap(reason(error)) from error
        return values.reshape(points.shape[0], self.batch, self.n_out)

    def _alone(self, points: Tensor) -> Tensor:
        """Each sample moved while the others stay, for a model in which samples mix."""
        moved = []
        for sample in range(self.batch):
            one = self.point.clone()
            one[sample] = points[sample]
            value = self.linear.evaluate(one.reshape(self.linear.point.shape))
            moved.append(value.reshape(self.batch, -1)[sample])
        return torch.stack(moved)


def _pilot(difference: Differences) -> Pilot:
    """Some columns at several steps, from which the step for all is chosen."""
    n_in = difference.n_in
    count = min(n_in, max(defaults.PILOT_COLUMNS, n_in // 64))
    columns = torch.linspace(0, n_in - 1, count, dtype=torch.float64).round().long().unique()
    base = torch.finfo(difference.point.dtype).eps ** (1 / 3)
    factors = [base * 10**exponent for exponent in defaults.PILOT_EXPONENTS]
    scale = difference.scale[:, columns]
    taken = [difference.central(columns, factor * scale) for factor in factors]
    quotients, bends = (torch.stack(part).double() for part in zip(*taken, strict=True))
    return choose_step(factors, quotients, bends, scale.double())


def _mended(difference: Differences, columns: Tensor, steps: Tensor, pilot: Pilot) -> tuple[Tensor, Tensor]:
    """A block of columns, those that look spoilt taken again with smaller steps; and its squared error.

    A kink inside the step, or curvature, shows in the second difference.
    """
    now = steps[:, columns]
    block, bend = difference.central(columns, now)
    noise = pilot.noise / now.double()
    error = noise.square() + pilot.bias**2
    for _ in range(defaults.MEND_ROUNDS):
        spoilt = bend.double() / now.double() > defaults.MEND_RATIO * (noise + pilot.bend(column_norms(block)))
        again = spoilt.any(0)
        if not again.any():
            break
        smaller = now[:, again] / defaults.MEND_SHRINK
        finer, finer_bend = difference.central(columns[again], smaller)
        finer_noise = pilot.noise / smaller.double()
        change = column_norms(finer.double() - block[:, :, again].double())
        better = spoilt[:, again] & (change > 2 * finer_noise)
        block[:, :, again] = torch.where(better.unsqueeze(1), finer, block[:, :, again])
        now[:, again] = torch.where(better, smaller, now[:, again])
        bend[:, again] = torch.where(better, finer_bend, torch.zeros_like(finer_bend))
        noise[:, again] = torch.where(better, finer_noise, noise[:, again])
        guess = torch.where(better, finer_noise.square(), error[:, again].maximum(change.square()))
        error[:, again] = guess
    return block, error.sum().cpu()
