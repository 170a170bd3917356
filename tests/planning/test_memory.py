"""A memory limit is kept, measured from outside as the growth of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jaccli

SCRIPT = """
import sys, gc, re, torch, jaccli
from torch import nn

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

method, limit = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
channels = 24
model = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.Tanh(), nn.Conv2d(channels, 1, 3, padding=1)).eval()
warm, x = torch.randn(2, 1, 4, 4), torch.randn(4, 1, 24, 24)
for name in ("auto", "reverse", "forward", "replicate", "finite-difference"):
    jaccli.jacobian(model, warm, method=name)  # imports
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
j = jaccli.jacobian(model, x, method=method, max_memory=limit)
print(status("VmHWM") - before)
"""
# J is 4 x 576 x 576 floats, 5 MiB; all rows at once would be 576 copies of an activation of 221 KiB: 121 MiB
# for each tensor alive.
LIMIT = 40 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["auto", "reverse", "forward", "replicate", "finite-difference"])
def test_limit_is_kept(method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, method, str(LIMIT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < LIMIT, f"{grown / 2**20:.1f} MiB against {LIMIT / 2**20:.0f} MiB"


@pytest.mark.parametrize(
    "method", ["auto", "reverse", "forward", "replicate", "finite-difference", "loop", "functional"]
)
def test_impossible_limit(method: str) -> None:
    with pytest.raises(jaccli.ResourceError, match=r"30 x 50.*KiB") as caught:
        jaccli.jacobian(nn.Linear(50, 30), torch.randn(8, 50), method=method, max_memory=5000)
    assert caught.value.exit_code == 5
    assert "4.88 KiB" in caught.value.expected
    assert len(str(caught.value).splitlines()) <= 3


def test_a_limit_changes_nothing_but_memory() -> None:
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 30)).double()
    x = torch.randn(40, 50, dtype=torch.float64)
    truth = jaccli.jacobian(model, x, method="loop")
    for method in ("auto", "reverse", "forward", "replicate"):
        j = jaccli.jacobian(model, x, method=method, max_memory=truth.numel() * 8 + 200_000)
        assert torch.allclose(j, truth, rtol=1e-10, atol=1e-14)
