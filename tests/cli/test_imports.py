"""Packages that a command imports: what exact figures do without costs most of a second."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MLP = ("mlp.pt", "-i", "x3.npy")
BLOCK = (*MLP, "--layer", "blocks.0", "--to", "blocks.1")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "help": (("--help",), ("torch", "numpy", "scipy", "sympy", "rich")),
    "version": (("--version",), ("torch", "numpy", "scipy", "sympy", "rich")),
    "help of a command": (("spectrum", "--help"), ("torch", "numpy", "scipy", "sympy")),
    "layers": (("layers", *MLP), ("scipy", "sympy")),
    "compute": (("compute", *BLOCK), ("scipy", "sympy")),
    "deviation": (("deviation", *BLOCK), ("scipy", "sympy")),
    "spectrum": (("spectrum", *BLOCK), ("scipy", "sympy")),
    "eigenvalues": (("spectrum", *BLOCK, "--eigenvalues"), ("scipy", "sympy")),
    "saved deviation": (("deviation", "--jacobian", "square.npy"), ("scipy", "sympy")),
    "saved spectrum": (("spectrum", "--jacobian", "square.npy"), ("scipy", "sympy")),
    "show": (("show", "square.npy"), ("scipy", "sympy")),
    "doctor": (("doctor",), ("scipy", "sympy")),
    "estimate": (("deviation", *BLOCK, "--estimate"), ("scipy.stats",)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_slow_is_imported_for_nothing(name: str, files: Path) -> None:
    np.save(files / "square.npy", np.ones((2, 3, 3)))
    argv, absent = COMMANDS[name]
    # Not from the process's own standard output, which a command keeps for results.
    code = (
        "import sys; from jaccli.cli.boundary import run; code = run(sys.argv[2:]); "
        "found = [m for m in sys.argv[1].split(',') if m in sys.modules]; "
        "print(code, found, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(absent), *argv], cwd=files, capture_output=True, timeout=60
    )
    assert done.stderr.decode().splitlines()[-1] == "0 []", done.stderr[-500:].decode()
