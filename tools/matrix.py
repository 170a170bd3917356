"""The tests against several versions of Python and torch, from the built wheel; the table: docs/versions.md.

For each Python at hand that pyproject.toml names, and the oldest torch of its range, the pinned one and the
newest that installs, a fresh environment gets the wheel and what the tests need, and runs the tests from a
copy of them in which there is no ``jaccli`` folder: what is imported is what was installed. Of the table,
only the rows that were run are replaced.

    python tools/matrix.py                                  everything
    python tools/matrix.py --python 3.12 --torch oldest     one environment
    python tools/matrix.py --python 3.12 --torch oldest --keep -- tests/models -x
                                                            some tests, in an environment that is kept for the
                                                            next run; the table stays as it is
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TABLE = ROOT / "docs" / "versions.md"
TORCHES = ("oldest", "pinned", "newest")
# What the tests read beside themselves. The sources are not among it.
BESIDE = (
    *("tests", "sample_models", "benchmarks", "docs"),
    *("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt"),
)
NOT_FOR_TESTS = ("ruff", "mypy")


@dataclass(frozen=True)
class Row:
    """One line of the table, all as text."""

    python: str
    torch: str
    which: str
    passed: str
    failed: str
    skipped: str

    def __str__(self) -> str:
        return f"| {self.python} | {self.torch} | {self.which} | {self.passed} | {self.failed} | {self.skipped} |"

    @property
    def key(self) -> tuple[int, int]:
        """Rows of one key stand for the same environment; they are sorted by it."""
        return int(self.python.split(".")[1]), TORCHES.index(self.which)


def pythons() -> dict[str, str]:
    """``3.12`` → an interpreter that starts, for each Python named in pyproject.toml that is found."""
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    return {version: found for version in named for found in _interpreters(version)}


def _interpreters(version: str) -> Iterator[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    by_patch = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda p: int(p.parts[-3].rsplit(".", 1)[-1]))
    for path in (shutil.which(f"python{version}"), *map(str, reversed(by_patch)), sys.executable):
        if path and _answer(path, "import sys; print('%d.%d' % sys.version_info[:2])") == version:
            yield path
            return


def _answer(python: str | Path, code: str, folder: Path | None = None) -> str:
    """What a line of Python prints; empty where the interpreter does not start."""
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=_settings(), capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _settings() -> dict[str, str]:
    """The environment, without what would lead imports elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def torch_requirement(which: str) -> str:
    """What pip is asked for."""
    (needed,) = (text for text in PROJECT["project"]["dependencies"] if text.startswith("torch"))
    least = re.search(r">=\s*([\d.]+)", needed)
    assert least, needed
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    return {"oldest": f"torch=={least[1]}.*", "pinned": f"torch=={pinned[1]}", "newest": f"torch>={pinned[1]}"}[which]


def requirements() -> list[str]:
    """All that the package, its extras and the tests need, but torch."""
    project = PROJECT["project"]
    extras = [text for name in ("images", "zarr") for text in project["optional-dependencies"][name]]
    dev = [text for text in PROJECT["dependency-groups"]["dev"] if not text.startswith(NOT_FOR_TESTS)]
    return [*(text for text in project["dependencies"] if not text.startswith("torch")), *extras, *dev]


def build(folder: Path) -> Path:
    """The wheel, from a copy of the sources, so that no build folder is left in the checkout."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "jaccli", source / "jaccli", ignore=shutil.ignore_patterns("__pycache__"))
        _pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(source))
    return max((folder / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)


def environment(place: Path, python: str, which: str, wheel: Path) -> Path:
    """An environment with torch, the wheel and what the tests need; its interpreter. One that is there is used."""
    made, stamp = place / "bin" / "python", place / ".installed"
    if not stamp.exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([python, "-m", "venv", place], check=True, env=_settings())
        pins = ["-c", str(ROOT / "constraints.txt")] if which == "pinned" else []
        _pip(made, "install", *pins, "setuptools", torch_requirement(which), *requirements())
        stamp.touch()
    # Without its requirements: the newest torch may be beyond the range, which is what is to be found out.
    _pip(made, "install", "--force-reinstall", "--no-deps", str(wheel))
    return made


def _pip(python: str | Path, *command: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", command[0], *quiet, *command[1:]], check=True, env=_settings())


def copy_tests(tree: Path) -> Path:
    """The tests and what they read, without the sources."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in BESIDE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


def run_tests(python: Path, tree: Path, jobs: int, arguments: list[str]) -> dict[str, int]:
    """Run them, and count: passed, failed (errors among them), skipped."""
    imported = _answer(python, "import jaccli; print(jaccli.__file__)", tree)
    if not imported.startswith(str(python.parent.parent)):
        raise SystemExit(
            f"jaccli is imported from {imported or 'nowhere'}, not from the wheel in {python.parent.parent}"
        )
    report = tree / "report.xml"
    # The script, not ``-m pytest``, which would put the present folder on the path.
    command = [str(python.parent / "pytest"), "-n", str(jobs), "--dist", "loadfile", f"--junitxml={report}", *arguments]
    subprocess.run(command, cwd=tree, env={"OMP_NUM_THREADS": "1", **_settings()}, check=False)
    if not report.exists():
        raise SystemExit(f"the tests did not run: {' '.join(map(str, command))}")
    found = ElementTree.parse(report).getroot().find("testsuite")
    assert found is not None
    total, failed, errors, skipped = (int(found.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    return {"passed": total - failed - errors - skipped, "failed": failed + errors, "skipped": skipped}


def table_rows(text: str) -> dict[tuple[int, int], Row]:
    """The rows of a table that was written before."""
    rows = [Row(*match) for match in re.findall(r"^\| (3\S+) " + r"\| ([^|]+) " * 5 + r"\|$", text, re.MULTILINE)]
    return {row.key: row for row in rows}


def write_table(rows: list[Row]) -> None:
    """Put rows in place of those of the same environments."""
    known = table_rows(TABLE.read_text()) | {row.key: row for row in rows}
    head, rule = "| Python | torch | which | passed | failed | skipped |", "| --: | --: | :-- | --: | --: | --: |"
    table = "\n".join([head, rule, *(str(known[key]) for key in sorted(known))])
    text = re.sub(r"^\| Python .*?(?=\n\n|\Z)", lambda _: table, TABLE.read_text(), flags=re.MULTILINE | re.DOTALL)
    TABLE.write_text(text.rstrip() + "\n")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="3.x", help="only this one (repeatable)")
    parser.add_argument("--torch", action="append", choices=TORCHES, help="only this one (repeatable)")
    parser.add_argument("--keep", action="store_true", help="keep the environments, some GB each, for the next run")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "jaccli-matrix")
    parser.add_argument("--jobs", type=int, default=2, help="processes that run tests at the same time")
    parser.add_argument("pytest", nargs="*", help="for pytest; the table is then not written")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; 1 where a test fails or an environment cannot be made."""
    asked = arguments()
    at_hand = pythons()
    if missing := set(asked.python or ()) - set(at_hand):
        raise SystemExit(f"no Python {', '.join(missing)} here; there are {', '.join(at_hand)}")
    folder = asked.folder.resolve()
    wheel = build(folder)
    bad = False
    for version in asked.python or at_hand:
        for which in asked.torch or TORCHES:
            row = one(folder, at_hand[version], which, wheel, asked)
            bad |= row.failed != "0"
            print(row, flush=True)
            if not asked.pytest:
                write_table([row])
    return int(bad)


def one(folder: Path, interpreter: str, which: str, wheel: Path, asked: argparse.Namespace) -> Row:
    """Make one environment, run the tests there, and take it away again."""
    version = _answer(interpreter, "import platform; print(platform.python_version())")
    place = folder / f"python{version}-{which}"
    try:
        python = environment(place, interpreter, which, wheel)
    except subprocess.CalledProcessError:
        shutil.rmtree(place, ignore_errors=True)
        return Row(version, torch_requirement(which).removeprefix("torch"), which, "-", "does not install", "-")
    try:
        torch = _answer(python, "import torch; print(torch.__version__.split('+')[0])")
        counts = run_tests(python, copy_tests(folder / f"{place.name}-tests"), asked.jobs, asked.pytest)
    finally:
        if not asked.keep:
            shutil.rmtree(place)
    return Row(version, torch, which, *(str(counts[name]) for name in ("passed", "failed", "skipped")))


if __name__ == "__main__":
    sys.exit(main())
