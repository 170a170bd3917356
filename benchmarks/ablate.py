"""What each part of the engine brings: `make ablation`, or `python benchmarks/ablate.py [NETWORK …] [--switch …]`.

Each switch of ``ablation/switches.py`` leaves one part out. All figures are ratios, without it over with it: above 1
the part pays. *Planned* is a call of a plan made at other samples; *first* a call of ``jaccli.jacobian`` in a warm
process; *memory* the peak of a planned call and what the plan keeps. Calls without and with take turns in one process,
a network each, and a ratio is the median over rounds. Where the program (its code, constants and memory) or the steps
of a first call (those of its search included) are the baseline's, nothing is timed; in means that is 1. *Changed*
counts the networks whose program is another one.

Switches of the program keep the bracketing, the groups and the kernels that the baseline chose; with others the plan
chooses anew by the clock, as it would without that part. ``nothing`` plans anew with all in place: what it shows is the
noise of such choices. Of planning, in the file alone, the best of a few tries counts, of one where it is long.

A file of results is written after each switch, and a run with the same file goes on where it was broken off. Several
files make one table, of the median of their ratios. Exit status 1 where something failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise

from ablation.results import Result, Results, read
from ablation.sparse_networks import ALL_CASES
from ablation.subject import Subject
from ablation.switches import SWITCHES
from ablation.table import table
from ablation.timing import OutOfTime
from measure import limit
from run import about
from session import limit_threads

SWITCH_S = 90.0  # of the processor: no switch is given longer on a network


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print the table in Markdown; 1 if something failed."""
    parser, options = arguments(given)
    if options.table:
        print(table(read(options.table)))
        return 0
    limit_threads(options.threads)
    try:
        results = Results.resumed(about(), options.output)
    except ValueError as error:
        parser.error(str(error))
    names, switches = options.names or ALL_CASES, options.switch or SWITCHES
    for name in names:
        for result in measured_apart(name, results.missing(name, switches), options):
            results.add(result)
    print(table(results.found))
    failed = any("error" in result for result in results.found)
    return int(failed or any(results.missing(name, switches) for name in names))


def measured_apart(name: str, switches: Sequence[str], options: argparse.Namespace) -> Iterator[Result]:
    """The results of a network, from a process of its own."""
    if not switches:
        return
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, switches, options.rounds, options.threads, sender))
    process.start()
    sender.close()
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        process.join()


def _work(name: str, switches: Sequence[str], rounds: int, threads: int | None, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    limit_threads(threads)
    start = time.perf_counter()
    subject = Subject(ALL_CASES[name], rounds)
    for switch in switches:
        try:
            with limit(SWITCH_S, OutOfTime, of_processor=True):
                result = subject.without(SWITCHES[switch])
        except OutOfTime as late:
            result = {"network": name, "switch": switch, "gap": str(late)}
        except Exception as error:
            result = {"network": name, "switch": switch, "error": f"{type(error).__name__}: {error}"[:300]}
        print(f"{name}: {line(result)}", file=sys.stderr, flush=True)
        sender.send(result)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def line(result: Result) -> str:
    """A result, for whoever waits."""
    figures = (
        f"{key} {result[key]['ratio']:.3f}" for key in ("planned", "first", "planning", "memory") if key in result
    )
    return " ".join(filter(None, (result["switch"], result.get("error"), result.get("gap"), *figures)))


def arguments(given: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="what each part of jaccli's engine brings",
        epilog=f"networks: {', '.join(ALL_CASES)}; switches: {', '.join(SWITCHES)}",
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="all by default")
    parser.add_argument("--switch", action="extend", nargs="+", metavar="NAME", help="several; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="at least; more where calls are short")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON, written as it goes, and resumed")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="measure nothing, print these results")
    options = parser.parse_args(given)
    for kind, names, known in (("network", options.names, ALL_CASES), ("switch", options.switch or (), SWITCHES)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"unknown {kind} {', '.join(unknown)}; expected of {', '.join(known)}")
    return parser, options


if __name__ == "__main__":
    sys.exit(main())
