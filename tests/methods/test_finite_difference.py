"""Steps chosen against the best of a logarithmic grid, and the error that is reported."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jaccli
from tests import nets, oracle
from tests.oracle import error

GRID = [10 ** (k / 4) for k in range(-32, 1)]


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 16), nn.Softplus(), nn.Linear(16, 8))


def kinked() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 32),
        nn.ReLU(),
        nn.Unflatten(1, (8, 2, 2)),
        nn.ConvTranspose2d(8, 4, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 4, 2, 1),
        nn.Sigmoid(),
    )


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(96, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 10))


class Scaled(nn.Module):
    """The same network for inputs in other units."""

    def __init__(self, body: nn.Module, units: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("units", units)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / self.units)


UNITS: dict[str, Callable[[int], Tensor]] = {
    "unit": torch.ones,
    "thousand": lambda n: torch.full((n,), 1e3),
    "thousandth": lambda n: torch.full((n,), 1e-3),
    "mixed": lambda n: 10 ** torch.linspace(-3, 3, n),
}


def network(build: Callable[[], nn.Module], units: str, dtype: torch.dtype, seed: int) -> tuple[nn.Module, int]:
    torch.manual_seed(seed)
    body = build()
    n_in = next(body.parameters()).shape[1]
    return Scaled(body, UNITS[units](n_in)).to(dtype).eval(), n_in


def truth_of(model: nn.Module, x: Tensor) -> Tensor:
    return oracle.jacobian(copy.deepcopy(model).double(), x.double(), oracle.INPUT, oracle.OUTPUT)


def central(model: nn.Module, x: Tensor, steps: Tensor) -> Tensor:
    """Plain central differences with a step for each coordinate, ``(n_in,)``."""
    moves = torch.diag(steps)
    with torch.no_grad():
        up, down = x.unsqueeze(1) + moves, x.unsqueeze(1) - moves  # (batch, n_in, n_in)
        width = (up - down).diagonal(dim1=1, dim2=2).unsqueeze(2)
        change = model(up.flatten(0, 1)).flatten(1) - model(down.flatten(0, 1)).flatten(1)
    return (change.reshape(*x.shape, -1) / width).transpose(1, 2)


def frobenius(matrix: Tensor, truth: Tensor) -> float:
    value = float((matrix.double() - truth).norm() / truth.norm())
    return value if math.isfinite(value) else math.inf


def best_of_grid(model: nn.Module, x: Tensor, units: Tensor, truth: Tensor) -> float:
    """One step for all coordinates, as such and in the units of each."""
    scales = [units] if bool((units == 1).all()) else [torch.ones_like(units), units]
    return min(frobenius(central(model, x, g * scale), truth) for g in GRID for scale in scales)


def estimated(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        j = jaccli.jacobian(model, x, method="finite-difference")
    notes = " ".join(str(w.message) for w in said)
    match = re.search(r"estimated relative error (\S+)", notes)
    assert match, notes
    return j, float(match[1])


def nearly_the_best(ratios: list[float]) -> None:
    """Of many draws, each with its own rounding and its own luck: half within 2, most within 3, none astray."""
    drawn = torch.tensor(ratios)
    said = f"median {drawn.median():.2f}, most {drawn.max():.2f}: {sorted(ratios)}"
    assert drawn.median() <= 2, said
    assert (drawn <= 3).double().mean() >= 0.8, said
    assert drawn.max() <= 10, said


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("build", [smooth, kinked, decoder, wide])
def test_steps_are_nearly_the_best(build: Callable[[], nn.Module], units: str, dtype: torch.dtype, batch: int) -> None:
    ratios, estimates = [], []
    for seed in range(8 if batch == 1 else 2):
        model, n_in = network(build, units, dtype, seed)
        scale = UNITS[units](n_in).to(dtype)
        x = torch.randn(batch, n_in, dtype=dtype) * scale
        truth = truth_of(model, x)
        j, estimate = estimated(model, x)
        got = frobenius(j, truth)
        ratios.append(got / best_of_grid(model, x, scale, truth))
        estimates.append(estimate / got)
    nearly_the_best(ratios)
    assert all(1 / 30 <= share <= 30 for share in estimates), estimates


class Rounded(nn.Module):
    """A network whose outputs share a rounding error of 2 eps, another one at every point."""

    def __init__(self, body: nn.Module, seed: int) -> None:
        super().__init__()
        self.body, self.seed = body, seed

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        chaotic = torch.sin(1e9 * (x / x.detach().abs().amax() * torch.arange(1, x.shape[1] + 1)).sum(1) + self.seed)
        return y * (1 + 2 * torch.finfo(y.dtype).eps * chaotic.round(decimals=1)).unsqueeze(1)


@pytest.mark.parametrize("units", ["unit", "thousandth"])
def test_coordinates_that_are_small_by_chance(units: str) -> None:
    """Their steps grow whatever the rounding: one quotient that is far off by chance does not keep them small."""
    model, n_in = network(wide, units, torch.float64, 1)
    scale = UNITS[units](n_in).double()
    x = torch.randn(1, n_in, dtype=torch.float64)
    x[0, ::8] *= 10.0 ** -torch.arange(n_in // 8)
    x *= scale
    truth = truth_of(model, x)
    ratios = []
    for seed in range(30):
        rounded = Rounded(model, seed)
        best = best_of_grid(rounded, x, scale, truth)
        ratios.append(frobenius(estimated(rounded, x)[0], truth) / best)
    nearly_the_best(ratios)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [smooth, kinked, decoder])
def test_zero_input(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    ratios = []
    for seed in range(5):
        model, n_in = network(build, "unit", dtype, seed)
        x = torch.zeros(2, n_in, dtype=dtype)
        truth = truth_of(model, x)
        got = frobenius(estimated(model, x)[0], truth)
        ratios.append(got / best_of_grid(model, x, torch.ones(n_in, dtype=dtype), truth))
    nearly_the_best(ratios)


def test_exact_on_a_linear_map() -> None:
    model = nn.Linear(4, 3).double()
    j = estimated(model, torch.randn(5, 4, dtype=torch.float64))[0]
    assert error(j, model.weight.detach().expand(5, 3, 4)) < 1e-13


def test_not_a_number_where_no_step_stays_inside() -> None:
    x = torch.tensor([[0.0, 4.0, -1.0]], dtype=torch.float64)

    class Roots(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt().nan_to_num(0.0) + x.sum(1, keepdim=True) + torch.where(x < 0, torch.nan, 0.0)[:, :1]

    j = jaccli.jacobian(Roots(), x, method="finite-difference")
    assert j[0, :, 0].isnan().any()
    assert j[0, :, 1:].isfinite().all()


def test_one_coordinate_of_zeros_among_large_ones() -> None:
    x = torch.tensor([[0.0, 1000.0, 0.0, -500.0]], dtype=torch.float64)

    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x * torch.tensor([1.0, 1e-3, 1.0, 1e-3], dtype=torch.float64))

    truth = truth_of(Waves(), x)
    assert error(estimated(Waves(), x)[0], truth) < 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_gradients_needed(mode: Callable[..., torch.no_grad]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    with mode():
        j = estimated(nets.NoBackward(), x)[0]
    assert error(j, torch.diag_embed(x.cos())) < 1e-8


def test_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        x = torch.randn(2, 4)
    j = estimated(model, x)[0]
    assert error(j, (model[0].weight / math.sqrt(1 + 1e-5)).detach().expand(2, 3, 4)) < 1e-4


def test_fewer_evaluations_than_forward_calls() -> None:
    """All perturbations go through the network in batches."""
    calls = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.shape[0])
            return super().forward(x)

    jaccli.jacobian(Counting(64, 8), torch.randn(2, 64), method="finite-difference")
    assert sum(calls) > 2 * 2 * 64
    assert len(calls) < 64


def test_bound_to_its_batch_goes_one_by_one() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    model = nets.Fixed().double()
    with pytest.warns(jaccli.JaccliNote, match="one evaluation at a time"):
        j = jaccli.jacobian(model, x, method="finite-difference")
    assert error(j, truth_of(model, x)) < 1e-7
