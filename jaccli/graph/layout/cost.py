"""What a dry run costs: operations, bytes moved and operators called, in seconds of this machine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from jaccli.calibration import TYPICAL, Calibration, known
from jaccli.graph.layout.layout import Label


@dataclass
class Meter:
    """Adds up what bundles in a dry run would do.

    Attributes:
        seconds: predicted.
        flops: of matrix products and convolutions.
        peak: the largest number of elements in one result.
        machine: rates.
        dtype: of the elements.
        on: whether it counts.
        memo: what was asked of the machine before.
        measured: this machine's rates are taken, once they were measured; else those of a common one, by which the
            same network is always planned for alike.
    """

    seconds: float = 0.0
    flops: float = 0.0
    peak: int = 0
    machine: Calibration = field(default=TYPICAL)
    dtype: torch.dtype = torch.float32
    on: bool = False
    memo: dict[Hashable, float] = field(default_factory=dict)
    measured: bool = False

    def reset(self) -> None:
        """Start again."""
        self.seconds = self.flops = 0.0
        self.peak = 0

    @contextmanager
    def counting(self, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
        """Count in here, at the rates of a device."""
        machine = known(device) if self.measured else TYPICAL
        if machine != self.machine:
            self.memo.clear()
        self.machine, self.dtype, self.on = machine, dtype, True
        try:
            yield
        finally:
            self.on = False

    @contextmanager
    def as_measured(self) -> Iterator[None]:
        """In here plans are made for this machine, as for what is going to be raced by the clock anyway."""
        before, self.measured = self.measured, True
        try:
            yield
        finally:
            self.measured = before

    def product(self, a: Mapping[Label, int], b: Mapping[Label, int], out: Sequence[Label]) -> None:
        """A contraction of labelled factors, with the copies that bring its axes in order."""
        if not self.on:
            return
        both = [x for x in a if x in b and not (a[x] == 1) ^ (b[x] == 1)]
        summed = [x for x in both if x not in out]
        size = {x: max(a.get(x, 1), b.get(x, 1)) for x in (*a, *b)}
        if not summed:
            self.move(2 * math.prod(size.values()))
            return
        batch = [x for x in both if x in out]
        only_a = [x for x in a if x not in both and a[x] > 1]
        only_b = [x for x in b if x not in both and b[x] > 1]
        for factor, wanted in ((a, [*batch, *only_a, *summed]), (b, [*batch, *summed, *only_b])):
            order = [x for x in factor if x in wanted and size[x] > 1]
            if order != [x for x in wanted if size[x] > 1] and (batch or order[-1:] != summed[-1:]):
                self.seconds += self.machine.strided_seconds(2 * self._bytes(math.prod(factor.values())))
        n, i, j, k = (math.prod(size[x] for x in group) for group in (batch, only_a, only_b, summed))
        self.gemm(n, i, j, k)

    def gemm(self, batch: int, i: int, j: int, k: int) -> None:
        """``batch`` products of (i, k) and (k, j)."""
        if not self.on:
            return
        self.flops += 2.0 * batch * i * j * k
        key = (i, j, k, batch, self.dtype)
        if key not in self.memo:
            self.memo[key] = self.machine.gemm_seconds(*key) + self.machine.overhead_s
        self.seconds += self.memo[key]
        self._result(batch * i * j)

    def move(self, elements: float, fresh: int = 0) -> None:
        """An elementwise step that reads and writes so many elements."""
        if not self.on:
            return
        self.seconds += self.machine.elementwise_seconds(self._bytes(elements)) + self.machine.overhead_s
        self._result(fresh)

    def strided(self, elements: float) -> None:
        """A copy into another order."""
        if self.on:
            self.seconds += self.machine.strided_seconds(self._bytes(2 * elements)) + self.machine.overhead_s

    def convolve(self, flops: float, elements: float, channels: tuple[int, int], transposed: bool) -> None:
        """A convolution with its channels last."""
        if not self.on:
            return
        self.flops += flops
        key = (flops, channels, transposed, self.dtype)
        if key not in self.memo:
            self.memo[key] = self.machine.conv_seconds(flops, channels, True, transposed, self.dtype)
        works = self.memo[key]
        self.seconds += (
            max(works, self.machine.elementwise_seconds(self._bytes(elements))) + 4 * self.machine.overhead_s
        )
        self._result(int(elements))

    def _result(self, elements: int) -> None:
        self.peak = max(self.peak, elements)
        self.seconds += self.machine.fresh_seconds(self._bytes(elements))

    def _bytes(self, elements: float) -> int:
        return int(elements) * self.dtype.itemsize


meter = Meter()
