"""Seconds of the first Jacobian in a fresh process: `python first_call.py NETWORK jaccli|PEER [SETTING]`.

The clock starts when torch (and jaccli) are imported and the module and its samples are there.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from networks import Case

LIMIT_S = 60.0
_ANSWER = "seconds: "


def _ours(case: Case) -> Callable[[Any], Any]:
    from jaccli import jacobian

    model = case.model()
    return lambda x: jacobian(model, x, source=case.source, target=case.target)


def _peer(case: Case, name: str, label: str) -> Callable[[Any], Any]:
    from peers import COMPILED, Problem, Setting, compiled_runner, runner

    make = compiled_runner if name in COMPILED else runner
    return make(Problem(case), name, Setting.parse(label))


def main() -> None:
    """Time one first call."""
    import torch
    from networks import CASES

    warnings.simplefilter("ignore")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    network, name, *label = sys.argv[1:]
    case = CASES[network]
    run = _ours(case) if name == "jaccli" else _peer(case, name, label[0] if label else "")
    x = case.samples(0)
    start = time.perf_counter()
    run(x)
    print(f"{_ANSWER}{time.perf_counter() - start}")


def one(network: str, name: str, label: str, *, limit_s: float = LIMIT_S) -> float:
    """Seconds of one first call.

    Raises:
        RuntimeError: it failed or took too long; the last line it wrote says why.
    """
    command = [sys.executable, str(Path(__file__).resolve()), network, name, label]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"more than {limit_s:g} s") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or not answers:
        raise RuntimeError(_reason(done.stderr) or f"exit status {done.returncode}")
    return float(answers[-1].removeprefix(_ANSWER))


def _reason(text: str) -> str:
    """The last line of a traceback that names an error."""
    lines = [line for line in text.splitlines() if line and not line[0].isspace() and "Error" in line]
    return lines[-1] if lines else ""


def medians(network: str, contenders: Mapping[str, str], repeats: int) -> dict[str, float]:
    """Median seconds of first calls, each in a process of its own, taking turns.

    Args:
        network: name of the case.
        contenders: name → setting.
        repeats: processes for each.
    """
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, label in contenders.items():
            try:
                found.setdefault(name, []).append(one(network, name, label))
            except RuntimeError as trouble:
                print(f"{network}: first call of {name}: {trouble}", file=sys.stderr)
    return {name: statistics.median(times) for name, times in found.items() if times}


if __name__ == "__main__":
    main()
