"""Every command, output and Python example of the README, run as a reader would run them.

A ``console`` block is a session on a terminal of 80 columns without colours: lines after ``$ `` are
commands (a backslash at the end goes on), the rest is what they print, standard output and standard
error together. In what is shown

* numbers with a decimal point agree within a relative 1e-3 or an absolute 1e-6, whole numbers exactly;
* times and sizes with a unit (``1.2 ms``, ``66 KiB``) stand for any number;
* digits before ``…`` are the first of a number that goes on, as in ``0.01…``: what rounding decides the rest of;
* any other ``…`` stands for anything in its line, and alone on a line for any lines;
* progress (``step 20 of 1000: …``) does not count: it is printed when a command takes long.

A ``python`` block is executed; ``print(...)  # text`` must print the text. ``sh`` blocks are not run.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from jaccli import errors
from jaccli.activations.address import parse_address
from jaccli.names import METHOD_NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WIDTH, HEIGHT = 80, 24


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the README that it starts in."""

    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"line{self.line}"


def blocks(text: str, language: str | None = None) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    every = [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in found]
    return [block for block in every if language in (None, block.language)]


def steps(session: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it should print."""
    found: list[tuple[str, list[str]]] = []
    goes_on = False
    for line in session.splitlines():
        if goes_on:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
            goes_on = line.endswith("\\")
        elif line.startswith("$ "):
            found.append((line[2:], []))
            goes_on = line.endswith("\\")
        else:
            assert found, f"output before a command: {line!r}"
            found[-1][1].append(line)
    return found


_NUMBER = r"(?<![\w.:])[-+]?(?:\d+\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w:]|\.\w)"
_BEGINS = re.compile(r"(?<![\w.:])[-+]?\d+\.\d+…")
_PROGRESS = re.compile(r"step \d+ of \d+: ")
_UNIT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:[eE][-+]?\d+)? (?:ms|s|B|KiB|MiB|GiB)\b")


def same_line(shown: str, got: str) -> bool:
    """Whether a line agrees with what is shown, by the rules above."""
    if shown.rstrip() == got.rstrip():
        return True
    if not re.search(r"[A-Za-z─…]|\d\.\d", shown):  # a row of a picture, where blanks mean something
        return False
    shown, got = (_UNIT.sub("<measured>", " ".join(re.sub("─+", "─", text).split())) for text in (shown, got))
    if _BEGINS.search(shown):
        return _begins_alike(shown, got)
    skeleton = "(.*)".join(re.escape(_spread(part)) for part in shown.split("…"))
    if not re.fullmatch(re.sub(re.escape(re.escape("<number>")), "<number>", skeleton), _spread(got)):
        return False
    if "…" in shown:  # numbers around what is left out cannot be told apart; the words have been compared
        return True
    pairs = zip(re.findall(_NUMBER, shown), re.findall(_NUMBER, got), strict=True)
    return all(a == b if a.isdigit() and b.isdigit() else _close(a, b) for a, b in pairs)


def _spread(text: str) -> str:
    return re.sub(_NUMBER, "<number>", text)


def _begins_alike(shown: str, got: str) -> bool:
    """A line with numbers of which only the first digits are shown, and nothing else left out."""
    columns = list(zip(shown.split(), got.split(), strict=False))
    if len(columns) != max(len(shown.split()), len(got.split())):
        return False
    return all(
        re.fullmatch(re.escape(a[:-1]) + r"\d*", b) if _BEGINS.fullmatch(a) else same_line(a, b) for a, b in columns
    )


def _close(a: str, b: str) -> bool:
    return math.isclose(float(a), float(b), rel_tol=1e-3, abs_tol=1e-6)


def same(shown: list[str], *streams: list[str]) -> bool:
    """Whether lines agree with those of one stream, or of two, which have no order between them.

    The lines of each stream must come in their order. Blank lines do not count.
    """
    shown, *printed = ([line for line in lines if line.strip()] for lines in (shown, *streams))
    ends = tuple(map(len, printed))
    reached = {tuple(0 for _ in printed)}  # how much of each stream the lines so far can stand for
    for line in shown:
        if line.strip() == "…":
            reached = {end for start in reached for end in _beyond(start, ends)}
        else:
            reached = {
                (*at[:i], at[i] + 1, *at[i + 1 :])
                for at in reached
                for i, lines in enumerate(printed)
                if at[i] < ends[i] and same_line(line, lines[at[i]])
            }
    return ends in reached


def _beyond(start: tuple[int, ...], ends: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*(range(at, end + 1) for at, end in zip(start, ends, strict=True)))


def on_a_terminal(command: str, folder: Path) -> tuple[str, str]:
    """Run with a terminal for standard output; returns it and standard error, which shows no progress."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "FORCE_COLOR", "JACCLI_TRACEBACK")}
    path = os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", "")])
    settings = {"PATH": path, "NO_COLOR": "1", "TERM": "xterm", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    printed = bytearray()

    def listen() -> None:
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                return
            if not piece:
                return
            printed.extend(piece)

    with subprocess.Popen(
        ["sh", "-c", command],
        cwd=folder,
        env={**kept, **settings},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(terminal)
        listener = threading.Thread(target=listen)
        listener.start()
        assert process.stderr is not None
        said = process.stderr.read()
    listener.join()
    os.close(main)
    return printed.decode().replace("\r\n", "\n"), said.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "sample_models", tmp_path / "sample_models", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("block", blocks(README, "console"), ids=str)
def test_commands(block: Block, folder: Path) -> None:
    for command, shown in steps(block.text):
        out, said = (text.splitlines() for text in on_a_terminal(command, folder))
        said = [line for line in said if not _PROGRESS.match(line)]
        assert same(shown, out, said), "\n".join(["", f"$ {command}", *said, *out])


@pytest.mark.parametrize("block", blocks(README, "python"), ids=str)
def test_python(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, f"README.md, line {block.line}", "exec"), {"__name__": "__readme__"})
    expected = re.findall(r"^\s*print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert len(expected) == len(re.findall(r"^\s*print\(", block.text, re.MULTILINE))
    assert same(expected, printed.getvalue().splitlines()), printed.getvalue()


def test_every_block_is_of_a_known_kind() -> None:
    assert {block.language for block in blocks(README)} == {"console", "python", "sh", "text"}
    assert README.count("```") == 2 * len(blocks(README))
    assert not [block for block in blocks(README) if block.language in ("sh", "text") and "$ " in block.text]


def test_make_demo_and_make_test_come_first() -> None:
    assert blocks(README)[0].text.split("\n")[0].startswith("make demo")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE)
    assert {a or b for a, b in named} <= set(targets)


def test_commands_are_those_that_exist() -> None:
    from typer.main import get_command

    from jaccli.cli.app import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^jaccli (\w+) ", _section("Commands"), re.MULTILINE)) == commands
    assert set(re.findall(r"\bjaccli (?!layers between)([a-z]+) ", _code())) <= commands


def test_every_option_is_explained() -> None:
    """By a line of help that is a sentence, and in the README by its long form."""
    from typer.main import get_command

    from jaccli.cli.app import app

    root = get_command(app)
    options = [
        parameter
        for command in (root, *root.commands.values())  # type: ignore[attr-defined]
        for parameter in command.params
        if parameter.param_type_name == "option"
    ]
    assert len(options) > 100
    assert [option.opts for option in options if not (option.help or "").strip().endswith(".")] == []
    flags = {flag for option in options for flag in option.opts if flag.startswith("--")}
    assert sorted(flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", README)) == []


def test_methods_and_norms_are_those_that_exist() -> None:
    from jaccli.names import NORMS
    from jaccli.statistics.spectral import FIELDS

    assert _first_column("Methods") == list(METHOD_NAMES)
    of_spectra = [name for name in FIELDS if name != "frobenius"]  # which shares a line
    assert _first_column("What the numbers mean") == [*NORMS, *of_spectra]
    for table in re.findall(r"^\| method \| median.*?\n\n", _section("Bench"), re.DOTALL | re.M):
        raced = re.findall(r"^\| ([a-z-]+) ", table, re.MULTILINE)[1:]
        assert raced == [name for name in METHOD_NAMES if name in raced]  # an example: a newer method may be missing


def test_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(code) for code in _first_column("Exit codes")}
    tree = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.JaccliError)}
    # Nothing starts workers that could die; 0, 129, 130, 141 and 143 are no errors.
    assert listed == tree - {errors.WorkerError.exit_code} | {0, 129, 130, 141, 143}


def test_layer_names_are_understood() -> None:
    names = _first_column("Layers")
    assert len(names) > 8
    for name in names:
        parse_address(name)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def _section(title: str) -> str:
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", _prose_safe(), re.DOTALL | re.MULTILINE)
    assert match, f"no section {title!r}"
    return match[1]


def _prose_safe() -> str:
    """The README with ``#`` at the start of code lines taken away, so that headings are headings."""
    return re.sub(r"^```.*?^```$", lambda m: re.sub(r"^#", " ", m[0], flags=re.MULTILINE), README, flags=re.S | re.M)


def _first_column(title: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", _section(title), re.MULTILINE)


def _code() -> str:
    return "\n".join(block.text for block in blocks(README) if block.language in ("console", "sh"))


@pytest.mark.parametrize(
    ("shown", "got", "agree"),
    [
        ("a  0.5976  3", "a 0.59761 3", True),
        ("a  0.5976  3", "a 0.5996 3", False),
        ("a  0.5976  3", "a 0.5976 4", False),
        ("a  0.5976  3", "b 0.5976 3", False),
        ("  ,+ #", " ,+  #", False),
        (" reverse  1.01 ms  3 KiB", " reverse  17 ms  5.2 KiB", True),
        (" reverse  1.01 ms", " forward  1.01 ms", False),
        ("torch: …", "torch: 2.13.0+cpu", True),
        ("torch: …", "numpy: 2.4", False),
        ("J is 16 x 16, …", "J is 16 x 15, float32", True),
        ("─────── x", "── x", True),
        ("7 after  0.01…  -1.5…", "7 after    0.0179 -1.5", True),
        ("7 after  0.01…  0.04…", "7 after  0.01204  0.0532", False),
        ("7 after  0.01…", "7 after  0.01e-3", False),
        ("7 after  0.01…", "8 after  0.012", False),
        ("7 after  0.01…", "7 after  0.012  0", False),
    ],
)
def test_what_agrees(shown: str, got: str, agree: bool) -> None:
    assert same_line(shown, got) is agree


def test_lines_left_out() -> None:
    assert same(["a", "…", "d"], ["a", "b", "c", "d", ""])
    assert same(["a", "b", "c"], ["a", "c"], ["b"])
    assert not same(["a", "b", "c"], ["c", "a"], ["b"])
    assert not same(["a", "b"], ["a", "b"], ["c"])
    assert same(["a", "…"], ["a"])
    assert not same(["a", "…", "d"], ["a", "b"])
    assert not same(["a"], ["a", "b"])
