"""Two runs of a command write the same bytes, whatever the clock says and whatever the model draws from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jaccli.networks.state import random_generators as noise

from .conftest import ENV, Result, Run

NETS = """
import random

import numpy as np
import torch
from torch import nn


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.gain = torch.from_numpy(np.random.uniform(1, 2, 3)).float()  # fresh weights by NumPy
        self.draw = draw

    def forward(self, x):
        return (self.fc(x) * self.draw(x) * self.gain).tanh()


def by_torch():
    return Drawing(torch.rand_like)


def by_dropout():
    return Drawing(lambda x: nn.functional.dropout(torch.ones_like(x)))


def by_numpy():
    return Drawing(lambda x: torch.from_numpy(np.random.uniform(1, 2, x.shape[1])).to(x))


def by_python():
    return Drawing(lambda x: random.gauss(1, 1))


def by_fresh():
    return Drawing(lambda x: torch.from_numpy(np.random.default_rng().uniform(1, 2, x.shape[1])).to(x))


def plain():
    return Drawing(lambda x: 1.0)


def wide():
    layers = [nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 80), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(80, 96))


def narrow():
    return nn.Sequential(nn.Linear(400, 24), nn.Tanh(), nn.Linear(24, 400), nn.GELU(), nn.Linear(400, 400))


def conv():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(4, 1, 3, padding=1))


def attention():
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
"""
DRAWING = ["torch", "dropout", "numpy", "python", "fresh"]
INPUTS = {
    "wide": "random:96,n=5",
    "narrow": "random:400,n=6",
    "conv": "random:1x14x14,n=3",
    "attention": "random:9x16,n=2",
}


@pytest.fixture(autouse=True, scope="module")
def _nets(files: Path) -> None:
    (files / "drawn.py").write_text(NETS)


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    with noise.seeded(7):
        yield


@pytest.fixture
def shaken(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the clock run at a random pace: any choice that it makes goes another way now and then."""
    clock = time.perf_counter

    def shake(seed: int) -> None:
        pace, last, now = random.Random(seed), [clock()], [clock()]
        paces = [[1e-4], [1e3], [1e-4, 1.0, 1e3]][seed % 3]  # slow, fast, and now this, now that

        def shaken_clock() -> float:
            here = clock()
            now[0] += (here - last[0]) * pace.choice(paces)
            last[0] = here
            return now[0]

        monkeypatch.setattr(time, "perf_counter", shaken_clock)

    return shake


def untimed(result: Result) -> Any:
    """Its standard output without measured times."""
    out = result.ok().out
    if out.lstrip().startswith(b"{") and b'"timing"' in out:
        return {name: value for name, value in json.loads(out).items() if name != "timing"}
    return out


COMMANDS = {
    "compute": ("compute", "--format", "npy"),
    "compute, seed": ("compute", "--format", "npy", "--seed", 3),
    "deviation": ("deviation", "--layer", "input", "--format", "csv"),
    "deviation, json": ("deviation", "--layer", "input", "--format", "json"),
    "estimate": ("deviation", "--layer", "input", "--probes", 4),
    "spectrum": ("spectrum",),
    "spectrum, estimate": ("spectrum", "--estimate"),
    "layers": ("layers",),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", DRAWING)
def test_models_that_draw(cli: Run, name: str, command: str) -> None:
    """One seed, one draw; generators are as they were, and what the run before left behind is no matter."""
    verb, *flags = COMMANDS[command]
    line = (verb, f"drawn.py:by_{name}", "-i", "random:3,n=4", *flags)
    first = cli(*line)
    _ = torch.rand(3), np.random.rand(3), random.random()
    second = cli(*line)
    assert untimed(first) == untimed(second)
    assert ("J is of one draw" in first.err) == (verb != "layers")
    if "--seed" not in flags:
        assert untimed(cli(*line, "--seed", 0)) == untimed(first)


@pytest.mark.parametrize("name", DRAWING)
def test_another_seed_is_another_draw(cli: Run, name: str, files: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(files / "identity.pt"))
    line = ("compute", f"drawn.py:by_{name}", "-i", "random:3,n=2", "--format", "npy")
    assert cli(*line, "--seed", 1).ok().out != cli(*line, "--seed", 2).ok().out


def test_a_model_that_does_not_draw_is_not_warned_of(cli: Run) -> None:
    for verb in ("compute", "deviation", "spectrum"):
        layer = ("--layer", "input") if verb == "deviation" else ()
        assert "one draw" not in cli(verb, "drawn.py:plain", "-i", "random:3", "--format", "csv", *layer).err


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("flags", [("compute", "--format", "npy"), ("spectrum",), ("deviation", "--layer", "input")])
def test_whatever_the_clock_says(cli: Run, shaken: Callable[[int], None], name: str, flags: tuple[str, ...]) -> None:
    verb, *rest = flags
    found = []
    for seed in range(3):
        shaken(seed)
        found.append(untimed(cli(verb, f"drawn.py:{name}", "-i", INPUTS[name], *rest)))
    assert found[0] == found[1] == found[2]


def test_regularize_whatever_the_clock_says(cli: Run, shaken: Callable[[int], None], tmp_path: Path) -> None:
    written = []
    for seed in range(2):
        shaken(seed)
        line = ("regularize", "drawn.py:wide", "-i", INPUTS["wide"], "--layer", "0", "--to", "2", "--towards", "zero")
        out = tmp_path / "w.safetensors"
        report = untimed(cli(*line, "--steps", 3, "--format", "json", "-o", out, "--force"))
        written.append((report, out.read_bytes()))
    assert written[0] == written[1]


FILES = ["npy", "npz", "safetensors", "pt", "zarr", "json", "jsonl", "csv"]
WRITTEN = {f"same.{extension}": ("compute", "-i", "random:3,n=2", "--layer", "{input,fc}") for extension in FILES}
WRITTEN["same.npy"] = ("compute", "-i", "random:3,n=2")
WRITTEN["weights.safetensors"] = ("regularize", "-i", "random:3,n=4", "--layer", "input", "--steps", "2")
ALL_LINES = (
    "import json, sys; from jaccli.cli import boundary; print([boundary.run(a) for a in json.loads(sys.argv[1])])"
)


@pytest.fixture(scope="module")
def of_two_processes(files: Path) -> list[dict[str, list[tuple[str, bytes]]]]:
    """What each of two processes writes: names and bytes of all files, by what was asked for."""
    return [_written(files) for _ in range(2)]


def _written(files: Path) -> dict[str, list[tuple[str, bytes]]]:
    (files / "drawn.py").write_text(NETS)
    lines = [[line[0], "drawn.py:by_numpy", *line[1:], "-o", name, "--force"] for name, line in WRITTEN.items()]
    script = [sys.executable, "-c", ALL_LINES, json.dumps(lines)]
    done = subprocess.run(script, cwd=files, env=ENV, capture_output=True, text=True)
    assert done.stdout.endswith(f"{[0] * len(lines)}\n"), done.stderr
    written = {}
    for name in WRITTEN:
        path = files / name
        parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        written[name] = [(p.name, p.read_bytes()) for p in parts]
    return written


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_two_processes(of_two_processes: list[dict[str, list[tuple[str, bytes]]]], name: str) -> None:
    """Hashes and orders differ from process to process, and a file may hold the time of day."""
    first, second = of_two_processes
    assert first[name]
    assert first[name] == second[name]
