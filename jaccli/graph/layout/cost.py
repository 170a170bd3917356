"""The cost model: what operations on blocks are predicted to take, in seconds of a machine.

A plan is chosen by *dry runs*: the operations of a candidate are applied to blocks that have a layout and no
numbers. Such a block has a ``CostModel`` where others have a tensor (``Block.data``), and each operation on it is
charged to that model::

    cost = CostModel.of(device, dtype)
    rows = identity_block(shape, cost)          # abstract: nothing is allocated
    segment.pull(rows)                          # the same code as for numbers
    cost.seconds, cost.peak                     # predicted

The model travels with the blocks, so that no state is shared: dry runs may be nested, and run in several threads at
once. Seconds are sums over operators: work at the machine's rates (``Calibration``) and an overhead for each call.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from jaccli.calibration import TYPICAL, Calibration, stored_or_typical
from jaccli.graph.layout.layout import Label

_MEASURED: ContextVar[bool] = ContextVar("measured", default=False)
# Seconds asked of a machine before, by operator; of the machine that was used last only.
_Memo = tuple[Calibration, dict[Hashable, float]]
_last: _Memo = (TYPICAL, {})


@contextmanager
def measured_rates() -> Iterator[None]:
    """Cost models made in here, in this thread, use this machine's measured rates: for plans that are then timed.

    Elsewhere they use those of a common machine, so that a network always gets the same plan.
    """
    token = _MEASURED.set(True)
    try:
        yield
    finally:
        _MEASURED.reset(token)


def _memo_of(machine: Calibration) -> dict[Hashable, float]:
    """Seconds of operators on a machine; a new table when the machine changes, old models keep theirs."""
    global _last
    # One read of the global: another thread may replace it between two.
    last = _last
    if machine != last[0]:
        _last = last = (machine, {})
    return last[1]


@dataclass(eq=False)
class CostModel:
    """Adds up what the operations of a dry run would take. One dry run writes to it, in one thread.

    Attributes:
        machine: its rates.
        dtype: of the elements.
        seconds: predicted.
        peak: the largest number of elements of one result.
    """

    machine: Calibration
    dtype: torch.dtype
    seconds: float = 0.0
    peak: int = 0
    _memo: dict[Hashable, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> CostModel:
        """At the rates of a device; see ``measured_rates``."""
        machine = stored_or_typical(device) if _MEASURED.get() else TYPICAL
        return cls(machine, dtype, _memo=_memo_of(machine))

    @classmethod
    def unread(cls) -> CostModel:
        """For a layout that is found by abstract evaluation, whose cost is of no interest."""
        return cls(TYPICAL, torch.float32)

    def reset(self) -> None:
        """Start again from zero."""
        self.seconds, self.peak = 0.0, 0

    def product(self, a: Mapping[Label, int], b: Mapping[Label, int], out: Sequence[Label]) -> None:
        """A contraction of two labelled tensors, with the copies that bring their axes in order.

        Args:
            a: label → size; size 1 where the tensor does not vary.
            b: likewise.
            out: labels of the result; the others are summed over.
        """
        both = [x for x in a if x in b and not (a[x] == 1) ^ (b[x] == 1)]
        summed = [x for x in both if x not in out]
        size = {x: max(a.get(x, 1), b.get(x, 1)) for x in (*a, *b)}
        # An elementwise product: both factors read, and the result written, at the size of the result.
        if not summed:
            self.move(2 * math.prod(size.values()))
            return
        batch = [x for x in both if x in out]
        only_a = [x for x in a if x not in both and a[x] > 1]
        only_b = [x for x in b if x not in both and b[x] > 1]
        # A factor with its axes in another order is copied first. BLAS reads a transposed matrix as it is, so that
        # without a batch it is enough that the summed axes lie last.
        for factor, ideal in ((a, [*batch, *only_a, *summed]), (b, [*batch, *summed, *only_b])):
            order = [x for x in factor if x in ideal and size[x] > 1]
            if order != [x for x in ideal if size[x] > 1] and (batch or order[-1:] != summed[-1:]):
                self.seconds += self.machine.strided_seconds(2 * self._bytes(math.prod(factor.values())))
        n, i, j, k = (math.prod(size[x] for x in group) for group in (batch, only_a, only_b, summed))
        self.gemm(n, i, j, k)

    def gemm(self, batch: int, i: int, j: int, k: int) -> None:
        """``batch`` matrix products of (i, k) and (k, j)."""
        key = (i, j, k, batch, self.dtype)
        if key not in self._memo:
            self._memo[key] = self.machine.gemm_seconds(*key) + self.machine.overhead_s
        self.seconds += self._memo[key]
        self._result(batch * i * j)

    def move(self, elements: float, result: int = 0) -> None:
        """An elementwise step.

        Args:
            elements: read and written.
            result: elements of the result where it is large and newly allocated.
        """
        self.seconds += self.machine.elementwise_seconds(self._bytes(elements)) + self.machine.overhead_s
        self._result(result)

    def strided(self, elements: float) -> None:
        """A copy into another order of axes."""
        self.seconds += self.machine.strided_seconds(self._bytes(2 * elements)) + self.machine.overhead_s

    def convolve(self, flops: float, elements: float, channels: tuple[int, int], transposed: bool) -> None:
        """A convolution with its channels last in memory.

        Args:
            flops: operations.
            elements: read and written.
            channels: in and out, of one group.
            transposed: whether it is a transposed convolution.
        """
        key = (flops, channels, transposed, self.dtype)
        if key not in self._memo:
            self._memo[key] = self.machine.conv_seconds(flops, channels, True, transposed, self.dtype)
        work = self._memo[key]
        # A convolution is bound by its operations or by what it moves; the longer one of the two hides the other.
        memory = self.machine.elementwise_seconds(self._bytes(elements))
        self.seconds += max(work, memory) + 4 * self.machine.overhead_s
        self._result(int(elements))

    def _result(self, elements: int) -> None:
        self.peak = max(self.peak, elements)
        self.seconds += self.machine.fresh_seconds(self._bytes(elements))

    def _bytes(self, elements: float) -> int:
        return int(elements) * self.dtype.itemsize
