"""Convolutions by phases against torch's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import jaccli
from jaccli.graph.elimination.accumulate import jacobian
from jaccli.graph.maps import convolution
from jaccli.graph.maps.polyphase import Taps, by_phases, repeated, transposed
from jaccli.graph.trace.tracer import Tracer
from tests.graph.layout.test_windows import planned, sweeps
from tests.oracle import error
from tests.structured_networks import SEGMENTS, normal

DIRECTIONS = [
    (kernel, finer, block, padding)
    for kernel, finer, block, padding in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2, 4), (0, 1, 2, 6))
    if padding < 3 or kernel == 2
]


def convolve(data: Tensor, filters: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    n = [0] * len(stride)
    return torch.convolution(data, filters, None, stride, padding, [1] * len(stride), False, n, 1)


def joined(phased: Tensor) -> Tensor:
    sizes = [a * b for a, b in zip(phased.shape[2::2], phased.shape[3::2], strict=True)]
    return phased.reshape(*phased.shape[:2], *sizes)


@pytest.mark.parametrize(("kernel", "times", "block", "padding"), DIRECTIONS)
def test_of_repeated_pixels(kernel: int, times: int, block: int, padding: int) -> None:
    x, weight = normal((2, 3, 7), 1), normal((2, 3, kernel), 2)
    want = convolve(x.repeat_interleave(times, 2), weight, [1], [padding])
    places = want.shape[2] // (times * block)
    if places:  # the last pixels of a result that blocks do not divide are not asked for
        got = joined(by_phases(x, weight, [repeated(kernel, times, block, padding)], (places,), convolve))
        torch.testing.assert_close(got, want[:, :, : got.shape[2]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "block", "padding"), DIRECTIONS)
def test_transposed(kernel: int, stride: int, block: int, padding: int) -> None:
    x, weight = normal((2, 3, 12), 1), normal((3, 2, kernel), 2)
    want = torch.convolution(x, weight, None, [stride], [padding], [1], True, [stride - 1], 1)
    places = want.shape[2] // (stride * block)
    if places:
        taps = [transposed(kernel, stride, block, padding)]
        got = joined(by_phases(x, weight.transpose(0, 1), taps, (places,), convolve))
        torch.testing.assert_close(got, want[:, :, : got.shape[2]], rtol=1e-12, atol=1e-12)


def test_every_direction_in_its_own_way() -> None:
    x, weight = normal((2, 3, 4, 6), 1), normal((2, 3, 3, 5), 2)
    taps = [repeated(3, 3, 1, 1), repeated(5, 1, 2, 2)]
    got = joined(by_phases(x, weight, taps, (4, 3), convolve))
    torch.testing.assert_close(got, convolve(x.repeat_interleave(3, 2), weight, [1, 1], [1, 2]))


def test_the_address_of_memory_that_is_gone_says_nothing() -> None:
    """A constant that comes to lie where a result lay does not vary for that."""
    reused = False
    with Tracer() as tracer:
        x = torch.ones(8)
        tracer.adopt(x, True)
        for _ in range(100):
            gone = x * 2
            assert tracer.variable_of(gone).memory.varies
            address = gone.untyped_storage()._cdata
            del gone
            fresh = torch.from_numpy(normal((8,), 1).numpy())
            reused |= fresh.untyped_storage()._cdata == address
            assert not tracer.variable_of(fresh).memory.varies
    assert reused


def test_rows_and_columns_in_full_go_by_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without windows, all rows back and all columns forward through every segment."""
    monkeypatch.setattr(convolution, "_LOCAL", 0.0)
    seen: set[tuple[bool, bool]] = set()

    def spied(data: Tensor, weight: Tensor, taps: Sequence[Taps], places: Any, convolve: Any) -> Tensor:
        seen.add((any(t.step > 1 for t in taps), any(t.phases > t.step for t in taps)))
        return by_phases(data, weight, taps, places, convolve)

    monkeypatch.setattr(convolution, "by_phases", spied)
    off: dict[str, float] = {}
    for s in SEGMENTS:
        if s.target != "output" or s.source != "input" or s.args():
            continue
        plan = planned(s.model(), s.x(1))
        truth = jaccli.jacobian(s.model(), s.x(1), method="loop")
        for way, sweep in sweeps(plan).items():
            off[f"{s.name}, {way}"] = error(jacobian(sweep), truth)
    assert {name: e for name, e in off.items() if not e < 1e-11} == {}
    assert seen == {(True, False), (False, True), (True, True)}  # blocks, finer grids, and blocks of these
