"""The operators that a calibration times, and the figures computed from their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from jaccli.calibration.figures import FEW, MANY, WIDE, Calibration, Table, at
from jaccli.calibration.timing import FigureKey, OperatorCall, TimedOperator, least_seconds

if TYPE_CHECKING:
    from jaxtyping import Shaped


_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_SQUARES = (8, 40, 176, 640)  # 1e3, 1e5, 1e7 and 5e8 FLOP
_BATCHES = ((4096, 4), (512, 16), (32, 64), (2, 176))  # (batch, dimension): 5e5 to 2e7 FLOP together
_THIN = (1, 4, 16)
# The other two dimensions of a thin product, and its batch.
_THIN_SINGLE, _THIN_BATCHED = (256, 1), (64, 32)
# Channels in and out → (height and width, samples), with a 3 x 3 kernel: 5e3, 3e5 and 9e6 to 4e7 FLOP. One channel
# to one is slow, and large ones do not occur in practice.
_CONVS = {
    (FEW, FEW): ((16, 1), (16, 64)),
    (FEW, MANY): ((4, 1), (16, 4), (16, 128)),
    (MANY, FEW): ((4, 1), (16, 4), (16, 128)),
    (MANY, MANY): ((1, 1), (8, 1), (32, 8)),
}
_BUFFER = 64 * 2**20  # bytes, beyond most caches
_MOVED = (2**20, 2**23, _BUFFER)  # half of them read, half written
_ELEMENTS = 2**17
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
}
_PERMUTED = (16, 96, 300)  # no power of two: strides of one fall on the same cache lines


def measure(device: torch.device) -> Calibration:
    """Time the operators of a device with torch's present number of threads.

    Modes, threads, random generators and defaults of torch stay as they are.

    Cost: about half a second and 150 MiB.

    Raises:
        Busy: other work on this machine disturbed the measurement.
        RuntimeError: from torch, where the device lacks an operator or memory.
    """
    wait = None if device.type == "cpu" else lambda: torch.get_device_module(device).synchronize(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        operators = [*_small(device), *_products(device), *_convolutions(device), *_memory(device)]
        return _figures(operators, least_seconds(operators, wait))


def _small(device: torch.device) -> Iterator[TimedOperator]:
    one = torch.ones(1, dtype=torch.float32, device=device)
    many = torch.full((_ELEMENTS,), 0.5, dtype=torch.float32, device=device)
    mixed = torch.zeros(_PERMUTED, dtype=torch.float32, device=device).transpose(1, 2)
    yield TimedOperator(("overhead", "", 1), 1, lambda: torch.mul(one, one), 50)
    for name, function in _FUNCTIONS.items():
        yield TimedOperator(("functions", name, _ELEMENTS), _ELEMENTS, partial(function, many), 3)
    moved = 2 * mixed.nbytes
    yield TimedOperator(("strided", "", moved), moved, lambda: mixed.contiguous())


def _products(device: torch.device) -> Iterator[TimedOperator]:
    for dtype in filter(lambda dtype: _supports(device, dtype), _DTYPES):
        name = str(dtype).removeprefix("torch.")
        for side in _SQUARES:
            work = 2.0 * side**3
            call = _product(device, dtype, (side, side, side))
            yield TimedOperator(("matmul", name, work), work, call, 10 if work < 1e6 else 1, side != _SQUARES[0])
        for batch, side in _BATCHES:
            call = _product(device, dtype, (side, side, side), batch)
            yield TimedOperator(("batched", name, 2.0 * side**3), 2.0 * batch * side**3, call)
    for kind, (wide, batch) in (("", _THIN_SINGLE), ("batched ", _THIN_BATCHED)):
        for place, name in enumerate("mkn"):
            for thin in _THIN:
                shape = [wide] * 3
                shape[place] = thin
                call = _product(device, torch.float32, (shape[0], shape[1], shape[2]), batch)
                yield TimedOperator(("narrow", kind + name, thin), 2.0 * batch * wide * wide * thin, call, 3)


def _product(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], batch: int = 1) -> OperatorCall:
    m, k, n = shape
    lead = (batch,) if batch > 1 else ()
    left = torch.full((*lead, m, k), 0.5, dtype=dtype, device=device)
    right = torch.full((*lead, k, n), 0.5, dtype=dtype, device=device)
    return partial(torch.matmul, left, right)


def _supports(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype is torch.float32:
        return True
    try:
        _product(device, dtype, (2, 2, 2))()
    except (RuntimeError, TypeError):  # float64 on an Apple GPU, bfloat16 on an old one
        return False
    return True


def _convolutions(device: torch.device) -> Iterator[TimedOperator]:
    operators: dict[str, Callable[..., Tensor]] = {"conv2d": F.conv2d, "conv_transpose2d": F.conv_transpose2d}
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for (name, run), (order, layout) in product(operators.items(), layouts.items()):
        for (into, out), shapes in _CONVS.items():
            for side, samples in shapes:
                x = _filled(device, (samples, into, side, side), layout)
                ends = (into, out) if name == "conv_transpose2d" else (out, into)
                weight = _filled(device, (*ends, 3, 3), layout)
                work = 18.0 * into * out * side**2 * samples
                call = partial(run, x, weight, padding=1)
                yield TimedOperator(("conv", f"{name} {order} {into}->{out}", work), work, call, 3 if work < 1e6 else 1)


def _filled(
    device: torch.device, shape: tuple[int, ...], layout: torch.memory_format
) -> Shaped[Tensor, "n c height width"]:
    return torch.full(shape, 0.5, dtype=torch.float32, device=device).contiguous(memory_format=layout)


def _memory(device: torch.device) -> Iterator[TimedOperator]:
    """From one half of a buffer to the other; and to the whole of a buffer, used before and newly mapped."""
    count = _BUFFER // 4
    buffer = torch.zeros(count, dtype=torch.float32, device=device)
    for moved in _MOVED:
        size = moved // 8
        source, result = buffer[:size], buffer[count // 2 : count // 2 + size]
        call = partial(torch.neg, source, out=result)
        yield TimedOperator(("memory", "", moved), moved, call, 3 if moved < _BUFFER else 1)
    yield TimedOperator(("written", "", _BUFFER), _BUFFER, lambda: buffer.fill_(0.0))
    yield TimedOperator(
        ("fresh", "", _BUFFER),
        _BUFFER,
        lambda: torch.empty(count, dtype=torch.float32, device=device).fill_(0.0),
    )


def _figures(operators: list[TimedOperator], seconds: dict[FigureKey, float]) -> Calibration:
    overhead = seconds["overhead", "", 1]
    rates: dict[str, dict[str, Table]] = {}
    for operator in operators:
        field, row, size = operator.key
        if operator.key in seconds:
            took = seconds[operator.key]
            # The difference may be noise if nearly all of the time is overhead.
            rate = operator.work / max(took - overhead, 0.1 * took)
            rows = rates.setdefault(field, {})
            rows[row] = (*rows.get(row, ()), (size, rate))
    unmapped = seconds["fresh", "", _BUFFER] - seconds["written", "", _BUFFER]
    return Calibration(
        overhead_s=overhead,
        matmul=rates["matmul"],
        batched=rates["batched"],
        narrow=_shares(rates),
        memory=rates["memory"][""],
        # A caching allocator maps nothing: then the difference is noise, and the rate becomes very high.
        fresh=_BUFFER / max(unmapped, 1e-3 * seconds["written", "", _BUFFER]),
        conv=rates["conv"],
        functions=rates["functions"],
        strided=rates["strided"][""][0][1],
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _shares(rates: dict[str, dict[str, Table]]) -> dict[str, Table]:
    """Rates of thin products as shares of that of a square one with as many operations."""
    shares: dict[str, Table] = {}
    for row, points in rates["narrow"].items():
        batched = row.startswith("batched")
        square = rates["batched" if batched else "matmul"]["float32"]
        wide = (_THIN_BATCHED if batched else _THIN_SINGLE)[0]
        table: Table = ((WIDE, 1.0),)
        for size, rate in reversed(points):
            operations = wide * wide * size
            # The measured rate of a small square product includes that its sides are short.
            share = rate / at(square, 2 * operations) * at(table, operations ** (1 / 3))
            table = ((size, min(1.0, share)), *table)
        shares[row] = table
    return shares
