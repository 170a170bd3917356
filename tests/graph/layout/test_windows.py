"""Windows at several resolutions: rows stay windows through what strides, pools and resamples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.graph.elimination import accumulate as engines
from jaccli.graph.elimination.accumulate import jacobian, plan_elimination
from jaccli.graph.elimination.bracketing import Bracketing
from jaccli.graph.trace.capture import capture
from jaccli.models.adapt import as_network
from jaccli.planning.linearize import computing, exact_attention, linearize
from tests.oracle import error

SIZE = 48
DOWN: dict[str, Callable[[], nn.Module]] = {
    "convolution by 2": lambda: nn.Conv1d(2, 2, 3, stride=2, padding=1),
    "convolution by 3, wide": lambda: nn.Conv1d(2, 2, 5, stride=3, padding=2, dilation=1),
    "convolution by 2, narrow": lambda: nn.Conv1d(2, 2, 1, stride=2),
    "max": lambda: nn.MaxPool1d(2),
    "mean of 4": lambda: nn.AvgPool1d(4),
    "overlapping max": lambda: nn.MaxPool1d(3, 2, 1),
}
UP: dict[str, Callable[[], nn.Module]] = {
    "transposed by 2": lambda: nn.ConvTranspose1d(2, 2, 2, 2),
    "transposed by 2, wide": lambda: nn.ConvTranspose1d(2, 2, 4, 2, 1),
    "transposed by 3, dilated": lambda: nn.ConvTranspose1d(2, 2, 3, 3, dilation=2, output_padding=1),
    "transposed by 2, with holes": lambda: nn.ConvTranspose1d(2, 2, 1, 2, output_padding=1),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "nearest by 4": lambda: nn.Upsample(scale_factor=4),
}
# Rows of these are stored in full: a matrix of positions, an index.
FULL = {"overlapping max"}


def planned(model: nn.Module, x: Tensor) -> engines.EliminationPlan:
    net = as_network(model.double().eval())
    with computing(net), exact_attention(True):
        (linearization,) = linearize(net, Inputs((x,)), [(resolve(net, "input"), resolve(net, "output"))])
        return plan_elimination(capture(linearization.linear.f))


def sweeps(plan: engines.EliminationPlan) -> dict[str, engines.EliminationPlan]:
    """All rows back, and all columns forward, whatever is quickest."""
    assert plan.bracketing is not None
    bracketings = [plan.bracketing, *plan.chain.sweeps(float("inf"), plan.bracketing)]
    ways = {
        bracketing.mode: replace(plan, bracketing=bracketing)
        for bracketing in bracketings
        if set(ways_of(bracketing)) == {bracketing.mode}
    }
    assert {"pull", "push"} <= ways.keys()
    return ways


def ways_of(bracketing: Bracketing) -> list[str]:
    return [bracketing.mode, *(way for part in bracketing.parts for way in ways_of(part))]


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "part by part"])
@pytest.mark.parametrize(("down", "up"), list(itertools.product(DOWN, UP)))
def test_rows_stay_windows(down: str, up: str, parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts:
        monkeypatch.setattr(engines, "AT_LEAST", 8)
        monkeypatch.setattr(engines, "SHARE", 0.01)
    torch.manual_seed(3)
    smooth = nn.Conv1d(2, 2, 3, padding=1)
    model = nn.Sequential(smooth, nn.Tanh(), DOWN[down](), nn.Tanh(), smooth, UP[up](), nn.Tanh(), smooth)
    x = torch.randn(2, 2, SIZE, dtype=torch.float64)
    plan = planned(model, x)
    truth = jaccli.jacobian(model, x, method="loop")
    for way, sweep in sweeps(plan).items():
        assert error(jacobian(sweep), truth) < 1e-12
        assert sweep.bracketing is not None
        if way == "pull" and down not in FULL:
            assert sweep.bracketing.peak < 0.75 * truth.numel()


class Skips(nn.Module):
    """Branches of other strides and widths added up."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
        self.wide = nn.Conv2d(1, 1, 5, padding=2)
        self.near = nn.Conv2d(1, 1, 3, padding=1)
        self.down = nn.Conv2d(1, 1, 2, stride=2)
        self.up = nn.ConvTranspose2d(1, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(x).tanh()
        quarter = nn.functional.max_pool2d(half, 2)
        branches = [
            lambda: self.wide(x.tanh()),
            lambda: self.near(x) * x,
            lambda: self.up(self.near(half)),
            lambda: self.up(self.up(quarter).sin() + half),
        ]
        total = branches[self.order[0]]()
        for branch in self.order[1:]:
            total = total.tanh() + branches[branch]()
        return total


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "part by part"])
@pytest.mark.parametrize("seed", range(6))
def test_windows_of_several_widths_and_strides_add_up(seed: int, parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts:
        monkeypatch.setattr(engines, "AT_LEAST", 8)
        monkeypatch.setattr(engines, "SHARE", 0.01)
    torch.manual_seed(seed)
    model, x = Skips(seed).double().eval(), torch.randn(2, 1, 12, 16, dtype=torch.float64)
    truth = jaccli.jacobian(model, x, method="loop")
    for sweep in sweeps(planned(model, x)).values():
        assert error(jacobian(sweep), truth) < 1e-12


def test_one_sample_of_one_pixel() -> None:
    """Nothing is left to count: no sample, no channel, no place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Tanh(), nn.Conv2d(1, 1, 1))
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    for sweep in sweeps(planned(model, x)).values():
        assert error(jacobian(sweep), jaccli.jacobian(model, x, method="loop")) < 1e-12
