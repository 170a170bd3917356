"""``--dtype`` and complex numbers, by the command line."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaccli.networks.dtypes import converted
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


@pytest.mark.parametrize("how", ["exact", "estimated", "saved"])
@pytest.mark.parametrize("command", ["deviation", "spectrum"])
def test_contradictions_are_told(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, command: str
) -> None:
    """Wherever a record comes from, its figures are held against each other."""
    from jaccli.statistics import identity_distance as deviation
    from jaccli.statistics import product_estimates as of_products
    from jaccli.statistics import spectral as spectrum

    path = tmp_path / "j.npy"
    np.save(path, np.random.default_rng(0).standard_normal((2, N_IN, N_IN)))
    wrong = {"frobenius": 0.0, "frobenius_stderr": 0.0}
    for module, name in ((deviation, "deviation"), (spectrum, "spectrum")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda j, whole=whole: whole(j) | wrong)
    for name in ("estimated_deviation", "estimated_spectrum"):
        every = getattr(of_products, name)
        monkeypatch.setattr(of_products, name, lambda *a, every=every: [one | wrong for one in every(*a)])
    model = (
        f"{SPEC}:Square",
        "--layer",
        "input",
        "-i",
        f"random:{N_IN},n=2",
        *(("--estimate",) if how == "estimated" else ()),
    )
    done = cli(command, *(("--jacobian", path) if how == "saved" else model), "--format", "json").ok()
    assert "contradict" in done.err


@pytest.mark.parametrize("command", ["deviation", "spectrum", "show"])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_any_size_of_a_saved_jacobian(cli: Run, tmp_path: Path, command: str, size: float) -> None:
    j = np.random.default_rng(0).standard_normal((3, N_IN, N_IN))
    np.save(tmp_path / "j.npy", size * j)
    file = (tmp_path / "j.npy",) if command == "show" else ("--jacobian", tmp_path / "j.npy")
    for kind in ("json", "table", "csv"):
        done = cli(command, *file, "--format", kind).ok()
        assert "nan" not in done.text.lower().replace("provenance", "")
    document = cli(command, *file, "--format", "json").json
    found = document["jacobians" if command == "show" else "pairs"][0]["samples"]
    norms = [float(one["frobenius"]) for one in found]
    away = j - (np.eye(N_IN) / size if command == "deviation" else 0)
    # Of a small J what is left of J − I is I.
    right = np.sqrt(N_IN) if command == "deviation" and size < 1 else size * np.linalg.norm(away, axis=(1, 2))
    np.testing.assert_allclose(norms, right, rtol=1e-10)
    if command == "spectrum":
        assert "beyond the range" in cli(command, *file).err


def test_estimates_of_a_model_of_any_size(cli: Run) -> None:
    for size in (1e-200, 1e200):
        for command in ("deviation", "spectrum"):
            model = (f"{SPEC}:Sized", "--arch-arg", f"size={size}", "-i", "random:4,n=3", "--layer", "input")
            for how in ((), ("--estimate",), ("--tolerance", 0.1)):
                found = cli(command, *model, *how, "--dtype", "float64", "--format", "json").ok()
                (pair,) = found.json["pairs"]
                for one in pair["samples"]:
                    assert float(one["frobenius"]) == pytest.approx(
                        2 if command == "deviation" and size < 1 else size * 5**0.5, rel=1e-9
                    )
                assert all(math.isfinite(float(v)) for v in pair["summary"]["frobenius"].values())


def test_what_is_not_finite_by_estimate(cli: Run, tmp_path: Path) -> None:
    """Figures that are NaN, and a warning; those of the other samples are right."""
    np.save(tmp_path / "x.npy", np.array([[1.0, 4, 9, 16], [1, 0, 1, 1]]))
    for command in ("deviation", "spectrum"):
        done = cli(
            *(command, f"{SPEC}:Root", "-i", tmp_path / "x.npy", "--dtype", "float64", "--estimate"),
            *("--layer", "input", "--format", "json"),
        ).ok()
        first, second = done.json["pairs"][0]["samples"]
        d = 1.5 * np.array([1, 2, 3, 4.0]) - (command == "deviation")
        assert float(first["frobenius"]) == pytest.approx(np.linalg.norm(d), rel=1e-9)
        assert second["frobenius"] == "nan"
        assert "not finite" in done.err
