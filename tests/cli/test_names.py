"""Layers with odd names, and all calls of a layer, from the shell."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.activations.test_layer_names import Repeats

from .conftest import Run


def test_names_in_the_shell(cli: Run, tmp_path: Path) -> None:
    """What ``layers`` prints goes into ``--layer``, and records say it again."""
    torch.jit.trace(Repeats(), torch.ones(1, 2, dtype=torch.float64)).save(str(tmp_path / "model.pt"))
    given = (str(tmp_path / "model.pt"), "-i", "random:2,n=1")
    listed = [row["layer"] for row in cli("layers", *given, "--format", "json").ok().json["layers"]]
    assert listed == ["input", "a", "a#2", ".input", ".output", "output"]
    named = ["a..#*", "a#2", ".input", ".output", "input"]
    lines = cli("deviation", *given, *(w for n in named for w in ("--layer", n)), "--format", "jsonl").ok().lines
    assert [line["source"] for line in lines] == ["a..#1", "a..#2", "a#2", ".input", ".output", "input"]
    refused = cli("compute", *given, "--layer", "a#2:on")
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()) == 3
