"""Notes and warnings: once each, and those of several layers together."""

from pathlib import Path

import pytest

from jaccli.cli.grouping import grouped

from .conftest import Run

PAIRS = [f"blocks.{i} -> output" for i in range(6)]
CASES = {
    "nothing in common": (["a", "b"], ["a", "b"]),
    "one pair": ([f"{PAIRS[0]}: zeros"], [f"{PAIRS[0]}: zeros"]),
    "two pairs": ([f"{p}: zeros" for p in PAIRS[:2]], ["blocks.0, blocks.1 -> output: zeros"]),
    "six pairs": (
        [f"note: left out: J of {p} is 4 x 3" for p in PAIRS],
        ["note: left out: J of 6 layers (blocks.0, blocks.1, blocks.2, …, blocks.5) -> output is 4 x 3"],
    ),
    "shapes stay apart": (
        [f"{p}: J is {n} x 3" for p, n in zip(PAIRS[:3], (4, 5, 4), strict=True)],
        ["blocks.0, blocks.2 -> output: J is 4 x 3", "blocks.1 -> output: J is 5 x 3"],
    ),
    "numbers are ranges": (
        [f"{p}: error {e} in float32 of 3 samples" for p, e in zip(PAIRS[:3], ("2e-05", "0.5", "4e-06"), strict=True)],
        ["blocks.0, blocks.1, blocks.2 -> output: error 4e-06 to 0.5 in float32 of 3 samples"],
    ),
    "order of the first": (
        [f"{PAIRS[0]}: a", "b", f"{PAIRS[1]}: a"],
        ["blocks.0, blocks.1 -> output: a", "b"],
    ),
    "names that begin alike": (["output[0] -> x: a", "output -> x: a"], ["output[0], output -> x: a"]),
    "several targets": (["a -> b: c", "a -> d: c"], ["a -> b, a -> d: c"]),
}


@pytest.mark.parametrize("name", CASES)
def test_grouped(name: str) -> None:
    texts, expected = CASES[name]
    assert grouped(texts, [*PAIRS, "output -> x", "output[0] -> x", "a -> b", "a -> d"]) == expected


NETS = """
import torch
from torch import nn

class Deep(nn.Module):
    def __init__(self, broken):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
        self.sides = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.broken = broken

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        for side in self.sides:
            x = x + 0 * side(x).sum(1, keepdim=True)
        return x.detach() * 2 if self.broken == "path" else (x - x).sqrt() if self.broken == "nan" else x
"""
OUT = {"compute": ("--format", "jsonl")}


@pytest.mark.parametrize("command", ["deviation", "spectrum", "compute", "deviation --probes 4"])
@pytest.mark.parametrize("broken", ["path", "nan", "none"])
def test_equal_messages_of_many_layers_are_one(cli: Run, broken: str, command: str) -> None:
    """Six blocks and three layers of another width had a line each."""
    Path("deep.py").write_text(NETS)
    argv = (*command.split(), "deep.py:Deep", "--arch-arg", f"broken={broken}", "-i", "random:4,n=3")
    lines = cli(*argv, "--layer", "{blocks,sides}.*", *OUT.get(command, ())).ok().err.splitlines()
    about = [line for line in lines if " -> output" in line]
    assert len(about) <= 2
    if broken != "none" or "deviation" in command:
        assert about
    assert all("layers (" in line or "sides.0, sides.1, sides.2 -> output" in line for line in about)
    assert len(set(lines)) == len(lines)
