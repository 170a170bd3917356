"""A J that cannot fit is refused after one sample, not after all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.run.benchmark import race

N, WIDE, SAMPLES = 8, 512, 50
J_BYTES = 4 * N * WIDE  # of one sample


# Not the model's own, which is put back after each pass.
SEEN: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


class Wide(nn.Module):
    """8 numbers to 512, noting the samples of each pass; ``dim`` holds the samples."""

    def __init__(self, least: int = 1, dim: int = 0) -> None:
        super().__init__()
        self.fc, self.least, self.dim = nn.Linear(N, N), least, dim

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, self.dim)
        if len(x) < self.least:
            raise ValueError("expected more samples")
        SEEN.append(len(x))
        return self.fc(x.flatten(1)[:, :N]).tanh().repeat(1, WIDE // N)


def run(model: Wide, how: str, x: Tensor, limit: int, source: str = "input") -> None:
    if how == "bench":
        network = as_network(model)
        pair = resolve(network, source), resolve(network, "output")
        race(network, Inputs((x,)), pair, ["reverse"], rounds=1, max_memory=limit)
        return
    entry: Callable[..., object] = {"jacobian": jaccli.jacobian, "plan": jaccli.plan}[how]
    entry(model, x, source=source, max_memory=limit)


@pytest.mark.parametrize("how", ["jacobian", "plan", "bench"])
@pytest.mark.parametrize("limit", [J_BYTES // 2, J_BYTES + 64, SAMPLES * J_BYTES // 2])
def test_refused_after_one_sample(how: str, limit: int) -> None:
    """Whether J of one sample does not fit, J with its passes, or that of all samples, which these keep."""
    model = Wide().eval()
    with pytest.raises(jaccli.ResourceError, match=f"{WIDE} x {N}"):
        run(model, how, torch.randn(SAMPLES, N), limit)
    assert 1 <= sum(SEEN) <= 2


def test_time_major_samples() -> None:
    model = Wide(dim=1).eval()
    with pytest.raises(jaccli.ResourceError):
        run(model, "jacobian", torch.randn(N, SAMPLES), J_BYTES, "input@1")
    assert 1 <= sum(SEEN) <= 2


def test_a_model_that_refuses_one_sample_is_run_on_all() -> None:
    """BatchNorm in training mode, an export for a fixed batch: what all samples show is checked as well."""
    model = Wide(least=2).eval()
    with pytest.raises(jaccli.ResourceError, match=f"{WIDE} x {N}"):
        run(model, "jacobian", torch.randn(SAMPLES, N), J_BYTES)
    fits = jaccli.jacobian(model, torch.randn(4, N), max_memory=2**24)
    assert fits.shape == (4, WIDE, N)


def test_no_further_pass_where_there_is_no_limit() -> None:
    model = Wide().eval()
    jaccli.jacobian(model, torch.randn(SAMPLES, N), method="reverse")
    without = len(SEEN)
    assert 1 not in SEEN
    SEEN.clear()
    jaccli.jacobian(model, torch.randn(SAMPLES, N), method="reverse", max_memory=2**30)
    assert sorted(SEEN)[0] == 1
    assert len(SEEN) == without + 1


def test_large_inputs_are_looked_at_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model for images there may be more J than memory, whatever was said."""
    monkeypatch.setattr("jaccli.planning.decide.available", lambda device: J_BYTES)
    model = Wide().eval()
    with pytest.raises(jaccli.ResourceError, match="free memory"):
        jaccli.jacobian(model, torch.randn(SAMPLES, 2**13))
    assert 1 <= sum(SEEN) <= 2


def test_what_one_sample_shows_is_not_all() -> None:
    """J of samples that are compared with each other has as many rows as there are samples."""

    class Compared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.T

    x = torch.randn(6, N)
    assert jaccli.jacobian(Compared(), x, max_memory=2**24).shape == (6, 6, N)
