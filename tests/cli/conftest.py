"""A command line run in this process, and a folder of small models to run it on."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jaccli.cli import boundary

from . import nets

BIN = Path(sys.executable).parent / "jaccli"
TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI")
ENV = {
    **{name: value for name, value in os.environ.items() if name not in TERMINAL},
    "OMP_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_no_such_token)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line, parse_constant=_no_such_token) for line in self.text.splitlines()]

    def ok(self) -> "Result":
        assert self.code == 0, self.err
        return self


def _no_such_token(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


Run = Callable[..., Result]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, files: Path) -> Run:
    """Run a command line in the folder of models; ``stdin`` is what it is fed."""
    monkeypatch.chdir(files)
    for name in (*TERMINAL, "JACCLI_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        threads = torch.get_num_threads()
        code = boundary.run([str(word) for word in argv])
        torch.set_num_threads(threads)
        captured = capfdbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return run


def process(*argv: object, cwd: Path, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
    """The same in a process of its own."""
    done = subprocess.run(
        [str(BIN), *map(str, argv)], cwd=cwd, input=stdin, capture_output=True, env={**ENV, **(env or {})}, timeout=60
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and inputs, good and bad. Tests write elsewhere, or under names of their own."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    _models(folder)
    _inputs(folder)
    _rubbish(folder)
    (folder / "nets.py").write_text(Path(nets.__file__).read_text())
    return folder


def _models(folder: Path) -> None:
    modules: dict[str, torch.nn.Module] = {
        "linear": nets.Linear(),
        "mlp": nets.Mlp(),
        "args": nets.Args(),
        "tricky": nets.Tricky(),
        "words": nets.Words(),
        "wide": nets.wide(),
        "single": nets.Single(),
    }
    for name, module in modules.items():
        torch.jit.script(module.eval()).save(str(folder / f"{name}.pt"))
    mlp = modules["mlp"]
    save_file(mlp.state_dict(), folder / "mlp.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in mlp.state_dict().items()}}, folder / "mlp.ckpt")
    torch.save(mlp.state_dict(), folder / "old.ckpt", _use_new_zipfile_serialization=False)
    torch.save(mlp, folder / "pickled.pt")
    exported = torch.export.export(mlp, (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(exported, folder / "mlp.pt2")
    for batch in (5, 200):
        torch.export.save(torch.export.export(mlp, (torch.zeros(batch, 3),)), folder / f"static{batch}.pt2")


def _inputs(folder: Path) -> None:
    random = np.random.default_rng(0)

    def save(name: str, array: np.ndarray[Any, Any]) -> None:
        np.save(folder / f"{name}.npy", array)

    save("x2", random.normal(size=(3, 2)).astype("f4"))
    x3 = random.normal(size=(5, 3)).astype("f4")
    save("x3", x3)
    save("x4", random.normal(size=(3, 4)).astype("f4"))
    save("x70", random.normal(size=(2, 70)).astype("f4"))
    save("words", random.integers(0, 5, (3, 4)))
    save("doubles", x3.astype("f8"))
    save("whole", np.arange(15).reshape(5, 3))
    broken = x3.copy()
    broken[1, 0] = np.nan
    save("nan", broken)
    save("mask", np.array([[1, 0], [0, 1], [1, 1]], "f4"))
    np.savez(folder / "two.npz", a=x3, b=x3 + 1)
    np.savetxt(folder / "x3.csv", x3, delimiter=",")


def _rubbish(folder: Path) -> None:
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    page = "<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
    (folder / "page.pt").write_text(page)
    (folder / "page.npy").write_text(page)
    for name in ("linear.pt", "mlp.safetensors", "mlp.ckpt", "mlp.pt2", "x3.npy", "two.npz"):
        content = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(content[: len(content) * 2 // 3])
    (folder / "taken.npy").write_bytes(b"precious")
