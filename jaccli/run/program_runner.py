"""A program at work: all samples at once or group by group, with the number of threads that serves it best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.graph import Pool, Program, tensors_in
from jaccli.run.sample_ranges import take_samples
from jaccli.runtime.timed import timed


@dataclass
class ProgramRunner:
    """A program for inputs of one signature.

    Attributes:
        program: for the samples of one group.
        pool: memory for J, shared with other programs of a plan.
        threads: how many serve it best.
        seconds: of a call.
        groups: equally large groups of samples, run one after another: intermediate results are that much smaller, and
            stay in the caches.
        buffers: memory for intermediate results, kept for the next call.
        calls: of the plan that it served.
    """

    program: Program
    pool: Pool
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = float("inf")
    groups: int = 1
    buffers: list[tuple[Tensor, ...]] = field(default_factory=list)
    calls: int = 0

    def run(self, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """J ``(batch, n_out, n_in)``, in memory of the pool, and the guards' values for each group, scalars.

        The values say whether J is right: the caller compares them with ``guards``.
        """
        program, groups = self.program, self.groups
        device = tensors(inputs)[0].device
        with torch.no_grad(), threads(self.threads), self._borrowed_buffers(device) as buffers:
            if not program.fills_output and groups == 1:
                matrix, *values = program.run(tensors(inputs), None, buffers)
                # A constant J is one tensor of the program, which the caller must not be able to write into.
                return matrix.clone() if program.constant else matrix, tuple(values)
            batch, *shape = program.shape
            matrix = self.pool.take((groups * batch, *shape), program.dtype, device)
            values = []
            for number, flat in enumerate(_flat_groups(matrix, groups)):
                out = flat if program.fills_output else None
                rows, *read = program.run(tensors(take_samples(inputs, number * batch, batch)), out, buffers)
                if out is None:
                    flat.copy_(rows.reshape(-1))
                values += read
            return matrix, tuple(values)

    def jacobian(self, inputs: Inputs) -> Tensor | None:
        """J ``(batch, n_out, n_in)``; None where the model takes another branch than the recorded one."""
        matrix, values = self.run(contiguous(inputs))
        return matrix if [value.item() for value in values] == self.guards else None

    @property
    def guards(self) -> list[object]:
        """What the guards' values were when the program was recorded, for each group."""
        return self.program.guards * self.groups

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that is kept between calls."""
        return self.program.memory_plan.nbytes if self.program.memory_plan is not None else 0

    @contextmanager
    def _borrowed_buffers(self, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Memory for intermediate results, of their shapes, which one call at a time may have; kept for the next."""
        if self.program.memory_plan is None:
            yield ()
            return
        # pop and append are atomic: of two threads one has the kept buffers, the other one makes its own.
        try:
            buffers = self.buffers.pop()
        except IndexError:
            buffers = self.program.buffers(device)
        try:
            yield buffers
        finally:
            if not self.buffers:
                self.buffers.append(buffers)

    def with_best_threads(self, inputs: Inputs) -> ProgramRunner:
        """The same with one thread or with all, whichever is faster, and its time: small operators prefer one."""
        best = dict.fromkeys((torch.get_num_threads(), 1), float("inf"))
        for _ in range(2):  # in turns: what slows the machine down for a while slows both
            for count in best:
                runner = replace(self, threads=count)
                runner.run(inputs)  # the threads start
                best[count] = min(best[count], runner.measure(inputs))
        self.buffers.clear()  # others race too, and one of them is kept
        runners = [replace(self, threads=count, seconds=seconds) for count, seconds in best.items()]
        return min(runners, key=lambda runner: runner.seconds)

    def measure(self, inputs: Inputs) -> float:
        """Seconds of a call: the least of some."""
        return min(timed(partial(self.run, inputs))[0] for _ in range(defaults.PROGRAM_TRIES))


def _flat_groups(matrix: Tensor, groups: int) -> list[Tensor]:
    """J ``(groups * batch, n_out, n_in)`` as flat tensors, one a group.

    Each has a storage that starts with it: recorded ``as_strided`` counts from there.
    """
    if groups == 1:
        return [matrix.view(-1)]
    memory, size = matrix.untyped_storage(), matrix.nbytes // groups
    storages = [memory[start : start + size] for start in range(0, groups * size, size)]
    return [matrix.new_empty(0).set_(storage, 0, (matrix.numel() // groups,)) for storage in storages]  # type: ignore[call-overload]


def contiguous(inputs: Inputs) -> Inputs:
    """With tensors in the strides of their shapes: views that a program makes may not exist in others."""
    if all(t.is_contiguous() for t in tensors_in((inputs.args, dict(inputs.kwargs)))):
        return inputs
    args, kwargs = tree_map_only(Tensor, Tensor.contiguous, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs, inputs.dim)


def tensors(inputs: Inputs) -> list[Tensor]:
    """All tensors of a call, of any shapes, in the order in which a program takes them."""
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
    counts = [1]
    for count in range(2, batch + 1):
        if batch % count == 0 and count >= 2 * counts[-1]:
            counts.append(count)
    return counts
