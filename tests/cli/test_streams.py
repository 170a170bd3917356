"""Standard output belongs to results, in characters that it has: whatever a model prints, and wherever it is read."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from jaccli.cli import boundary

from .conftest import BIN, ENV, Run
from .test_process import COMMANDS, shell

TALKING = """
import atexit, ctypes, io, logging, os, subprocess, sys, warnings
import torch
from torch import nn

print("an import greets"); os.write(1, b"an import greets below\\n")
held = sys.stdout
nan = torch.full((3, 3), float("nan"))
log = logging.getLogger("talking"); log.addHandler(logging.StreamHandler(sys.stdout)); log.setLevel("INFO")
SAYS = {
    "print": lambda: print("the network greets ∂"),
    "no-line-end": lambda: print("the network greets", end=""),
    "write": lambda: sys.stdout.write("the network greets\\n"),
    "bytes": lambda: sys.stdout.buffer.write(b"the network greets\\n"),
    "original": lambda: sys.__stdout__.write("the network greets\\n"),
    "held": lambda: held.write("the network greets\\n"),
    "logging": lambda: log.info("the network greets"),
    "descriptor": lambda: os.write(1, b"the network greets\\n"),
    "c": lambda: ctypes.CDLL(None).printf(b"the network greets\\n"),
    "child": lambda: subprocess.run(["echo", "the network greets"]),
    "shell": lambda: os.system("echo the network greets"),
    "lapack": lambda: torch.linalg.lstsq(nan, nan, driver="gelsd"),
    "closes": lambda: (print("the network greets"), sys.stdout.close()) if not sys.stdout.closed else None,
}

class Talks(nn.Module):
    def __init__(self, how="print"):
        super().__init__()
        self.größe, self.how = nn.Linear(3, 3), how
        print("__init__ greets")
        if "pytest" not in sys.modules:
            atexit.register(print, "the exit greets")

    def forward(self, x):
        try:
            SAYS[self.how]()
        except RuntimeError:
            pass
        return self.größe(x)
"""
WAYS = (
    *("print", "no-line-end", "write", "bytes", "original", "held", "logging", "descriptor", "c", "child", "shell"),
    *("lapack", "closes"),
)
MODEL = ("talking.py:Talks", "-i", "random:3,n=6")
# A run of each command that runs a model, and a format of it.
RUNS = {
    "compute": (*MODEL, "--format", "npy"),
    "deviation": (*MODEL, "--layer", "input", "--format", "jsonl"),
    "spectrum": (*MODEL, "--format", "json"),
    "bench": (*MODEL, "--rounds", "1", "--format", "csv"),
    "layers": (*MODEL, "--format", "jsonl"),
    "regularize": (*MODEL, "--layer", "input", "--steps", "1", "--format", "json"),
}
FORMATS = (
    *(("compute", name) for name in ("npy", "npz", "pt", "safetensors", "json", "jsonl", "csv", "table")),
    *(("deviation", name) for name in ("json", "jsonl", "csv", "table", "markdown")),
)


def _rows(content: bytes) -> None:
    assert len({len(row) for row in csv.reader(io.StringIO(content.decode()))}) == 1


def _lines(content: bytes) -> None:
    assert [json.loads(line) for line in content.splitlines()]


READ: dict[str, Callable[[bytes], Any]] = {
    "npy": lambda content: np.load(io.BytesIO(content)),
    "npz": lambda content: np.load(io.BytesIO(content))["jacobian"],
    "pt": lambda content: torch.load(io.BytesIO(content), weights_only=True),
    "safetensors": safetensors.torch.load,
    "json": json.loads,
    "jsonl": _lines,
    "csv": _rows,
    "table": bytes.decode,
    "markdown": bytes.decode,
}


@pytest.fixture(autouse=True)
def talking(files: Path) -> Iterator[None]:
    (files / "talking.py").write_text(TALKING)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("command", "way"),
    [
        *(("compute", way) for way in WAYS),
        *((command, way) for command in RUNS if command != "compute" for way in ("print", "c", "closes")),
    ],
)
def test_what_models_print_goes_to_standard_error(command: str, way: str, cli: Run) -> None:
    result = cli(command, *RUNS[command], "--arch-arg", f"how={way}").ok()
    READ[RUNS[command][-1]](result.out)
    assert b"greets" not in result.out
    for place in ("an import", "an import greets below", "__init__", *(["the network"] if way != "lapack" else [])):
        assert place in result.err


@pytest.mark.parametrize(("command", "chosen"), FORMATS)
def test_in_every_format(command: str, chosen: str, cli: Run) -> None:
    for way in ("print", "descriptor"):
        result = cli(command, *RUNS[command][:-1], chosen, "--arch-arg", f"how={way}").ok()
        READ[chosen](result.out)
        assert b"greets" not in result.out
        assert "the network greets" in result.err


def test_streams_are_as_they_were(cli: Run) -> None:
    """A command that is run in a process leaves its standard output to it."""
    before = sys.stdout, sys.stderr, sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors
    cli("compute", *RUNS["compute"]).ok()
    cli("compute", "nothing.pt", "-i", "random:3")
    assert (sys.stdout, sys.stderr, sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors) == before


@pytest.mark.parametrize(
    ("after", "code", "out"),
    [
        ("", 0, True),
        ("-o -", 0, True),
        ("-o /dev/stdout", 0, True),  # the command's, though descriptor 1 leads elsewhere now
        ("-o /dev/fd/1", 0, True),
        ("2>&-", 0, True),
        ("<&- 2>&-", 0, True),
        (">&-", 2, False),
        ("-o J.npy --force >&-", 0, False),
        ("-o J.npy --force <&- >&- 2>&-", 0, False),
        ("> /dev/full", 5, False),
    ],
)
def test_descriptors_of_a_process(after: str, code: int, out: bool, files: Path) -> None:
    (files / "J.npy").unlink(missing_ok=True)
    words = f"compute {' '.join(MODEL)} --arch-arg how=descriptor {after}"
    done = shell(f"jaccli {words}; exit $?", files)
    assert done.returncode == code, done.stderr
    content = done.stdout if out else (files / "J.npy").read_bytes() if "J.npy" in after else b""
    assert content.startswith(b"\x93NUMPY") == (code == 0)
    assert not content or np.load(io.BytesIO(content)).shape == (6, 3, 3)
    assert b"greets" not in content
    if "2>&-" not in after:
        assert b"the network greets" in done.stderr or code == 2
        assert b"the exit greets" in done.stderr or code == 2
        assert b"bug" not in done.stderr


@pytest.mark.parametrize("where", ["2> /dev/full", "2> >(true)"])
def test_prints_that_nobody_hears(where: str, files: Path) -> None:
    """They are lost, and no reason to lose J as well."""
    code = """
import torch

class Prints(torch.nn.Module):
    def forward(self, x):
        print("greets")
        return x
"""
    (files / "printing.py").write_text(code)
    done = shell(f"jaccli compute printing.py:Prints -i random:3,n=1 {where}", files)
    assert done.returncode == 0
    assert np.load(io.BytesIO(done.stdout)).shape == (1, 3, 3)


@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
def test_help_that_cannot_be_written(where: str, files: Path) -> None:
    done = shell(f"jaccli --help {where}", files)
    assert done.returncode in (2, 5)
    assert b"standard output" in done.stderr


@pytest.mark.parametrize("chosen", ["npy", "csv", "jsonl", "json", "npz", "table"])
def test_a_failure_leaves_a_pipe_empty(chosen: str, cli: Run, files: Path) -> None:
    """The head of a format comes with its first block, and here there is none."""
    code = """
import torch

class Refuses(torch.nn.Module):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("no derivative")
        return 2 * x
"""
    (files / "refusing.py").write_text(code)
    result = cli("compute", "refusing.py:Refuses", "-i", "random:3,n=2", "--method", "reverse", "--format", chosen)
    assert result.code != 0
    assert result.out == b""


@pytest.mark.parametrize(
    ("command", "name", "chosen"),
    [
        ("compute", "J.npy", "json"),
        ("compute", "J.json", "jsonl"),
        ("compute", "J.zarr", "npy"),
        ("deviation", "d.csv", "json"),
        ("spectrum", "s.md", "table"),
        ("bench", "b.json", "csv"),
        ("layers", "l.npy", "json"),
        ("doctor", "d.jsonl", "json"),
    ],
)
def test_a_name_against_a_format(command: str, name: str, chosen: str, cli: Run, files: Path) -> None:
    model = RUNS[command][:-2] if command in RUNS else ()
    result = cli(command, *model, "-o", name, "--format", chosen)
    assert result.code == 2
    assert repr(name) in result.err
    assert f"--format is {chosen}" in result.err
    assert len(result.err.splitlines()) == 3
    assert not (files / name).exists()
    result = cli(command, *model, "-o", "any.dat", "--format", "json", "--force").ok()
    assert json.loads((files / "any.dat").read_text())


CHARSETS = [("cp1252", ""), ("ascii", ""), ("latin-1", ""), ("utf-8", "C"), ("utf-8", "POSIX"), ("cp437", "")]
SHOWN = [
    *((command, "--help") for command in COMMANDS),
    ("--help",),
    ("compute", *MODEL, "--from", "größe:in", "--explain", "--format", "table"),
    ("compute", *MODEL, "--format", "json", "--explain"),
    ("deviation", *MODEL, "--layer", "größe:in", "--estimate", "--explain", "--format", "table"),
    ("spectrum", *MODEL, "--layer", "größe:in", "--estimate", "--format", "markdown"),
    ("spectrum", *MODEL, "--layer", "*", "--format", "table"),
    ("bench", *MODEL, "--layer", "größe:in", "--rounds", "1", "--format", "table"),
    ("regularize", *MODEL, "--layer", "größe:in", "--steps", "1", "--format", "table"),
    ("layers", *MODEL, "--format", "table"),
    ("show", "saved.npz", "--format", "table"),
    ("doctor", "--format", "table"),
    ("compute", *MODEL, "--from", "größ"),
]


@pytest.mark.parametrize(("charset", "locale"), CHARSETS)
def test_narrow_charsets(charset: str, locale: str, cli: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No character is a bug in jaccli, and those of its own have readable substitutes."""
    cli("compute", *MODEL, "--from", "größe:in", "-o", "saved.npz", "--force").ok()
    for name in ("PYTHONIOENCODING", "PYTHONUTF8"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", locale)
    wanted = "ascii" if locale else charset
    for argv in SHOWN:
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=charset) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        code = boundary.run(list(argv))
        monkeypatch.undo()
        monkeypatch.chdir(files)
        monkeypatch.setenv("LC_ALL", locale)
        texts = []
        for stream in streams.values():
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(wanted))  # type: ignore[attr-defined]
        assert code == (0 if "größ" not in argv else 2), (argv, texts)
        own = "".join(texts).replace(r"gr\xf6\xdfe", "").replace(r"gr\xf6\xdf", "")
        assert "\\u" not in own, (argv, own)
        assert "\\x" not in own, (argv, own)


@pytest.mark.parametrize(
    ("charset", "expected"),
    [("ascii", "a |-> || dy/dx +/- ... \\xe9"), ("cp1252", "a |-> || dy/dx ± … é"), ("utf-8", "a ↦ ‖ ∂y/∂x ± … é")],
)
def test_substitutes(charset: str, expected: str) -> None:
    from jaccli.sinks.charset import shown

    assert shown("a ↦ ‖ ∂y/∂x ± … é", charset) == expected


def test_every_character_of_the_texts_has_a_substitute() -> None:
    """Of jaccli's own messages, help and tables: all text in its sources outside of docstrings and comments."""
    import ast

    from jaccli.sinks.charset import shown
    from tests.test_architecture import MODULES

    for path in MODULES:
        tree = ast.parse(path.read_text())
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and isinstance(node.body[0], ast.Expr)
            and "/cli/app" not in str(path)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                plain = shown("".join(c for c in node.value if not c.isascii()), "ascii")
                assert "\\" not in plain, f"{path}: {node.value!r}"


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_narrow_charsets_of_a_process(env: dict[str, str], files: Path) -> None:
    command = [str(BIN), "compute", *MODEL, "--explain", "--format", "table"]
    done = subprocess.run(command, cwd=files, capture_output=True, env={**ENV, **env}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "greets" not in done.stdout.decode("ascii")
    assert "the network greets d" in done.stderr.decode("ascii")
