"""The benchmark and the ablation run to their tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.py", "mlp_tiny", "--rounds", "1", "--peers", "none", "--no-first"],
        ["ablate.py", "mlp_tall", "--rounds", "1", "--switch", "copies", "in-place", "brackets", "pool", "soon"],
        ["sample_models.py", "--help"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_it_runs(arguments: list[str]) -> None:
    script = ROOT / "benchmarks" / arguments[0]
    done = subprocess.run([sys.executable, str(script), *arguments[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
