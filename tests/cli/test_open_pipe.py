"""A pipe gets each block of J as it is computed: the first is out while the second cannot be computed yet."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from .conftest import BIN, ENV

SAMPLES, N_IN, N_OUT = 64, 200, 100
# The first number of a sample is its own. Passes over all of them, or over the last ones, are part of planning.
NET = f"""
import pathlib
import time

from torch import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear({N_IN}, {N_OUT})

    def forward(self, x):
        if 0 < float(x.detach()[0, 0]) < {SAMPLES // 2}:
            pathlib.Path("waits").touch()
            for _ in range(6000):
                if pathlib.Path("go").exists():
                    break
                time.sleep(0.01)
        return self.fc(x)
"""
FORMATS = ("npy", "jsonl", "csv")
HEADER = 128  # bytes of an npy file before J


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    x = np.zeros((SAMPLES, N_IN), "f4")
    x[:, 0] = np.arange(SAMPLES)
    np.save(tmp_path / "x.npy", x)
    return tmp_path


def arrived(run: subprocess.Popen[bytes], waits: Path) -> bytes:
    """What the process has written by the time that it waits within its second block."""
    assert run.stdout is not None
    received, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        was_waiting = waits.exists()
        if select.select([run.stdout], [], [], 0.05)[0]:
            piece = os.read(run.stdout.fileno(), 1 << 16)
            assert piece, "the pipe was closed"
            received += piece
        elif was_waiting:
            return received
    raise AssertionError(f"no second block after {len(received)} bytes")


@pytest.mark.parametrize("chosen", FORMATS)
def test_the_first_block_comes_before_the_second_is_computed(chosen: str, folder: Path) -> None:
    argv = ("compute", "nets.py:Gated", "-i", "x.npy", "--method", "loop", "--max-memory", "1MB", "--format", chosen)
    run = subprocess.Popen([str(BIN), *argv], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    try:
        first = arrived(run, folder / "waits")
        assert run.poll() is None
        assert whole_samples(chosen, first) in range(1, SAMPLES // 2)
        assert torch.equal(first_matrix(chosen, first), weight())
        (folder / "go").touch()
        rest, said = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, said
    assert whole_samples(chosen, first + rest) == SAMPLES


def whole_samples(chosen: str, content: bytes) -> float:
    """How many samples there are; a part of one counts as less than one."""
    if chosen == "npy":
        return (len(content) - HEADER) / (4 * N_IN * N_OUT)
    lines = content.count(b"\n") + (not content.endswith(b"\n")) / 2
    return lines if chosen == "jsonl" else (lines - 1) / N_OUT


def first_matrix(chosen: str, content: bytes) -> torch.Tensor:
    """J of the first sample, ``(n_out, n_in)``."""
    if chosen == "npy":
        return torch.frombuffer(bytearray(content), dtype=torch.float32, offset=HEADER)[: N_OUT * N_IN].view(
            N_OUT, N_IN
        )
    lines = content.decode().splitlines()
    if chosen == "jsonl":
        return torch.tensor(json.loads(lines[0])["jacobian"])
    return torch.tensor([[float(v) for v in line.split(",")[4 : 4 + N_IN]] for line in lines[1 : 1 + N_OUT]])


def weight() -> torch.Tensor:
    """That of the network, which is J of each sample, ``(n_out, n_in)``."""
    torch.manual_seed(0)
    return nn.Linear(N_IN, N_OUT).weight.detach()
