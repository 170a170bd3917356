"""On every accelerator that is there; skipped where there is none."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import jaccli
from jaccli.cli.boundary import run
from jaccli.names import METHOD_NAMES

DEVICES = [kind for kind in ("cuda", "mps", "xpu") if torch.get_device_module(kind).is_available()] or [
    pytest.param("none", marks=pytest.mark.skip(reason="no accelerator here"))
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12)
    ).eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_methods_agree_with_the_cpu(device: str, method: str) -> None:
    model, x = net(), torch.randn(3, 1, 6, 6)
    want = jaccli.jacobian(copy.deepcopy(model).double(), x.double(), method="loop")
    got = jaccli.jacobian(copy.deepcopy(model).to(device), x.to(device), method=method)
    assert got.device.type == device
    tolerance = 2e-2 if method == "finite-difference" else 1e-3  # TF32 may be on
    torch.testing.assert_close(got.cpu().double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_plan_refuses_another_device(device: str) -> None:
    model, x = net().to(device), torch.randn(2, 1, 6, 6)
    plan = jaccli.plan(model, x.to(device))
    with pytest.raises(jaccli.UsageError, match="device"):
        plan(x)


@pytest.mark.parametrize("device", DEVICES)
def test_commands_take_the_device(device: str, tmp_path, monkeypatch, capsysbinary) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).eval()).save("m.pt")
    np.save("x.npy", np.ones((2, 4), dtype=np.float32))
    assert run(["deviation", "m.pt", "-i", "x.npy", "--layer", "0", "--device", device, "--format", "json"]) == 0
    there = json.loads(capsysbinary.readouterr().out)
    assert run(["deviation", "m.pt", "-i", "x.npy", "--layer", "0", "--format", "json"]) == 0
    here = json.loads(capsysbinary.readouterr().out)
    for a, b in zip(there["pairs"][0]["samples"], here["pairs"][0]["samples"], strict=True):
        assert a["frobenius"] == pytest.approx(b["frobenius"], rel=1e-3)
    assert run(["bench", "m.pt", "-i", "x.npy", "--device", device, "--rounds", "3", "--format", "json"]) == 0
    rows = json.loads(capsysbinary.readouterr().out)["methods"]
    assert all(row["peak_bytes"] > 0 for row in rows if row["status"] == "ok")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_an_absent_device_is_a_usage_error(kind: str, capsys, tmp_path, monkeypatch) -> None:
    if torch.get_device_module(kind).is_available():
        pytest.skip(f"{kind} is here")
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save("m.pt")
    assert run(["compute", "m.pt", "-i", "random:2", "--device", kind]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert kind in lines[0]
    assert len(lines) <= 3
