"""This tree against an earlier one: ``make bench-against REV=…``, or ``python benchmarks/against.py REV [NETWORK …]``.

Both versions run on the same networks (this tree's ``networks.py``), each in a process of its own that waits while the
other works, so that in one run they take turns, round by round, in an order drawn anew. A line is one network:
milliseconds of a planned call before and now, their ratio with a 95 % bootstrap interval, the same of the first
``jaccli.jacobian`` of fresh processes, memory that the plan keeps, and the relative difference of the two Jacobians.
The lines under the table: geometric means, and the start-up of ``jaccli --version``. Exit status 1 where a network is
slower than ``--allow`` with all of its interval, or a J differs by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SLICE_S = 0.05  # a short call is repeated until a round fills this
PAUSE_S = 0.005  # threads of the side before spin for a while
ROUNDING = 1e-4
START_UP = ("-m", "jaccli", "--version")


@dataclass
class Side:
    """One version of the tree at work on one network.

    Args:
        tree: the folder that holds its ``jaccli``.
        network: name of the case.
        threads: of torch; None leaves it alone.
        times_s: seconds of a planned call, one for each round.
        first_s: seconds of first calls.
    """

    tree: Path
    network: str
    threads: int | None
    times_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Side:
        self._worker = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", self.network],
            env=environment(self.tree, self.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._worker.kill()
        self._worker.wait()

    def ask(self, question: str) -> Any:
        """The worker's answer.

        Raises:
            RuntimeError: the worker ended; its traceback is on standard error.
        """
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(question + "\n")
        self._worker.stdin.flush()
        line = self._worker.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.network}: the version in {self.tree} failed at {question!r}")
        return json.loads(line)

    def first_call(self) -> None:
        """Add the time of a first call in a fresh process."""
        script = [sys.executable, str(ROOT / "benchmarks" / "first_call.py"), self.network, "jaccli"]
        done = subprocess.run(script, env=environment(self.tree, self.threads), capture_output=True, text=True)
        seconds = [line for line in done.stdout.splitlines() if line.startswith("seconds: ")]
        if done.returncode or not seconds:
            raise RuntimeError(f"{self.network}: first call of {self.tree} failed: {done.stderr[-500:]}")
        self.first_s.append(float(seconds[-1].removeprefix("seconds: ")))


def environment(tree: Path, threads: int | None) -> dict[str, str]:
    """In which ``import jaccli`` takes the tree's."""
    changes = {"PYTHONPATH": str(tree)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return {**os.environ, **changes, "PYTHONDONTWRITEBYTECODE": ""}


def work(network: str) -> None:
    """Answer questions from standard input, one a line, about a plan made at other samples than it is called with."""
    import torch
    from networks import CASES

    import jaccli

    warnings.simplefilter("ignore")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    case = CASES[network]
    x = case.samples(0)
    plan = jaccli.plan(case.model(), case.samples(1), source=case.source, target=case.target)
    repeats = 1
    for question in sys.stdin:
        if question.startswith("time"):
            start = time.perf_counter()
            for _ in range(repeats):
                plan(x)
            answer: Any = (time.perf_counter() - start) / repeats
            repeats = max(1, min(200, int(SLICE_S / answer)))
        elif question.startswith("save"):
            torch.save(plan(x), question.split()[1])
            answer = "saved"
        else:
            answer = {"kept": plan.kept_bytes, "plan": str(plan)}
        print(json.dumps(answer), flush=True)


def compare(network: str, before: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One network in both trees, in turns."""
    draw = random.Random(0)
    with Side(before, network, options.threads) as old, Side(ROOT, network, options.threads) as new:
        sides = [old, new]
        found = {"network": network, "difference": difference(old, new)}
        for _ in range(3):  # warm-up
            for side in sides:
                side.ask("time")
        for _ in range(options.rounds):
            for side in draw.sample(sides, 2):
                time.sleep(PAUSE_S)
                side.times_s.append(side.ask("time"))
        found["kept"] = [side.ask("kept")["kept"] for side in sides]
    for _ in range(options.first_repeats):
        for side in draw.sample(sides, 2):
            side.first_call()
    return {**found, "planned_s": [side.times_s for side in sides], "first_s": [side.first_s for side in sides]}


def difference(old: Side, new: Side) -> float:
    """The largest relative Frobenius difference of a sample's J."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        matrices: list[torch.Tensor] = []
        for side in (old, new):
            path = f"{folder}/{len(matrices)}.pt"
            side.ask(f"save {path}")
            matrices.append(torch.load(path).flatten(1).double())
    norm = torch.linalg.vector_norm(matrices[0], dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return float((torch.linalg.vector_norm(matrices[1] - matrices[0], dim=1) / norm).max())


def interval(before: Sequence[float], now: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of the medians now ÷ before, and its 95 % bootstrap interval over rounds."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(now, k=len(now))) / statistics.median(draw.choices(before, k=len(before)))
        for _ in range(draws)
    )
    middle = statistics.median(now) / statistics.median(before)
    return middle, ratios[int(0.025 * draws)], ratios[int(0.975 * draws)]


def start_up(before: Path, repeats: int = 15) -> tuple[float, float, float]:
    """Ratio of the seconds of a command that needs no torch."""
    times: dict[Path, list[float]] = {before: [], ROOT: []}
    for round_ in range(repeats + 1):
        for tree, found in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *START_UP], env=environment(tree, None), capture_output=True, check=True)
            if round_:  # the first one writes byte code
                found.append(time.perf_counter() - start)
    return interval(times[before], times[ROOT])


def line(found: dict[str, Any]) -> str:
    """A network's line of the table."""
    cells = [found["network"]]
    for key in ("planned_s", "first_s"):
        before, now = found[key]
        if not now:
            cells += ["", "", ""]
            continue
        middle, low, high = interval(before, now)
        cells += [f"{1e3 * statistics.median(t):.3g}" for t in (before, now)] + [
            f"{middle:.3f} ({low:.3f} … {high:.3f})"
        ]
    cells += [" → ".join(f"{b / 2**20:.1f}" for b in found["kept"]), f"{found['difference']:.0e}"]
    return "| " + " | ".join(cells) + " |"


def summary(results: list[dict[str, Any]], allow: float) -> list[str]:
    """Geometric means, and the networks that are slower or differ."""
    lines = []
    for key, name in (("planned_s", "planned call"), ("first_s", "first call")):
        ratios = {r["network"]: interval(*r[key]) for r in results if r[key][1]}
        if not ratios:
            continue
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio, _, _ in ratios.values()))
        slower = [f"{n} {r:.3f}" for n, (r, low, _) in ratios.items() if r > 1 + allow and low > 1 + allow / 2]
        lines.append(
            f"{name}: geometric mean {mean:.3f}; slower by more than {allow:.0%}: {', '.join(slower) or 'none'}"
        )
    wrong = [r["network"] for r in results if r["difference"] > ROUNDING]
    return [*lines, f"J differs by more than {ROUNDING:g}: {', '.join(wrong) or 'none'}"]


def unpack(revision: str, folder: str) -> Path:
    """The revision's ``jaccli`` in a folder."""
    packed = subprocess.run(["git", "archive", revision, "jaccli"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=packed, check=True)
    return Path(folder)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="this tree against an earlier one")
    parser.add_argument("revision", metavar="REV", help="anything that git takes for a commit")
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="all by default")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--first-repeats", type=int, default=5, metavar="N", help="fresh processes a side; 0 for none")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--allow", type=float, default=0.03, help="slower by this share is a failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, rewritten after each network")
    return parser.parse_args()


def main() -> int:
    """Compare, print, and say whether something is slower."""
    options = arguments()
    from networks import CASES

    results: list[dict[str, Any]] = []
    print("| network | before ms | now ms | now ÷ before | first before | now | now ÷ before | kept MiB | J differs |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        before = unpack(options.revision, folder)
        for name in options.names or CASES:
            results.append(compare(name, before, options))
            print(line(results[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results))
        print(f"\nstart-up now ÷ before: {start_up(before)[0]:.3f}")
    lines = summary(results, options.allow)
    print("\n".join(lines))
    return int(any(not text.endswith("none") for text in lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        sys.exit(main())
