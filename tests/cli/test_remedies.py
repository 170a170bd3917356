"""An error says what to do: what people meet who mistype a path, or whose other program failed."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest

import jaccli

from .conftest import Run

ROOT = Path(jaccli.__file__).parent
# Where every error says what to do, too.
COMPLETE = ("samples", "sinks", "cli", "text", "names.py")
INTERNAL = {"TooLarge", "MisplacedError", "NowhereError"}  # subclasses that users see as their base
ERRORS = {name for name in jaccli.errors.__dict__ if name.endswith("Error")} | INTERNAL


def raised(path: Path) -> list[ast.Call]:
    """The errors that a file makes."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ERRORS]


def parts(call: ast.Call) -> set[str]:
    """Which of message, expectation and remedy an error has."""
    names = ("given", "expected", "remedy")
    if any(isinstance(argument, ast.Starred) for argument in call.args):  # an expectation and a remedy of many errors
        return set(names)
    values = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg in names}
    return {name for name, value in values.items() if not (isinstance(value, ast.Constant) and not value.value)}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_error_says_more_than_what_is_wrong(path: Path) -> None:
    complete = path.relative_to(ROOT).parts[0] in COMPLETE
    for call in raised(path):
        assert isinstance(call.func, ast.Name)
        told = parts(call)
        # A gate that fails is a result, of which nothing is to be done.
        needed = complete and call.func.id != "GateError"
        assert "given" in told, f"{path.name}:{call.lineno}"
        assert ("remedy" in told) if needed else len(told) >= 2, f"{path.name}:{call.lineno} has only {told}"


def test_the_walk_finds_errors() -> None:
    assert len(raised(ROOT / "samples/spec.py")) > 10
    assert sum(len(raised(path)) for path in ROOT.rglob("*.py")) > 350


@pytest.fixture
def place(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, after ``cli`` has gone to its own: as a beginner has it."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "notes", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "names.csv").write_text("a,b\n")
    (tmp_path / "hole.csv").write_text("1,2\n3,\n")
    np.save(tmp_path / "samples.npy", np.ones((2, 2), "f4"))
    np.save(tmp_path / "none.npy", np.ones((0, 2)))
    np.savez(tmp_path / "none.npz")
    return tmp_path


COMPUTE = ("compute", "{files}/linear.pt", "-i")
GOOD = (*COMPUTE, "samples.npy")
# What is typed, and words of the answer: what was given, what was expected, what to do.
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "empty file": ((*COMPUTE, "empty.npy"), "is empty|npy, npz|0 bytes"),
    "empty pipe": ((*COMPUTE, "-"), "standard input is empty|npy, npz|the command before"),
    "empty pipe for J": (("deviation", "--jacobian", "-"), "standard input is empty|the command before"),
    "header alone": ((*COMPUTE, "names.csv"), "no rows of numbers|one sample a line"),
    "a hole": ((*COMPUTE, "hole.csv"), "line 2, column 2|expected numbers|write nan"),
    "no rows": ((*COMPUTE, "none.npy"), "holds no samples: shape (0, 2)|at least one"),
    "no arrays": ((*COMPUTE, "none.npz"), "holds no arrays|expected one"),
    "no samples drawn": ((*COMPUTE, "random:2,n=0"), "n are whole numbers from 1|random:SHAPE"),
    "no samples picked": ((*GOOD, "--samples", "5:9"), "picks no sample|2 samples, 0 to 1"),
    "absent input": ((*COMPUTE, "samples.csv"), "no such input file|FILE[KEY]|did you mean 'samples.npy'"),
    "absent, a list": ((*COMPUTE, "zzz"), "no such input file|FILE[KEY]|holds data, empty.npy"),
    "absent folder": ((*COMPUTE, "date/x.npy"), "no such input file|there is no folder 'date', seen from"),
    "a file as folder": ((*COMPUTE, "samples.npy/x"), "no such input file|'samples.npy' is a file"),
    "in an empty folder": ((*COMPUTE, "data/x.npy"), "no such input file|data is empty"),
    "no -i": (COMPUTE[:2], "no samples are given|expected -i INPUT|random:3x32x32"),
    "absent J": (("show", "sample.npy"), "no such input file|jaccli compute|did you mean 'samples.npy'"),
    "absent argument": ((*GOOD, "--arg", "m=@zzz.npy"), "no such input file|FILE[KEY]|holds"),
    "no images": ((*COMPUTE, "images"), "holds no images|PNG|subfolders"),
    "other files": ((*COMPUTE, "notes"), "holds no images|PNG|'readme.txt'"),
    "a folder as J": (("show", "notes"), "no zarr store|jaccli compute"),
    "absent output folder": ((*GOOD, "-o", "out put/J.npy"), "no such folder 'out put'|exists|mkdir -p 'out put'"),
    "folder as output": ((*GOOD, "-o", "data"), "is a folder|'data/J.npz'"),
    "key of a plain file": ((*COMPUTE, "samples.npy[k]"), "no arrays with names|without [KEY]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_answered(name: str, cli: Run, files: Path, place: Path) -> None:
    argv, words = MISTAKES[name]
    result = cli(*(word.replace("{files}", str(files)) for word in argv))
    lines = result.err.splitlines()
    assert result.code in (2, 3)
    assert 2 <= len(lines) <= 3, result.err
    assert [word for word in words.split("|") if word not in result.err] == []


def test_no_permission(cli: Run, files: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for somebody who is not root."""
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: allowed(path, mode) and not str(path).startswith(str(place)))
    result = cli("compute", files / "linear.pt", "-i", files / "x2.npy", "-o", place / "data" / "J.npy")
    assert (result.code, len(result.err.splitlines())) == (2, 3)
    assert "no permission to write into" in result.err
    result = cli("compute", files / "linear.pt", "-i", place / "samples.npy")
    assert (result.code, len(result.err.splitlines())) == (3, 3)
    assert "no permission to read" in result.err
