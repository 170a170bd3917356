"""What only shows in a process of its own: imports, pipes, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaccli

from .conftest import BIN, ENV, process

COMMANDS = ("compute", "deviation", "spectrum", "regularize", "bench", "layers", "show", "doctor")
LINEAR = ("compute", "linear.pt", "-i", "x2.npy")
# One process runs them all: what one imports, none of the others may need.
WITHOUT_TORCH = [
    (),
    ("--help",),
    ("--version",),
    *((command, flag) for command in COMMANDS for flag in ("--help", "-h")),
    ("compte",),
    ("--verson",),
    ("compute",),
    (*LINEAR, "--fromm", "x"),
    (*LINEAR, "--method", "backward"),
    (*LINEAR, "--dtype", "float8"),
    (*LINEAR, "--device", "gpu"),
    (*LINEAR, "--max-memory", "lots"),
    (*LINEAR, "--timeout", "soon"),
    (*LINEAR, "--chunk", "none"),
    (*LINEAR, "--threads", "0"),
    (*LINEAR, "--samples", "x"),
    (*LINEAR, "--arg", "rate"),
    (*LINEAR, "--arch-arg", "x"),
    (*LINEAR, "--format", "zarr"),
    (*LINEAR, "--format", "nothing"),
    (*LINEAR, "-o", "taken.npy"),
    (*LINEAR, "-o", "nofolder/J.npy"),
    (*LINEAR, "-o", "J.what"),
    ("compute", "linear.pt"),
    ("compute", "linear.pt", "-i", "nofile.npy"),
    ("compute", "linear.pt", "-i", "random:axb"),
    ("compute", "nofile.pt", "-i", "x2.npy"),
    ("compute", "page.pt", "-i", "x2.npy"),
    ("compute", "folder", "-i", "x2.npy"),
    ("compute", "empty", "-i", "x2.npy"),
    ("compute", "cut_linear.pt", "-i", "x2.npy"),
    ("compute", "mlp.safetensors", "-i", "x3.npy"),
    ("compute", "mlp.ckpt", "-i", "x3.npy"),
    ("compute", "old.ckpt", "-i", "x3.npy"),
    ("compute", "mlp.ckpt", "-i", "x3.npy", "--arch", "net.py:Mlp"),
    ("compute", "mlp.ckpt", "-i", "x3.npy", "--arch", "nets"),
    ("layers", "mlp.ckpt"),
    ("deviation", "linear.pt", "-i", "x2.npy"),
    ("deviation", "linear.pt", "-i", "x2.npy", "--layer", "fc", "--fail-above", "x"),
    ("deviation", "linear.pt", "--jacobian", "J.npy"),
    ("deviation", "--jacobian", "nofile.npy"),
    ("show",),
    ("show", "nofile.npy"),
    ("bench", "linear.pt", "-i", "x2.npy", "--methods", "lop"),
    ("bench", "linear.pt", "-i", "x2.npy", "--rounds", "x"),
]
_CHECK = """
import os, sys
from jaccli.cli import boundary
for line in sys.stdin.read().splitlines():
    argv = line.split("\\x1f") if line else []
    code = boundary.run(argv)
    heavy = [name for name in ("torch", "numpy", "scipy") if name in sys.modules]
    print("\\nRESULT", code, ",".join(heavy) or "light", " ".join(argv), flush=True)
    if heavy:
        break
"""


def test_help_and_usage_errors_import_no_torch(files: Path) -> None:
    asked = "\n".join("\x1f".join(argv) for argv in WITHOUT_TORCH)
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], cwd=files, input=asked, capture_output=True, text=True, env=ENV, timeout=60
    )
    results = [line.split(" ", 3) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert [line for line in results if line[2] != "light"] == []
    assert len(results) == len(WITHOUT_TORCH)
    for (_, code, _, words), argv in zip(results, WITHOUT_TORCH, strict=True):
        helped = not argv or {"-h", "--help", "--version"} & set(argv)
        assert (code == "0") == bool(helped), words
        assert helped or code in ("2", "3"), words


def test_completion_imports_no_torch(files: Path) -> None:
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    run = "from jaccli.__main__ import main; sys.argv = ['jaccli']; main()"
    for words, expected in (("jaccli dev", "deviation"), ("jaccli compute --method f", "functional")):
        env = {
            "_JACCLI_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-c", check + run],
            cwd=files,
            capture_output=True,
            text=True,
            env={**ENV, **env},
            timeout=60,
        )
        assert expected in done.stdout
        assert done.stderr.strip() == "False"


def test_version_and_module(files: Path) -> None:
    assert process("--version", cwd=files).text == f"jaccli {jaccli.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "jaccli", "--version"], cwd=files, capture_output=True, text=True, env=ENV, timeout=60
    )
    assert done.stdout == f"jaccli {jaccli.__version__}\n"


def shell(command: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    script = f"set -o pipefail; jaccli() {{ '{BIN}' \"$@\"; }}; {command}"
    return subprocess.run(["bash", "-c", script], cwd=cwd, input=stdin, capture_output=True, env=ENV, timeout=120)


def test_a_pipeline_of_three(files: Path) -> None:
    command = "cat x2.npy | jaccli compute linear.pt -i - -o - | jaccli deviation --jacobian - --fail-above relative=1"
    done = shell(command, files)
    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 3
    assert b"relative is above 1" in done.stderr


def test_a_reader_that_leaves(files: Path) -> None:
    done = shell(
        "jaccli compute linear.pt -i random:2,n=20000 --format jsonl | head -n 1; echo ${PIPESTATUS[0]}", files
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith('{"sample": 0')
    assert lines[1] == "141"
    assert done.stderr == b""


def test_a_reader_that_never_reads(files: Path) -> None:
    done = shell("jaccli compute wide.pt -i random:70,n=64 | true; echo ${PIPESTATUS[0]}", files)
    assert done.stdout == b"141\n"
    assert done.stderr == b""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network whose J takes minutes by ``loop``."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "nets.py").write_text(Path(__file__).with_name("nets.py").read_text())
    return folder


SLOW = ("compute", "nets.py:Slow", "-i", "random:400,n=8192", "--method", "loop", "--max-memory", "60MB")


def heard() -> None:
    """A shell has its background jobs ignore Ctrl-C, and nohup a closed terminal; children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    """A long computation that is under way: its temporary file is there."""
    running = subprocess.Popen(
        [str(BIN), *argv],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
        start_new_session=True,
        preexec_fn=heard,
    )
    for _ in range(600):
        if any(name.endswith(".partial") for name in os.listdir(folder)) or running.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    assert running.poll() is None, running.communicate()
    return running


def left(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "__pycache__")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_nothing_behind(slow: Path, number: signal.Signals, code: int) -> None:
    running = started(slow, *SLOW, "-o", "J.npy")
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert out == b""
    assert b"Traceback" not in err
    assert left(slow) == ["nets.py"]


BEATS = """
import pathlib

from torch import nn


class Beats(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(400, 400)

    def forward(self, x):
        pathlib.Path("started").touch()
        return self.fc(x)
"""
# A command, and the beginning of the name of a file by which it is known to be under way.
LONG = {
    "standard input": (("compute", "nets.py:Beats", "-i", "-"), "jaccli-"),
    "standard input for J": (("deviation", "--jacobian", "-"), "jaccli-"),
    "computing": (("deviation", "nets.py:Beats", "-i", "random:400,n=9999", "--layer", "input"), "started"),
    "estimating": (("spectrum", "nets.py:Beats", "-i", "random:400,n=9999", "--estimate"), "started"),
    "racing": (("bench", "nets.py:Beats", "-i", "random:400,n=999", "--rounds", "9999"), "started"),
    "training": (
        ("regularize", "nets.py:Beats", "-i", "random:400,n=9", "--layer", "input", "--steps", "99999"),
        "started",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_terminated_is_143(name: str, tmp_path: Path) -> None:
    """Wherever the signal comes; the copy of a pipe is removed, and nothing is written."""
    (tmp_path / "nets.py").write_text(BEATS)
    argv, mark = LONG[name]
    running = subprocess.Popen(
        [str(BIN), *argv],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENV, "TMPDIR": str(tmp_path)},
    )
    for _ in range(600):
        if any(file.startswith(mark) for file in os.listdir(tmp_path)):
            break
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 143
    out, err = running.communicate()
    assert out == b""
    assert err.decode().splitlines()[-1] == "error: terminated"
    assert set(left(tmp_path)) <= {"nets.py", "started"}


def test_kill_leaves_no_output(slow: Path) -> None:
    running = started(slow, *SLOW, "-o", "J.npy")
    running.kill()
    running.communicate(timeout=30)
    assert not (slow / "J.npy").exists()
    for name in left(slow):
        if name.endswith(".partial"):
            os.unlink(slow / name)


def test_timeout_in_the_middle(slow: Path) -> None:
    result = process(*SLOW, "-o", "J.npy", "--timeout", "4s", cwd=slow)
    assert result.code == 5
    assert "not done within 4 s (--timeout)" in result.err
    assert "Traceback" not in result.err
    assert left(slow) == ["nets.py"]


@pytest.mark.parametrize("where", ["import", "call"])
def test_timeout_while_the_network_is_made(where: str, tmp_path: Path) -> None:
    """The user's code did not raise it."""
    made = "import time, torch\ndef make():\n    time.sleep(60)\n    return torch.nn.Linear(2, 2)\n"
    (tmp_path / "late.py").write_text(made + ("make()\n" if where == "import" else ""))
    result = process("compute", "late.py:make", "-i", "random:2,n=2", "--timeout", "4s", cwd=tmp_path)
    assert result.code == 5, result.text
    assert "not done within 4 s (--timeout)" in result.err


def test_timeout_is_no_failure_of_a_method(slow: Path) -> None:
    """bench tries methods and goes on when one fails; the alarm must pass through that."""
    argv = ("bench", "nets.py:Slow", "-i", "random:400,n=8192", "--methods", "loop", "--timeout", "4s")
    result = process(*argv, cwd=slow)
    assert result.code == 5, result.text
    assert "--timeout" in result.err


def test_a_full_reader_gets_whole_arrays(files: Path) -> None:
    done = shell("jaccli compute linear.pt -i x2.npy -o /dev/stdout | cat > piped.npy", files)
    assert done.returncode == 0, done.stderr
    assert np.load(files / "piped.npy").shape == (3, 2, 2)
