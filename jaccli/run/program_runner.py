"""Programs at work: all samples at once or group by group, with the threads that serve them best."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.graph import Pool, Program, tensors_in
from jaccli.run.blocks import part


@dataclass
class ProgramRunner:
    """A program for inputs of one signature.

    Attributes:
        program: for the samples of one group.
        threads: how many serve it best.
        seconds: of a call.
        groups: of samples, equally large, taken one after another: what lies between the steps is that much
            smaller, and stays in the caches.
        furnished: memory for intermediate results, kept for the next call.
        calls: of the plan that it served.
    """

    program: Program
    threads: int
    seconds: float = float("inf")
    groups: int = 1
    furnished: list[tuple[Tensor, ...]] = field(default_factory=list)
    calls: int = 0

    def run(self, inputs: Inputs, pool: Pool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """J, in memory of the pool, and the values that steered the way: those of the program, for each group."""
        program, groups = self.program, self.groups
        device = tensors(inputs)[0].device
        with torch.no_grad(), threads(self.threads), self._rooms(device) as places:
            if not program.placing and groups == 1:
                matrix, *guards = program.run(tensors(inputs), None, places)
                return matrix.clone() if program.constant else matrix, tuple(guards)
            batch, *shape = program.shape
            matrix = pool.take((groups * batch, *shape), program.dtype, device)
            guards = []
            for number, place in enumerate(_apart(matrix, groups)):
                out = place if program.placing else None
                rows, *read = program.run(tensors(part(inputs, number * batch, batch)), out, places)
                if out is None:
                    place.copy_(rows.reshape(-1))
                guards += read
            return matrix, tuple(guards)

    @property
    def way(self) -> list[object]:
        """What the guards' values were, for each group."""
        return self.program.guards * self.groups

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that is kept between calls."""
        return self.program.plan_memory.nbytes if self.program.plan_memory is not None else 0

    @contextmanager
    def _rooms(self, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Memory for intermediate results, which one call at a time may have; kept for the next one."""
        if self.program.plan_memory is None:
            yield ()
            return
        try:
            places = self.furnished.pop()
        except IndexError:
            places = self.program.furnished(device)
        try:
            yield places
        finally:
            if not self.furnished:
                self.furnished.append(places)

    def raced(self, inputs: Inputs, pool: Pool) -> ProgramRunner:
        """With as many threads as serve it best, and its time: small operators are faster on one."""
        most = torch.get_num_threads()
        best = dict.fromkeys((most, 1), float("inf"))
        for _ in range(2):  # in turns: what slows the machine down for a while slows both
            for count in best:
                tried = replace(self, threads=count)
                tried.run(inputs, pool)  # the threads start
                best[count] = min(best[count], tried.measured(inputs, pool))
        self.furnished.clear()  # others race too, and one of them is kept
        found = [replace(self, threads=count, seconds=taken) for count, taken in best.items()]
        return min(found, key=lambda r: r.seconds)

    def measured(self, inputs: Inputs, pool: Pool) -> float:
        """Seconds: the least of some calls."""
        times = []
        for _ in range(defaults.REPLAY_TRIES):
            start = time.perf_counter()
            self.run(inputs, pool)
            times.append(time.perf_counter() - start)
        return min(times)


def _apart(matrix: Tensor, groups: int) -> list[Tensor]:
    """Flat, group by group, each with a storage that starts where it does: recorded steps count from there."""
    if groups == 1:
        return [matrix.view(-1)]
    memory, size = matrix.untyped_storage(), matrix.nbytes // groups
    places = [memory[start : start + size] for start in range(0, groups * size, size)]
    return [matrix.new_empty(0).set_(place, 0, (matrix.numel() // groups,)) for place in places]  # type: ignore[call-overload]


def contiguous(inputs: Inputs) -> Inputs:
    """With tensors in the strides of their shapes: views that a program makes may not exist in others."""
    if all(t.is_contiguous() for t in tensors_in((inputs.args, dict(inputs.kwargs)))):
        return inputs
    args, kwargs = tree_map_only(Tensor, Tensor.contiguous, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs, inputs.dim)


def tensors(inputs: Inputs) -> list[Tensor]:
    """All of a call's tensors, in order."""
    return [t.detach() for t in tensors_in((inputs.args, dict(inputs.kwargs)))]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside operators; setting them costs half a microsecond."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def groupings(batch: int) -> list[int]:
    """Into how many equal groups samples may go: 1, and on, each at least twice the one before it.

    >>> groupings(16), groupings(10), groupings(7)
    ([1, 2, 4, 8, 16], [1, 2, 5, 10], [1, 7])
    """
    found = [1]
    for count in range(2, batch + 1):
        if batch % count == 0 and count >= 2 * found[-1]:
            found.append(count)
    return found
