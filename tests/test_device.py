"""On every accelerator that is there; where there is none, on the stand-in for one (``standin.py``).

All of the scenario table: each method, products, estimates, gradients and commands; against the oracle, or against
the same command on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.cli.boundary import run
from jaccli.cli.work import find_device
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.penalty.identity import deviation_from
from jaccli.run.blocks import RunOptions, stream
from jaccli.run.execute import Outcome
from tests import scenarios, standin
from tests.hard_rules import HARD
from tests.linearization import test_no_gradients, test_products
from tests.linearization.test_no_gradients import REFUSING
from tests.oracle import error
from tests.scenarios import BY_NAME, TABLE, Scenario, case_name

REAL = [kind for kind in ("cuda", "mps", "xpu") if torch.get_device_module(kind).is_available()]
pytestmark = pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
DIFFERENCE = {torch.float64: 1e-6, torch.float32: 2e-2, torch.bfloat16: 0.3}
# The cells of these are one kernel there, which has no forward mode.
RECURRENT = ("LSTM", "GRU")
SEPARATE = [s for s in TABLE if not s.train]
SMOOTH = [s for s in SEPARATE if torch.float64 in s.dtypes and not s.warns and "zero" not in s.takes.values()]


def some(table: list[Any]) -> list[Any]:
    """All of a table on an accelerator; on the stand-in, which computes as the CPU does, every third."""
    return table if REAL else table[::3]


@pytest.fixture(params=REAL or [standin.NAME])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param != standin.NAME:
        yield torch.device(request.param, 0)
        return
    with standin.present() as there:
        yield there
    # Also where another way was found.
    assert not standin.REFUSED


def there(value: Any, device: torch.device) -> Any:
    """Tensors of a nested value on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: there(item, device) for key, item in value.items()}
    return tuple(there(item, device) for item in value) if isinstance(value, tuple) else value


def dtype_of(s: Scenario, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" and torch.float32 in s.dtypes else s.dtypes[-1]


def placed(s: Scenario, device: torch.device) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Model, samples, and further arguments of a scenario on the device."""
    dtype = dtype_of(s, device)
    return s.model(dtype).to(device), there(s.x(dtype), device), there(s.extras(dtype), device)


def close(found: Tensor, truth: Tensor, tolerance: float) -> None:
    assert found.device.type != "cpu"
    assert error(found.cpu(), truth) <= tolerance


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("s", TABLE, ids=case_name)
def test_every_method_agrees_with_the_oracle(s: Scenario, method: Any, device: torch.device) -> None:
    model, x, extras = placed(s, device)
    network, dtype = as_network(model), dtype_of(s, device)
    pair = (resolve(network, s.source), resolve(network, s.target))
    inputs = Inputs((x, *extras["args"]), extras["kwargs"], (pair[0].dim or 0) if pair[0].is_model_input else 0)
    torch.manual_seed(0)
    if "Dropout" in s.warns and device.type != standin.NAME:
        pytest.skip("another generator draws another mask")
    (piece,) = stream(network, inputs, [pair], RunOptions(method, None, None), keep=True)
    outcome: Outcome = piece.outcome
    tolerances = DIFFERENCE if outcome.method == "finite-difference" else EXACT
    close(outcome.matrix, s.truth(dtype), s.slack.get(outcome.method, tolerances[dtype]))
    if method != "auto" and "zero" not in s.takes.values():
        alone = {"forward": "reverse"} if s.name.startswith(RECURRENT) and "source" not in s.name else {}
        assert outcome.method == {**s.takes, **alone}.get(method, method)


@pytest.mark.parametrize("method", ["auto", "structured", "reverse", "forward", "replicate"])
@pytest.mark.parametrize("name", ["conv", "images to images", "attention", "LSTM", "instance norm"])
def test_float32_is_float32(name: str, method: Any, device: torch.device) -> None:
    """What an accelerator computes in less unasked (TF32 in convolutions) is not in J."""
    s, dtype = BY_NAME[name], torch.float32
    model, x = s.model(dtype).to(device), s.x(dtype).to(device)
    found = jaccli.jacobian(model, x, s.source, s.target, method=method)
    close(found, s.truth(dtype), 3e-5)


@pytest.mark.parametrize("s", some(SEPARATE), ids=case_name)
def test_a_plan_and_its_second_call(s: Scenario, device: torch.device) -> None:
    model, x, extras = placed(s, device)
    dtype = dtype_of(s, device)
    made = jaccli.plan(model, x, s.source, s.target, **extras)
    assert str(made)
    if not s.warns:
        for _ in range(3):
            close(made(x, **extras), s.truth(dtype), s.slack.get("auto", EXACT[dtype]))


@pytest.mark.parametrize("s", some(SMOOTH), ids=case_name)
def test_products_and_estimates(s: Scenario, device: torch.device) -> None:
    model, x, extras = placed(s, device)
    dtype, tolerance = dtype_of(s, device), EXACT[dtype_of(s, device)]
    truth = s.truth(dtype)
    a = jaccli.operator(model, x, s.source, s.target, **extras)
    batch, n_out, n_in = a.shape
    v, u = torch.randn(batch, n_in, 2).to(dtype), torch.randn(batch, n_out, 2).to(dtype)
    for given in (lambda t: t, lambda t: t.to(device)):
        close(a.matmat(given(v)), truth @ v.double(), tolerance)
        close(a.rmatmat(given(u)), truth.mT @ u.double(), tolerance)
    close(a.T.matvec(given(u)[..., 0])[..., None], truth.mT @ u[..., :1].double(), tolerance)
    close(a.materialise(), truth, tolerance)
    sigma = torch.linalg.svdvals(truth)
    assert torch.allclose(a.frobenius().cpu().double(), sigma.square().sum(1).sqrt(), rtol=tolerance)
    found = a.singular_values(1).cpu().double()
    assert torch.allclose(found, sigma[:, :1], rtol=1e-4, atol=1e-6)
    assert np.allclose(a[0] @ v[0].numpy(), (truth[0] @ v[0].double()).numpy(), rtol=1e-3, atol=1e-4)
    figures = jaccli.estimate(a, probes=4)
    assert all(e.value.shape == (batch,) for e in figures.values())
    assert torch.allclose(figures["spectral_norm"].value.cpu().double(), sigma[:, 0], rtol=1e-4, atol=1e-6)
    if n_out == n_in:
        assert torch.allclose(a.trace().cpu().double(), truth.diagonal(0, 1, 2).sum(1), rtol=1e-4, atol=1e-6)
        off = (a - a.I).frobenius().cpu().double()
        eye = torch.eye(n_in, dtype=torch.float64)
        assert torch.allclose(off, (truth - eye).flatten(1).norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("s", some(SMOOTH), ids=case_name)
def test_gradients_of_j(s: Scenario, device: torch.device) -> None:
    """‖J‖² by J itself and by probes, and its derivative along the parameters: as on the CPU."""
    dtype = dtype_of(s, device)
    home, x, extras = s.model(dtype), s.x(dtype), s.extras(dtype)
    away, there_x, there_extras = placed(s, device)
    names = (s.source, s.target)

    def taken(model: nn.Module, x: Tensor, extras: Any, **how: Any) -> list[Tensor]:
        given = [p.requires_grad_() for p in model.parameters()]
        try:
            value = deviation_from("zero", model, x, *names, **how, **extras)
        except jaccli.UnsupportedError:
            return []
        grads = torch.autograd.grad(value.sum(), given, allow_unused=True) if value.requires_grad and given else []
        return [value.detach(), *(g for g in grads if g is not None)]

    rough = 1e-7 if dtype == torch.float64 else 5e-3
    for a, b in zip(taken(away, there_x, there_extras), taken(home, x, extras), strict=True):
        assert a.device.type == device.type
        assert torch.allclose(a.cpu(), b, rtol=rough, atol=rough * max(float(b.abs().max()), 1e-3))
    for value in taken(away, there_x, there_extras, estimator="hutchinson", probes=2):
        assert value.device.type == device.type
    if s.truth().shape[1] == s.truth().shape[2]:
        seeded = torch.Generator(device)
        for how in ({"estimator": "hutchinson", "generator": seeded}, {"estimator": "exact"}):
            with suppress(jaccli.UnsupportedError):  # as on the CPU
                jaccli.identity_deviation(away, there_x, *names, **how, **there_extras)


@pytest.mark.parametrize("s", [s for s in SMOOTH if (s.source, s.target) == ("input", "output")], ids=case_name)
def test_graphs_that_exist(s: Scenario, device: torch.device) -> None:
    x = s.x(dtype_of(s, device))
    if not x.is_floating_point():
        pytest.skip("samples of integers")
    truth, tolerance = s.truth(dtype_of(s, device)), EXACT[dtype_of(s, device)]
    for create_graph in (False, True):
        model, x, extras = placed(s, device)  # it may keep a state
        x.requires_grad_()
        if s.name in ("LSTM", "GRU", "RNN") and device.type == "cuda":
            with pytest.raises(jaccli.UnsupportedError, match="without cuDNN"):
                jaccli.graph_jacobian(model(x * 1), x)
        with torch.backends.cudnn.flags(enabled=False):
            y = model(x * 1, *extras["args"], **extras["kwargs"])
        close(jaccli.graph_jacobian(y, x, create_graph, samples=True).detach(), truth, tolerance)
        for chunk in (None, 2):
            whole = jaccli.graph_jacobian(y, x, create_graph, chunk=chunk).detach()
            blocks = [whole[b].reshape(-1, *x.shape)[:, b].flatten(1) for b in range(len(x))]
            close(torch.stack(blocks), truth, tolerance)


@pytest.mark.parametrize("name", [*HARD, *REFUSING])
def test_hard_rules(name: str, device: torch.device) -> None:
    """Networks whose derivatives in torch are wrong or absent, and those that run only without gradients."""
    if device.type == "mps":
        pytest.skip("no float64")
    if name == "flexible attention" and device.type == standin.NAME:
        pytest.skip("torch knows this operator on its own devices alone")
    home, x, j = (test_no_gradients if name in REFUSING else test_products).made(name)
    model, near = home.to(device), 1e-6 if name in REFUSING else 1e-9
    x, v = x.to(device), torch.randn(len(x), j.shape[2], 9, dtype=x.dtype)
    close(jaccli.jacobian(model, x), j, near)
    plan = jaccli.plan(model, x)
    for _ in range(2):
        close(plan(x), j, near)
    a = jaccli.operator(model, x)
    close(a.matmat(v), j @ v, near)
    close(a.rmatmat(j @ v), j.mT @ (j @ v), near)


def test_a_plan_refuses_another_device(device: torch.device) -> None:
    model, x, _ = placed(BY_NAME["conv"], device)
    plan = jaccli.plan(model, x)
    with pytest.raises(jaccli.UsageError, match="device"):
        plan(x.cpu())


# --- commands ---------------------------------------------------------------------------------------------------------


JSON = ("--format", "json", "--device", "auto")
COMMANDS = (
    ("compute", "--format", "jsonl", "--device", "auto"),
    ("deviation", *JSON),
    ("deviation", *JSON, "--estimate"),
    ("spectrum", *JSON),
    ("spectrum", *JSON, "--eigenvalues"),
    ("spectrum", *JSON, "--top", "1", "--estimate"),
)


# Estimates look at two samples first.
@pytest.mark.parametrize("s", some([s for s in SEPARATE if s.name != "bound to its batch"]), ids=case_name)
def test_commands_agree_with_the_oracle(
    s: Scenario, device: torch.device, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    dtype = dtype_of(s, device)
    truth, rough = s.truth(dtype), 1e-6 if dtype == torch.float64 else EXACT[dtype]
    square = truth.shape[1] == truth.shape[2]
    for command, *flags in COMMANDS:
        code, found, text = said(command, s, tmp_path, capfdbinary, *flags)
        if not square and (command == "deviation" or "--eigenvalues" in flags):
            assert code == 2, text
            continue
        assert code == 0, text
        if command == "compute":
            assert error(torch.tensor([row["jacobian"] for row in found]), truth) <= rough
        elif "zero" not in s.takes.values():
            j = truth - torch.eye(truth.shape[2], dtype=truth.dtype) if command == "deviation" else truth
            for sample, one in zip(found[0]["pairs"][0]["samples"], j, strict=True):
                assert sample["frobenius"] == pytest.approx(float(one.norm()), rel=10 * rough), flags


@pytest.mark.parametrize("name", some(["residual", "LSTM", "attention", "conv", "embedding", "index list", "no path"]))
def test_bench_and_regularize(
    name: str, device: torch.device, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    s = BY_NAME[name]
    code, (report,), text = said("bench", s, tmp_path, capfdbinary, "--rounds", "3", *JSON)
    assert code == 0, text
    for row in report["methods"]:
        if row["method"] == "forward" and name in RECURRENT:
            continue
        assert row["status"] == "ok", row
        rough = DIFFERENCE if "finite-difference" in (row["method"], row.get("takes")) else EXACT
        assert row["max_error"] <= s.slack.get(row["method"], rough[dtype_of(s, device)]), row
    short = (
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--towards",
        "orthogonal",
        "--force",
        "-o",
        str(tmp_path / "new.safetensors"),
    )
    if name not in ("no path", "index list", "embedding"):
        code, _, text = said("regularize", s, tmp_path, capfdbinary, *short, *JSON)
        assert code == 0, text


def said(
    command: str, s: Scenario, folder: Path, capture: pytest.CaptureFixture[bytes], *flags: str
) -> tuple[int, list[Any], str]:
    """Exit code, records and messages of a command on a scenario."""
    code = run([command, *arguments(s, folder), *flags])
    out, err = capture.readouterr()
    lines = out.decode().splitlines() if "jsonl" in flags else [out.decode()]
    return code, [json.loads(line) for line in lines if line.strip()], err.decode()


def arguments(s: Scenario, folder: Path) -> list[str]:
    dtype = s.dtypes[-1]
    np.save(folder / "x.npy", s.x(torch.float32).numpy())
    extras = s.extras(torch.float32)
    named = [(str(i), v) for i, v in enumerate(extras["args"], 1)] + list(extras["kwargs"].items())
    words = []
    for name, value in named:
        if isinstance(value, Tensor):
            np.save(folder / f"{name}.npy", value.numpy())
            value = f"@{folder}/{name}.npy"
        words += ["--arg", f"{name}={value}"]
    model = [f"{scenarios.__file__}:build", "--arch-arg", f"name={s.name}", "--seed", "3", "--trust"]
    names = ["--from", s.source, "--to", s.target, "--dtype", str(dtype).removeprefix("torch.")]
    return [*model, "-i", str(folder / "x.npy"), *names, *words]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_an_absent_device_is_a_usage_error(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in REAL:
        pytest.skip(f"{kind} is here")
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save("m.pt")
    assert run(["compute", "m.pt", "-i", "random:2", "--device", kind]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert kind in lines[0]
    assert len(lines) <= 3


@pytest.mark.skipif(bool(REAL), reason="an accelerator is here")
def test_auto_is_the_cpu_where_the_device_torch_was_built_for_is_absent() -> None:
    assert torch.accelerator.current_accelerator() is not None
    assert find_device("auto") == torch.device("cpu")
