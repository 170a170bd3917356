"""On a terminal: tables, pictures, and a progress bar that never mixes with them."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from pathlib import Path

import numpy as np
import pytest

from .conftest import BIN, ENV, Run

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOR = re.compile(r"\x1b\[[0-9;]*m")
LINEAR = ("compute", "linear.pt", "-i", "x2.npy")
WIDE = ("compute", "wide.pt", "-i", "x70.npy", "--samples", "0")
SLOW = (
    "deviation",
    "nets.py:Slow",
    "-i",
    "random:400,n=24",
    "--layer",
    "input",
    "--method",
    "loop",
    "--max-memory",
    "40MB",
)


def terminal(
    cwd: Path, *argv: str, columns: int = 80, lines: int = 30, out: bool = True, err: bool = True, **env: str
) -> tuple[int, str, str]:
    """Exit code, what a terminal of this size got, and what the ends that are no terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    running = subprocess.Popen(
        [str(BIN), *argv],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=theirs if out else subprocess.PIPE,
        stderr=theirs if err else (subprocess.PIPE if out else subprocess.STDOUT),
        env={**ENV, **env},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    piped = b"".join(end.read() for end in (running.stdout, running.stderr) if end is not None)
    os.close(ours)
    return running.wait(60), shown.decode().replace("\r\n", "\n"), piped.decode(errors="replace")


def test_a_small_matrix_is_printed_as_numbers(files: Path) -> None:
    code, shown, _ = terminal(files, *LINEAR, "--samples", "0", "-q")
    assert code == 0
    assert ESCAPE.sub("", shown) == "J of input -> output, sample 0, 2 x 2, float32\n  1  2\n  3  4\n"


def test_a_large_matrix_is_a_heat_map(files: Path) -> None:
    _, shown, _ = terminal(files, *WIDE, "--no-color", "-q")
    lines = shown.splitlines()
    assert COLOR.search(shown) is None
    assert lines[0] == "J of input -> output, sample 0, 60 x 70, float32"
    assert "output ↓" in shown
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    _, coloured, _ = terminal(files, *WIDE, "-q")
    assert "▀" in coloured
    assert COLOR.search(coloured)


def test_no_colour_by_environment(files: Path) -> None:
    _, shown, _ = terminal(files, *WIDE, NO_COLOR="1")
    assert COLOR.search(shown) is None


@pytest.mark.parametrize("columns", [40, 80])
def test_tables_fit(files: Path, columns: int) -> None:
    argv = ("deviation", "mlp.pt", "-i", "x3.npy", "--layer", "blocks.*", "--to", "blocks.1", "--samples", "0", "-q")
    _, shown, _ = terminal(files, *argv, columns=columns)
    lines = ESCAPE.sub("", shown).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert "identity_share" in shown
    if columns == 80:
        assert len(lines) == 5


# Each prints a table, or several, of the widest kind that the command has.
BLOCKS = ("mlp.pt", "-i", "x3.npy", "--layer", "blocks.*", "--to", "blocks.1")
BLOCK = ("mlp.pt", "-i", "x3.npy", "--layer", "blocks.0", "--to", "blocks.1")
TABLES = {
    "layers": ("layers", "tricky.pt", "-i", "x4.npy"),
    "deviation": ("deviation", *BLOCK),
    "deviation over depth": ("deviation", *BLOCKS),
    "deviation of samples": ("deviation", *BLOCKS, "--per-sample"),
    "deviation estimated": ("deviation", *BLOCK, "--probes", "3"),
    "spectrum": ("spectrum", *BLOCK, "--eigenvalues"),
    "spectrum over depth": ("spectrum", *BLOCKS, "--eigenvalues"),
    "spectrum of samples": ("spectrum", *BLOCKS, "--per-sample"),
    "spectrum estimated": ("spectrum", *BLOCK, "--probes", "3"),
    "lyapunov": ("spectrum", *BLOCK, "--lyapunov"),
    "bench": ("bench", "linear.pt", "-i", "x2.npy", "--rounds", "2", "--methods", "auto,loop"),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_fits(name: str, columns: int, charset: str, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 and 80 columns, in Unicode and in the C locale; a rule is as wide as the table around it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LC_ALL", "C" if charset == "ascii" else "C.UTF-8")
    lines = cli(*TABLES[name], "--format", "table", "-q").ok().text.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.strip() for line in lines)
    if charset == "ascii":
        assert "".join(lines).isascii()
        assert not re.search(r"\?|\\u", "".join(lines))
    rules = [i for i, line in enumerate(lines) if set(line) in ({"─"}, {"-"})]
    assert rules
    ends = [i - 1 for i in rules[1:]] + [next((i for i, line in enumerate(lines) if line.startswith("median: ")), None)]
    for rule, end in zip(rules, ends, strict=True):
        assert len(lines[rule]) == max(map(len, [lines[rule - 1], *lines[rule + 1 : end]]))


def test_a_terminal_of_no_size_is_a_usual_one(files: Path) -> None:
    usual, none = (terminal(files, *TABLES["layers"], columns=c, lines=n)[1] for c, n in ((80, 24), (0, 0)))
    assert none == usual
    assert "\n" in usual.strip()


@pytest.mark.parametrize("argv", [SLOW, (*SLOW, "--estimate"), WIDE, ("show", "ones.npz")], ids=" ".join)
def test_a_dumb_terminal_gets_plain_lines(files: Path, argv: tuple[str, ...]) -> None:
    """Neither escape codes nor blank lines where a bar would have been."""
    np.savez(files / "ones.npz", jacobian=np.ones((2, 3, 3)))
    code, shown, _ = terminal(files, *argv, TERM="dumb")
    assert code == 0, shown
    assert not re.search("[\x1b\r]", shown)
    assert all(line.strip() for line in shown.splitlines())


def test_no_bar_in_continuous_integration(files: Path) -> None:
    _, shown, _ = terminal(files, *SLOW, out=False, CI="true")
    assert shown.splitlines() == ["note: nets.py:Slow was built with fresh weights (seed 0)"]


def test_binary_data_stays_off_the_terminal(files: Path) -> None:
    code, shown, _ = terminal(files, *LINEAR, "--format", "npy")
    assert code == 2
    assert "binary data is never written to a terminal" in shown
    assert "--format table" in shown


def test_the_format_follows_standard_output_only(files: Path) -> None:
    """Standard error on a terminal does not make a table of what goes into a pipe."""
    code, shown, piped = terminal(files, "deviation", "linear.pt", "-i", "x2.npy", "--layer", "input", "-q", out=False)
    assert code == 0
    assert shown == ""
    assert piped.startswith('{"source": "input"')


@pytest.mark.parametrize(("delay", "calls"), [(60.0, ["stop"]), (0.0, ["start", "stop"])])
def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch, delay: float, calls: list[str]) -> None:
    from jaccli.cli import progress

    seen: list[str] = []
    started = threading.Event()

    class Display:
        def start(self) -> None:
            seen.append("start")
            started.set()

        def stop(self) -> None:
            seen.append("stop")

    monkeypatch.setattr(progress, "_DELAY", delay)
    with progress.Bar(Display()).shown():
        if not delay:
            assert started.wait(10)
    assert seen == calls


def test_a_bar_for_long_work(files: Path) -> None:
    _, shown, piped = terminal(files, *SLOW, out=False)
    assert "Jacobian" in shown
    assert " % " in shown
    assert "left" in shown
    assert shown.rstrip("\n").endswith("\x1b[2K")  # it is wiped off in the end
    assert "Jacobian" not in piped


def test_no_bar_when_quiet_or_in_a_pipe(files: Path) -> None:
    _, shown, _ = terminal(files, *SLOW, "-q", out=False)
    assert shown == ""
    _, shown, piped = terminal(files, *SLOW, err=False)
    assert "left" not in shown + piped


def test_the_bar_steps_aside_for_results(files: Path) -> None:
    """Each line of a table begins at the left margin, never behind a bar."""
    argv = (
        "compute",
        "nets.py:Slow",
        "-i",
        "random:400,n=48",
        "--method",
        "loop",
        "--max-memory",
        "40MB",
        "--no-color",
    )
    _, shown, _ = terminal(files, *argv)
    heads = [line for line in shown.splitlines() if "J of input -> output, sample" in line]
    assert len(heads) == 4
    assert "left" in shown
    for head in heads:
        before = head.split("J of input")[0]
        # What stood on the line was erased before.
        assert ESCAPE.sub("", before.split("\x1b[2K")[-1]).strip() == ""


def test_help_fits_a_narrow_terminal(files: Path) -> None:
    _, shown, _ = terminal(files, "compute", "--help", columns=60)
    options = shown.split("Examples:")[0]
    assert max(map(len, options.splitlines())) <= 60
