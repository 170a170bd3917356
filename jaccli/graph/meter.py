"""What a dry run costs: operations, bytes moved and operators called, in seconds of a calibrated machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaccli.graph.form import Label


@dataclass
class Meter:
    """Adds up. Rates are those of ``known``; seconds are of one dry run since ``reset``.

    Attributes:
        flops: floating-point operations of matrix products and convolutions.
        moved: elements read and written by all else.
        calls: operators.
        seconds: predicted time.
        peak: the largest number of elements in one result.
    """

    gemm_rate: float = 8e10
    batched_rate: float = 3e10
    element_rate: float = 2.5e9
    call_s: float = 4e-6
    flops: float = 0.0
    moved: float = 0.0
    calls: int = 0
    seconds: float = 0.0
    peak: int = 0
    on: bool = False

    def reset(self) -> None:
        """Start again."""
        self.flops = self.moved = self.seconds = 0.0
        self.calls = self.peak = 0

    def gemm(self, batch: int, i: int, j: int, k: int) -> None:
        """``batch`` products of (i, k) and (k, j)."""
        if not self.on:
            return
        flops = 2.0 * batch * i * j * k
        rate = self.gemm_rate if batch == 1 else self.batched_rate
        small = min(i, j, k)
        rate *= small / (small + 8.0)  # thin products run at the speed of memory
        self.flops += flops
        self.calls += 1
        self.seconds += max(flops / rate, batch * (i * j + i * k + k * j) / self.element_rate) + self.call_s
        self.peak = max(self.peak, batch * i * j)

    def product(self, a: Mapping[Label, int], b: Mapping[Label, int], out: list[Label]) -> None:
        """A contraction of labelled factors."""
        if not self.on:
            return

        def size(labels: list[Label]) -> int:
            return math.prod(max(a.get(x, 1), b.get(x, 1)) for x in labels)

        common = [x for x in a if x in b and not (a[x] == 1) ^ (b[x] == 1)]
        summed = [x for x in common if x not in out]
        if not summed:
            self.move(2 * size(list({**a, **b})))
            return
        batch = [x for x in common if x in out]
        only_a = [x for x in a if x not in common and a[x] > 1]
        only_b = [x for x in b if x not in common and b[x] > 1]
        self.gemm(size(batch), size(only_a), size(only_b), size(summed))

    def move(self, elements: float, fresh: int = 0) -> None:
        """An elementwise step."""
        if not self.on:
            return
        self.moved += elements
        self.calls += 1
        self.seconds += elements / self.element_rate + self.call_s
        self.peak = max(self.peak, fresh)

    def convolve(self, flops: float, elements: float, channels: int) -> None:
        """A convolution; few channels leave vector units idle."""
        if not self.on:
            return
        self.flops += flops
        self.calls += 1
        rate = self.gemm_rate * 0.5 * channels / (channels + 8.0)
        self.seconds += max(flops / rate, elements / self.element_rate) + 5 * self.call_s
        self.peak = max(self.peak, int(elements))


meter = Meter()
