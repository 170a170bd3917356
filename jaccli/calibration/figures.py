"""The figures of one machine, and what an operator is predicted to take by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# Measured points, ascending: (size, rate at that size). Between points both are taken as logarithms.
Table = tuple[tuple[float, float], ...]

# A C library returns large allocations to the system and asks anew each time (glibc: from 32 MiB on, after
# its threshold has adapted); smaller blocks are used again, already mapped.
FRESH_FROM = 32 * 2**20
# A dimension this wide fills the vector units: from here on a product is as fast as a square one.
WIDE = 64.0
# Channels, few and many, in and out: blocks of 16 fill the vector units of a convolution too.
FEW, MANY = 1, 16


@dataclass(frozen=True)
class Calibration:
    """What one device does in a second, with one number of threads. SI units throughout.

    Predicted seconds leave out ``overhead_s``, which every call of a torch operator pays once.
    They assume an operator that has the machine to itself. Half of them are right within a factor of 1.2 for
    products and elementwise operators, 1.5 for batched products and convolutions; one in ten is off by 3.

    Attributes:
        overhead_s: seconds of one torch call on a tiny tensor.
        matmul: dtype → (FLOP, FLOP/s) of one square product; ``float32`` is always there.
        batched: dtype → (FLOP of each, FLOP/s together) of a batch of small square products.
        narrow: ``m``, ``k`` or ``n``, with ``batched`` before it → (that dimension, share of the rate that
            it leaves), for (m, k) times (k, n).
        memory: (bytes read and written, bytes/s) of an elementwise operator.
        fresh: bytes/s at which newly allocated memory is mapped, on top of writing to it.
        conv: ``conv2d`` or ``conv_transpose2d``, ``contiguous`` or ``channels_last``, channels in and out as
            ``1->16`` → (FLOP, FLOP/s).
        functions: ``tanh``, ``exp``, ``sigmoid``, ``gelu`` → (elements, elements/s) in float32.
        strided: bytes/s read and written of a copy that takes the last dimension elsewhere.
        made: when, ISO 8601 in UTC; empty where nothing was measured.
    """

    overhead_s: float
    matmul: Mapping[str, Table]
    batched: Mapping[str, Table]
    narrow: Mapping[str, Table]
    memory: Table
    fresh: float
    conv: Mapping[str, Table]
    functions: Mapping[str, Table]
    strided: float
    made: str = ""

    def gemm_seconds(self, m: int, n: int, k: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> float:
        """Seconds of ``batch`` products (m, k) times (k, n); those of a batch have operands of their own."""
        each = 2.0 * m * n * k
        if each * batch == 0:
            return 0.0
        table, kind = _of_dtype(self.matmul, dtype), ""
        if batch > 1:
            small = _of_dtype(self.batched, dtype)
            table, kind = small + tuple(point for point in table if point[0] > small[-1][0]), "batched "
        # A square product of few operations is thin itself, and has its share of the rate already.
        side = (each / 2) ** (1 / 3)
        narrow = [(self.narrow[kind + name], size) for name, size in (("m", m), ("k", k), ("n", n)) if size < WIDE]
        share = min((at(shares, size) / at(shares, side) for shares, size in narrow), default=1.0)
        # The smallest are all call and no work.
        least = batch * table[0][0] / table[0][1]
        moved = batch * (m * k + k * n + m * n) * dtype.itemsize
        return max(least, batch * each / (share * at(table, each)), self.elementwise_seconds(moved))

    def elementwise_seconds(self, bytes_moved: float) -> float:
        """Seconds of an elementwise operator that reads and writes so many bytes, all operands together."""
        return bytes_moved / at(self.memory, bytes_moved)

    def fresh_seconds(self, size: float) -> float:
        """Seconds that a result of so many bytes costs on top, because its memory has to be mapped first.

        Nothing below 32 MiB, where allocators use blocks again.
        """
        return size / self.fresh if size >= FRESH_FROM else 0.0

    def conv_seconds(
        self,
        flops: float,
        channels: int | tuple[int, int],
        channels_last: bool,
        transposed: bool,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        """Seconds of one convolution, forward.

        Of its operations: with a 1 x 1 kernel or few channels, ``elementwise_seconds`` of its operands may be
        more.

        Args:
            flops: multiplications and additions, over all samples.
            channels: those in and those out, within a group; one number where they are the same.
            channels_last: the layout in memory of input and weight.
            transposed: ``conv_transpose2d``, which is also the input gradient of ``conv2d``.
            dtype: measured in float32; others are taken to gain or lose what large products do.
        """
        kind = f"{'conv_transpose2d' if transposed else 'conv2d'} {'channels_last' if channels_last else 'contiguous'}"
        into, out = channels if isinstance(channels, tuple) else (channels, channels)
        speed = _of_dtype(self.matmul, dtype)[-1][1] / self.matmul["float32"][-1][1]
        speed *= self._conv_rate(kind, into, out, flops)
        # The smallest are all call and no work.
        least, rate = self.conv[f"{kind} {MANY}->{MANY}"][0]
        return max(least / rate, flops / speed) if flops else 0.0

    def _conv_rate(self, kind: str, into: float, out: float, flops: float) -> float:
        """FLOP/s between few and many channels, in and out."""
        rates = (
            tuple((float(start), at(self.conv[f"{kind} {start}->{end}"], flops)) for start in (FEW, MANY))
            for end in (FEW, MANY)
        )
        few, many = (at(row, into) for row in rates)
        return at(((FEW, few), (MANY, many)), out)

    def transcendental_seconds(
        self, elements: float, function: str = "tanh", dtype: torch.dtype = torch.float32
    ) -> float:
        """Seconds of an elementwise function beyond arithmetic; those that were not measured count as tanh."""
        table = self.functions.get(function, self.functions["tanh"])
        # A vector holds half as many doubles; halves are computed in float32.
        return elements / at(table, elements) * max(1.0, dtype.itemsize / 4)

    def strided_seconds(self, bytes_moved: float) -> float:
        """Seconds of a copy that takes the last dimension elsewhere, bytes read and written.

        Where the last dimension stays the last, ``elementwise_seconds`` is nearer.
        """
        return bytes_moved / self.strided


def at(table: Table, size: float) -> float:
    """The rate at a size: between its neighbours on logarithmic scales, at the ends the last one."""
    low, slow = table[0]
    if size <= low:
        return slow
    for high, fast in table:
        if size <= high:
            return slow * math.pow(fast / slow, math.log(size / low) / math.log(high / low))
        low, slow = high, fast
    return slow


def _of_dtype(tables: Mapping[str, Table], dtype: torch.dtype) -> Table:
    """The table of a dtype; of its nearest relative where it was not measured."""
    name = str(dtype).removeprefix("torch.")
    relative = "bfloat16" if dtype is torch.float16 else "float32"
    return tables.get(name) or tables.get(relative) or tables["float32"]
