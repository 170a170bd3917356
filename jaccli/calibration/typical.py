"""Figures of a common machine, two cores with AVX-512, from the best of several calibrations."""

from __future__ import annotations

from jaccli.calibration.figures import WIDE, Calibration, Table

_SQUARES, _BATCHES = (1024, 128_000, 10_903_552, 524_288_000), (128, 8192, 524_288, 10_903_552)
_CONVS = (4608, 294_912, 9_437_184, 37_748_736)


def _giga(sizes: tuple[int, ...], *rates: float) -> Table:
    return tuple((float(size), rate * 1e9) for size, rate in zip(sizes, rates, strict=False))


def _thin(*shares: float) -> Table:
    return (*zip((1.0, 4.0, 16.0), shares, strict=True), (WIDE, 1.0))


def _convs(
    kind: str, one: tuple[float, ...], fan: tuple[float, ...], gather: tuple[float, ...], many: tuple[float, ...]
) -> dict[str, Table]:
    sizes = (*_CONVS[:2], _CONVS[3])
    return {
        f"{kind} 1->1": _giga(_CONVS, *one),
        f"{kind} 1->16": _giga(_CONVS, *fan),
        f"{kind} 16->1": _giga(_CONVS, *gather),
        f"{kind} 16->16": _giga(sizes, *many),
    }


TYPICAL = Calibration(
    overhead_s=1.3e-6,
    matmul={
        "float32": _giga(_SQUARES, 3.2, 40, 120, 180),
        "float64": _giga(_SQUARES, 2.1, 22, 59, 84),
        "bfloat16": _giga(_SQUARES, 2.5, 9, 180, 400),
    },
    batched={
        "float32": _giga(_BATCHES, 2.5, 55, 100, 140),
        "float64": _giga(_BATCHES, 2.5, 20, 42, 65),
        "bfloat16": _giga(_BATCHES, 1.9, 57, 200, 220),
    },
    narrow={
        "m": _thin(0.4, 0.5, 0.95),
        "k": _thin(0.4, 0.75, 1),
        "n": _thin(0.4, 0.2, 0.8),
        "batched m": _thin(0.4, 0.6, 0.95),
        "batched k": _thin(0.25, 0.85, 1),
        "batched n": _thin(0.08, 0.22, 0.85),
    },
    memory=((2.0**20, 150e9), (2.0**23, 140e9), (2.0**26, 33e9)),
    fresh=3.4e9,
    conv={
        **_convs("conv2d contiguous", (0.9, 3.8), (1.3, 6.8, 38), (0.76, 4, 11), (1.1, 25, 110)),
        **_convs("conv2d channels_last", (1, 4.1), (1.3, 7.1, 58), (1, 5.5, 13), (2, 33, 160)),
        **_convs("conv_transpose2d contiguous", (0.83, 0.7), (0.8, 4.1, 12), (1.3, 4.2, 10), (1.1, 17, 130)),
        **_convs("conv_transpose2d channels_last", (0.85, 0.7), (1.4, 8.5, 54), (1.3, 5.5, 12), (1.8, 25, 160)),
    },
    functions={
        "tanh": _giga((2**17,), 0.63),
        "exp": _giga((2**17,), 1.8),
        "sigmoid": _giga((2**17,), 3.4),
        "gelu": _giga((2**17,), 1.2),
    },
    strided=10e9,
)
