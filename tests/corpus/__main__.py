"""All bad files through the commands that they concern, as processes: exit codes, seconds, peaks of memory.

    python -m tests.corpus [--all] [WORD …]

Without ``--all`` each file goes through one of its commands, in turn. WORDs pick files by name. A file fails whose exit
code is wrong, that takes 10 s beyond start-up or half as much again as the memory allowed, beyond what a small good
file takes, or of which more is said than three lines. On a busy machine seconds say little.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.corpus import arrays, pickles, programs, saved
from tests.corpus.files import ARCH, Bad

FILES = [*pickles.FILES, *arrays.FILES, *saved.FILES, *programs.FILES]
ALLOWED = 50_000_000
SECONDS = 10.0
_MEASURE = """
import resource, subprocess, sys
command = [sys.executable, "-m", "jaccli", *sys.argv[1:]]
done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
unit = 1 if sys.platform == "darwin" else 1024
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)
sys.stdout.write(done.stderr.decode(errors="replace"))
"""


@dataclass(frozen=True)
class Outcome:
    """What one command did with one file."""

    what: str
    code: int
    seconds: float
    peak: int
    said: str

    @property
    def error(self) -> list[str]:
        """The lines of the error message."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if line.startswith("error:")), len(lines))
        return lines[start:]


def commands(role: str, archive: bool) -> list[tuple[str, ...]]:
    """The commands that a file of this role concerns; FILE stands for it."""
    most = ("--max-memory", str(ALLOWED))
    if role == "model":
        arch = () if archive else ("--arch", ARCH)
        x = ("-i", "random:3,n=2")
        return [
            ("compute", "FILE", *arch, *x, *most),
            ("layers", "FILE", *arch),
            ("spectrum", "FILE", *arch, *x, *most),
            ("regularize", "FILE", *arch, *x, "--layer", "input", "--towards", "zero", "--steps", "1"),
            ("bench", "FILE", *arch, *x, *most),
        ]
    if role == "input":
        return [("compute", ARCH, "-i", "FILE", *most), ("layers", ARCH, "-i", "FILE"), ("bench", ARCH, "-i", "FILE")]
    given = ("--jacobian", "FILE")
    return [("show", "FILE"), ("deviation", *given, *most), ("spectrum", *given, *most)]


def run(what: str, arguments: tuple[str, ...], path: Path) -> Outcome:
    words = [str(path) if word == "FILE" else word for word in arguments]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, *words], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(what, 124, 120.0, 0, "")
    head, _, said = done.stdout.partition("\n")
    code, peak = map(int, head.split())
    return Outcome(what, code, time.perf_counter() - start, peak, said)


def usual(folder: Path) -> dict[tuple[str, ...], Outcome]:
    """What each command does with a small good file."""
    np.save(folder / "input", np.ones((2, 3), dtype=np.float32))
    np.save(folder / "jacobian", np.eye(3)[None])
    pickles.zipped(folder / "model.npy", pickles.state())
    (folder / "archive.npy").write_bytes(programs.script())
    kinds = (("model", "model", False), ("archive", "model", True), ("input", "input", False))
    every = [*kinds, ("jacobian", "jacobian", False)]
    return {c: run("good", c, folder / f"{name}.npy") for name, role, archive in every for c in commands(role, archive)}


def main(words: list[str]) -> int:
    every = "--all" in words
    words = [word for word in words if word != "--all"]
    chosen = [bad for bad in FILES if all(word in bad.name for word in words)]
    programs.script(), programs.export()  # by one thread
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        good = usual(folder)
        least = min(good.values(), key=lambda outcome: outcome.peak)
        assert not any(outcome.code for outcome in good.values()), good

        def tried(number: int, bad: Bad) -> list[str]:
            path = folder / f"bad{number}"
            bad.write(path)
            archive = bad.name.startswith(("script", "export"))
            own = commands(bad.role, archive)
            outcomes = {one: run(bad.name, one, path) for one in (own if every else [own[number % len(own)]])}
            if path.is_file():
                path.unlink()
            print(".", end="", file=sys.stderr, flush=True)
            longest = max(one.seconds for one in outcomes.values())
            most = max(one.peak for one in outcomes.values())
            # What is refused has not run the command: it is held against the least of all.
            found = [line for c, one in outcomes.items() if (line := wrong(bad, one, least if one.code else good[c]))]
            return found or [f"ok    {longest:5.1f} s {most >> 20:6d} MiB  {bad.name}"]

        lines = [line for found in pool.map(tried, range(len(chosen)), chosen) for line in found]
    print("\n".join(lines))
    failed = sum(line.startswith("WRONG") for line in lines)
    print(f"{len(chosen)} files, {failed} wrong; a good one took {least.seconds:.1f} s and {least.peak >> 20} MiB")
    return bool(failed)


def wrong(bad: Bad, outcome: Outcome, good: Outcome) -> str:
    """What is wrong with an outcome; empty if nothing is."""
    figures = f"{outcome.seconds:5.1f} s {outcome.peak >> 20:6d} MiB"
    complaints = []
    figures_of_a_rectangle = outcome.code == 2 and bad.role == "jacobian" and 0 in bad.codes
    if outcome.code not in bad.codes and not figures_of_a_rectangle:
        complaints.append(f"exit {outcome.code}")
    if outcome.seconds > good.seconds + SECONDS:
        complaints.append("slow")
    if outcome.peak > good.peak + 1.5 * ALLOWED:
        complaints.append("memory")
    if outcome.code and not 1 <= len(outcome.error) <= 3:
        complaints.append(f"{len(outcome.error)} lines")
    said = " | ".join(outcome.error)[:300]
    return f"WRONG {figures}  {bad.name}: {', '.join(complaints)}: {said}" if complaints else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
