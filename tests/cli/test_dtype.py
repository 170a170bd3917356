"""``--dtype`` and complex numbers, by the command line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaccli.models.dtypes import converted
from tests import complex_nets
from tests.complex_nets import JACOBIAN, N_IN, A, B, Square

from .conftest import Run

SPEC = complex_nets.__file__
STATE = {"gain": torch.ones(()), "a": A, "b": B}


@pytest.mark.parametrize("wide", [False, True], ids=["complex64", "complex128"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_checkpoint(cli: Run, tmp_path: Path, suffix: str, wide: bool, dtype: str | None) -> None:
    """A state dict is loaded whole, in the file's own precision or the one asked for."""
    if wide and suffix == "safetensors":
        pytest.skip("safetensors has no complex128")
    state = {k: converted(v, dtype=torch.float64 if wide else None, copy=True) for k, v in STATE.items()}
    path = tmp_path / f"w.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    arguments = ("compute", path, "--arch", f"{SPEC}:Parameters", "-i", f"random:{N_IN},n=2")
    J = np.load(io.BytesIO(cli(*arguments, *(("--dtype", dtype) if dtype else ())).ok().out))
    assert str(J.dtype) == (dtype or ("float64" if wide else "float32"))
    tolerance = 1e-12 if J.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(J[0], JACOBIAN, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_argument_from_a_file(cli: Run, tmp_path: Path, suffix: str, dtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    {
        "npy": lambda: np.save(path, A.numpy()),
        "npz": lambda: np.savez(path, a=A.numpy()),
        "pt": lambda: torch.save(A, path),
        "safetensors": lambda: save_file({"a": A}, path),
    }[suffix]()
    done = cli(
        *("compute", f"{SPEC}:Argument", "-i", f"random:{N_IN},n=2", "--dtype", dtype, "--arg", f"a=@{path}"),
    ).ok()
    np.testing.assert_allclose(np.load(io.BytesIO(done.out))[0], JACOBIAN, atol=1e-5)
    assert cli("compute", f"{SPEC}:Parameters", "-i", path).code == 3  # samples are real


def test_bench(cli: Run) -> None:
    for name in ("Parameters", "Attributes", "OnlyComplex"):
        done = cli(
            *("bench", f"{SPEC}:{name}", "-i", f"random:{N_IN},n=2", "--methods", "reverse,loop"),
            *("--rounds", 1, "--format", "json"),
        ).ok()
        assert all(row["max_error"] < 1e-5 for row in done.json["methods"]), name
        assert "float64" in str(done.json)


def test_half_is_whole_or_refused(cli: Run) -> None:
    """Torch has few kernels for complex32: J is right, or there is an error that a user can act on."""
    for name in ("Parameters", "Hidden"):
        for dtype in ("float16", "bfloat16"):
            done = cli("compute", f"{SPEC}:{name}", "-i", f"random:{N_IN},n=2", "--dtype", dtype, "--format", "npz")
            assert done.code in (0, 3, 4)


def test_training_moves_complex_parameters(cli: Run, tmp_path: Path) -> None:
    torch.save(Square().state_dict(), tmp_path / "w.pt")
    done = cli(
        *("regularize", tmp_path / "w.pt", "--arch", f"{SPEC}:Square", "-i", f"random:{N_IN},n=20", "--steps", 10),
        *("--layer", "input", "-o", tmp_path / "new.safetensors"),
    ).ok()
    new = load_file(tmp_path / "new.safetensors")
    assert new["a"].dtype == torch.complex64
    assert not torch.equal(new["a"], Square().a)
    assert "imaginary" not in done.err
    wide = {name: converted(value, dtype=torch.float64) for name, value in Square().state_dict().items()}
    torch.save(wide, tmp_path / "wide.pt")
    refused = cli(
        *("regularize", tmp_path / "wide.pt", "--arch", f"{SPEC}:Square", "-i", f"random:{N_IN},n=20", "--steps", 10),
        *("--layer", "input", "-o", tmp_path / "newer.safetensors"),
    )
    assert refused.code == 4
    assert "complex128" in refused.err
