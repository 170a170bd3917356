"""Which dimension counts the samples, and which arguments have a row for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.activations.sample_dimension import find_samples
from jaccli.cli.boundary import run
from jaccli.models.adapt import as_network


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lstm(x)[1][0]
        return self.fc(h[-1])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(mask @ self.fc(x))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.jit.script(SequenceFirst().eval()).save("lstm.pt")
    torch.jit.script(Masked().eval()).save("masked.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 2, 3)).astype("f4"))
    return tmp_path


@pytest.mark.parametrize("source", ["lstm:out.1.0@1", "input@1"])
def test_samples_may_be_in_another_dimension(folder: Path, source: str) -> None:
    assert run(["compute", "lstm.pt", "-i", "x.npy", "--from", source, "-o", "all.npy"]) == 0
    assert run(["compute", "lstm.pt", "-i", "x.npy", "--from", source, "--samples", "1", "-o", "one.npy"]) == 0
    model, x = jaccli.load_model("lstm.pt"), torch.from_numpy(np.load("x.npy"))
    whole = np.load("all.npy")
    assert whole.shape[0] == 2
    np.testing.assert_allclose(np.load("one.npy"), whole[1:], rtol=1e-5)
    np.testing.assert_array_equal(jaccli.jacobian(model, x, source).numpy(), whole)
    if source.startswith("lstm"):
        for block in whole:
            np.testing.assert_allclose(block, model.fc.weight.detach(), rtol=1e-5)
    else:
        alone = [torch.autograd.functional.jacobian(model, x[:, b : b + 1]) for b in (0, 1)]
        np.testing.assert_allclose(whole, torch.stack([a.reshape(2, 15) for a in alone]).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("samples", [3, 5])
def test_an_argument_that_is_not_per_sample_is_not_picked_from(folder: Path, samples: int) -> None:
    mask = np.tril(np.ones((5, 5), "f4"))
    x = np.random.default_rng(1).standard_normal((samples, 5, 4)).astype("f4")
    np.save("mask.npy", mask)
    np.save("xs.npy", x)
    common = ["compute", "masked.pt", "-i", "xs.npy", "--arg", "mask=@mask.npy"]
    assert run([*common, "-o", "all.npy"]) == 0
    assert run([*common, "--samples", "2,0", "-o", "some.npy"]) == 0
    np.testing.assert_allclose(np.load("some.npy"), np.load("all.npy")[[2, 0]], rtol=1e-5, atol=1e-7)


def test_an_argument_with_a_row_a_sample_is_picked_from(folder: Path) -> None:
    torch.jit.trace(_Scaled(), (torch.zeros(3, 4), torch.zeros(3, 1))).save("scaled.pt")
    np.save("xs.npy", np.ones((3, 4), "f4"))
    np.save("scale.npy", np.array([[1.0], [2.0], [3.0]], "f4"))
    assert run(["compute", "scaled.pt", "-i", "xs.npy", "--arg", "1=@scale.npy", "--samples", "2", "-o", "J.npy"]) == 0
    np.testing.assert_allclose(np.load("J.npy"), 3 * np.eye(4, dtype="f4")[None])


class _Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


def test_an_index_is_numpys(folder: Path) -> None:
    torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)).save("m.pt")
    weight = jaccli.load_model("m.pt").weight.detach()
    x = torch.ones(1, 4)
    torch.testing.assert_close(jaccli.jacobian(jaccli.load_model("m.pt"), x, "input[::-1]")[0], weight.flip(1))
    with pytest.raises(jaccli.UsageError, match="picks nothing"):
        jaccli.jacobian(jaccli.load_model("m.pt"), x, "input[0:0]")


def test_finite_differences_of_a_pair_without_a_path_are_zero() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.enc(x) + torch.tanh(self.enc(x + 1))

    with pytest.warns(jaccli.JaccliNote, match="J is zero"):
        J = jaccli.jacobian(Two().eval(), torch.randn(3, 6), "enc#1", "enc#2", method="finite-difference")
    assert not J.any()


def test_finite_differences_of_a_model_that_takes_gradients() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x if x.requires_grad else x.detach().requires_grad_()
                return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    model, x = Force().double().eval(), torch.randn(2, 3, dtype=torch.float64)
    exact = jaccli.jacobian(model, x, method="loop")
    near = jaccli.jacobian(model, x, method="finite-difference")
    torch.testing.assert_close(near, exact, rtol=1e-6, atol=1e-8)


def test_a_first_block_that_is_too_large_is_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.trace(nn.Sequential(nn.Linear(400, 400), nn.Tanh()), torch.zeros(1, 400)).save("wide.pt")
    argv = ["compute", "wide.pt", "-i", "random:400,n=24", "--max-memory", "4MB", "--explain", "-o", "J.npy"]
    assert run(argv) == 0
    plan = capsys.readouterr().err
    assert "samples at a time" in plan
    assert np.load("J.npy").shape == (24, 400, 400)


def test_identity_share_of_the_identity_is_one() -> None:
    from jaccli.statistics.identity_distance import deviation

    for n in range(1, 60):
        assert deviation(2 * torch.eye(n, dtype=torch.float64) / 3)["identity_share"] <= 1.0


@pytest.mark.parametrize("name", ["input@2", "input@5"])
def test_a_dimension_that_the_input_has_not(name: str) -> None:
    network = as_network(nn.Linear(3, 2))
    with pytest.raises(jaccli.UsageError, match=r"expected a dimension from 0 to 1"):
        find_samples(network, Inputs((torch.randn(4, 3),)), [resolve(network, name)])
    with pytest.raises(jaccli.UsageError, match=r"expected a dimension from 0 to 1"):
        jaccli.jacobian(nn.Linear(3, 2), torch.randn(4, 3), name)
