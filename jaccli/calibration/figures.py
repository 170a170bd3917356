"""The figures of one machine, and the seconds of an operator that they predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# Measured points, ascending: (size, rate at that size). Between points, interpolation is linear in the logarithms.
Table = tuple[tuple[float, float], ...]

# Bytes. A C library returns larger allocations to the system, which maps new memory each time (glibc: from 32 MiB on,
# after its threshold has adapted); smaller blocks are used again, already mapped.
FRESH_FROM = 32 * 2**20
# A dimension this wide fills the vector units: from here on a product is as fast as a square one.
WIDE = 64.0
# Channels, few and many, in and out: blocks of 16 fill the vector units of a convolution too.
FEW, MANY = 1, 16


@dataclass(frozen=True)
class Calibration:
    """The rates of one device with one number of threads, in SI units.

    Predicted seconds do not include ``overhead_s``, which every call of a torch operator takes in addition. They assume
    that nothing else runs. Half of them are right within a factor of 1.2 for products and elementwise operators, of 1.5
    for batched products and convolutions; one in ten is wrong by a factor of 3.

    Attributes:
        overhead_s: seconds of one torch call on a tiny tensor.
        matmul: dtype → (FLOP, FLOP/s) of one square product; ``float32`` is always there.
        batched: dtype → (FLOP of each, FLOP/s together) of a batch of small square products.
        narrow: ``m``, ``k`` or ``n``, for a batch ``batched m`` and so on → (that dimension, rate as a share of that of
            a square product), for (m, k) times (k, n).
        memory: (bytes read and written, bytes/s) of an elementwise operator.
        fresh: bytes/s at which newly allocated memory is mapped, on top of writing to it.
        conv: ``conv2d`` or ``conv_transpose2d``, ``contiguous`` or ``channels_last``, channels in and out as
            ``1->16`` → (FLOP, FLOP/s).
        functions: ``tanh``, ``exp``, ``sigmoid``, ``gelu`` → (elements, elements/s) in float32; for ``doctor`` alone.
        strided: bytes/s, read and written, of a copy that moves the last dimension.
        made: time of the measurement, ISO 8601 in UTC; empty if nothing was measured.
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
        """Seconds of ``batch`` products (m, k) times (k, n), each with operands of its own."""
        each = 2.0 * m * n * k
        if each * batch == 0:
            return 0.0
        table, kind = _of_dtype(self.matmul, dtype), ""
        if batch > 1:
            small = _of_dtype(self.batched, dtype)
            table, kind = small + tuple(point for point in table if point[0] > small[-1][0]), "batched "
        # The measured rate of a small square product includes that its sides are short.
        side = (each / 2) ** (1 / 3)
        narrow = [(self.narrow[kind + name], size) for name, size in (("m", m), ("k", k), ("n", n)) if size < WIDE]
        # Dimensions that are thin limit one another, not together: the worst share counts.
        share = min((at(shares, size) / at(shares, side) for shares, size in narrow), default=1.0)
        # Below the smallest measured product the time is that of a call.
        least = batch * table[0][0] / table[0][1]
        moved = batch * (m * k + k * n + m * n) * dtype.itemsize
        return max(least, batch * each / (share * at(table, each)), self.elementwise_seconds(moved))

    def elementwise_seconds(self, bytes_moved: float) -> float:
        """Seconds of an elementwise operator that reads and writes ``bytes_moved``, all operands together."""
        return bytes_moved / at(self.memory, bytes_moved)

    def fresh_seconds(self, size: float) -> float:
        """Additional seconds for a result of ``size`` bytes whose memory has to be mapped first; 0 below 32 MiB."""
        return size / self.fresh if size >= FRESH_FROM else 0.0

    def conv_seconds(
        self,
        flops: float,
        channels: int | tuple[int, int],
        channels_last: bool,
        transposed: bool,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        """Seconds of the operations of one forward convolution.

        With a 1 x 1 kernel or few channels, ``elementwise_seconds`` of its operands may be more.

        Args:
            flops: multiplications and additions, over all samples.
            channels: in and out, within a group; one number if they are equal.
            channels_last: whether input and weight have this layout in memory.
            transposed: ``conv_transpose2d``, which is also the input gradient of ``conv2d``.
            dtype: convolutions are measured in float32; the ratio of others is that of large products.
        """
        kind = f"{'conv_transpose2d' if transposed else 'conv2d'} {'channels_last' if channels_last else 'contiguous'}"
        into, out = channels if isinstance(channels, tuple) else (channels, channels)
        speed = _of_dtype(self.matmul, dtype)[-1][1] / self.matmul["float32"][-1][1]
        speed *= self._conv_rate(kind, into, out, flops)
        # Below the smallest measured convolution the time is that of a call.
        least, rate = self.conv[f"{kind} {MANY}->{MANY}"][0]
        return max(least / rate, flops / speed) if flops else 0.0

    def _conv_rate(self, kind: str, into: float, out: float, flops: float) -> float:
        """FLOP/s, interpolated between few and many channels, in and out."""
        rates = (
            tuple((float(start), at(self.conv[f"{kind} {start}->{end}"], flops)) for start in (FEW, MANY))
            for end in (FEW, MANY)
        )
        few, many = (at(row, into) for row in rates)
        return at(((FEW, few), (MANY, many)), out)

    def strided_seconds(self, bytes_moved: float) -> float:
        """Seconds of a copy that moves the last dimension and reads and writes ``bytes_moved``.

        If the last dimension stays the last, ``elementwise_seconds`` is more exact.
        """
        return bytes_moved / self.strided


def at(table: Table, size: float) -> float:
    """The rate at a size, interpolated between the points; outside of them that of the nearest point."""
    # Linear in the logarithms: rates are measured at sizes that are decades apart, and saturate.
    low, slow = table[0]
    if size <= low:
        return slow
    for high, fast in table:
        if size <= high:
            return slow * math.pow(fast / slow, math.log(size / low) / math.log(high / low))
        low, slow = high, fast
    return slow


def _of_dtype(tables: Mapping[str, Table], dtype: torch.dtype) -> Table:
    """The table of a dtype; if it was not measured, that of the most similar one."""
    name = str(dtype).removeprefix("torch.")
    relative = "bfloat16" if dtype is torch.float16 else "float32"
    return tables.get(name) or tables.get(relative) or tables["float32"]
