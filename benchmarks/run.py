"""jaccli and its peers side by side: `make bench`, or `python benchmarks/run.py [NETWORK …] [--rounds N] …`.

How to read the table. Every line is one network (``networks.py``) and one layer pair. ``jaccli ms`` is a
call of a plan that was made at other samples; the forward pass from the input is in it, for the peers too.
``ratio eager`` and ``ratio best`` are that time over the best eager PyTorch peer and over the best peer of
all, ``torch.compile`` and JAX among them, with a 95 % bootstrap interval over rounds; below 1 jaccli is
faster; ``target`` is what ``ratio best`` should not exceed. ``compiled ms`` is a call of the plan through
``torch.compile``, which takes seconds to minutes once, and ``ratio compiled`` that over the best peer of all.
``first ms`` is the first ``jaccli.jacobian`` of a fresh process, after imports, and ``ratio first`` that over the
quickest first call of the eager peers, each in a process of its own. ``memory`` is the peak of a planned call over
1.25 times J plus the network's activations; ``held MiB`` is what the plan keeps between calls. ``floor ms`` is the
larger of the fewest operations known over this machine's matrix-product rate and J's bytes over its write rate:
``to floor`` is hardly ever below 1.

How it is measured. Every contender is held against float64 before it is timed; a wrong one is left out and
reported. Each peer races in its fastest setting (chunk size, layout, attention kernel), found in a warm-up;
one that is more than 20 times slower than the best of its family, or needs more than 10 s, keeps the figure of
its warm-up. The others take turns in rounds, in one process for each network, in an order drawn anew, with
garbage collection off. Machines differ and are shared: believe the ratios, not the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise

import jax_peers
import report
import torch
from costs import Machine
from networks import CASES
from peers import COMPILED, EAGER, OURS_COMPILED
from session import Options, limit_threads, measure_apart


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with ``options`` made of it."""
    parser = argparse.ArgumentParser(
        description="jaccli and its peers side by side", epilog=f"networks: {', '.join(CASES)}"
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", help="only these, separated by commas; 'none' for jaccli alone")
    parser.add_argument("--no-jax", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-first", action="store_true", help="leave the first calls out")
    parser.add_argument("--first-repeats", type=int, default=3, metavar="N", help="processes for each first call")
    parser.add_argument("--threads", type=int, help="for torch and JAX")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, rewritten after each network")
    parser.add_argument("--plan", action="store_true", help="show jaccli's plans, on standard error")
    chosen = parser.parse_args(given)
    known = (*EAGER, *COMPILED, OURS_COMPILED, *jax_peers.JAX)
    wanted = known if chosen.peers is None else tuple(p for p in chosen.peers.split(",") if p != "none")
    for what, names, expected in (("network", chosen.names, CASES), ("peer", wanted, known)):
        if unknown := set(names) - set(expected):
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}; expected of {', '.join(expected)}")
    without = ((*COMPILED, OURS_COMPILED) if chosen.no_compile else (), jax_peers.JAX if chosen.no_jax else ())
    wanted = tuple(p for p in wanted if not any(p in group for group in without))
    repeats = 0 if chosen.no_first else chosen.first_repeats
    chosen.options = Options(chosen.rounds, wanted, repeats, chosen.threads)
    return chosen


def about() -> dict[str, Any]:
    """What this was measured on and with."""
    import jaccli

    return {
        "jaccli": jaccli.__version__,
        "torch": torch.__version__,
        **jax_peers.versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def note_doubts(options: Options) -> None:
    """Say which peers cannot run here, and whether the machine is busy."""
    if os.getloadavg()[0] > 0.5:
        print("note: others use this machine; torch's threads wait for each other and suffer most", file=sys.stderr)
    if missing := [p for p in options.peers if p in jax_peers.JAX and p not in jax_peers.available()]:
        print(f"note: left out: {', '.join(missing)} (pip install jax asdex)", file=sys.stderr)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print the table in Markdown; 1 if a network could not be measured."""
    chosen = arguments(given)
    limit_threads(chosen.threads)
    note_doubts(chosen.options)
    facts = about()
    print(" · ".join(f"{key} {value}" for key, value in facts.items()) + "\n", flush=True)
    results: list[tuple[report.Result, Machine]] = []
    names = chosen.names or list(CASES)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # compile times are those of a first time
        for name in names:
            found = measure_apart(name, chosen.options)
            if found is None:
                continue
            results.append(found)
            print(report.details(found[0]) + (f"\n{found[0].plan}\n" if chosen.plan else ""), file=sys.stderr)
            if chosen.json:
                chosen.json.write_text(json.dumps(report.document(results, facts), indent=1))
    if results:
        print(report.table([result for result, _ in results]))
    return int(len(results) < len(names))


if __name__ == "__main__":
    sys.exit(main())
