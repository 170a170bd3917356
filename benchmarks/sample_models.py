"""Methods side by side on the sample models: `python benchmarks/sample_models.py [--rounds N] [NAME …]`.

Each row is one method on one network, in interleaved rounds of one process: median, ratio to the fastest
with a 95 % interval, peak memory and error against float64. Machines differ and are shared: compare the
ratios, not the times.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise

import numpy as np
import torch

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.run.benchmark import race, ratio_interval
from jaccli.sinks.numbers import markdown_table
from jaccli.sinks.table import TableView

SAMPLES = Path(__file__).parents[1] / "sample_models"


@dataclass(frozen=True)
class Case:
    """A network with its samples and the pair to take."""

    model: str
    samples: str
    source: str = "input"
    target: str = "output"
    arch: str | None = None


CASES = {
    "mlp": Case("near_identity.pt", "near_identity_x.npy", source="fc1"),
    "decoder": Case("decoder.safetensors", "decoder_z.npy", arch=f"{SAMPLES}/nets.py:Decoder"),
    "residual": Case("residual.ckpt", "residual_x.npy", source="blocks.0", arch=f"{SAMPLES}/nets.py:ResidualNet"),
    "transformer": Case("transformer.pt2", "transformer_x.npy", source="blocks.0", target="blocks.1"),
    "control flow": Case("control_flow.pt", "control_flow_bright_x.npy"),
}


def rows(name: str, case: Case, rounds: int | None) -> list[dict[str, str]]:
    """One row a method."""
    network = as_network(jaccli.load_model(SAMPLES / case.model, arch=case.arch))
    samples = torch.from_numpy(np.load(SAMPLES / case.samples))
    pair = (resolve(network, case.source), resolve(network, case.target))
    result = race(network, Inputs((samples,)), pair, METHOD_NAMES, rounds=rounds)
    fastest = min((c for c in result.contenders if c.times_s), key=lambda c: c.median_s)
    batch, n_out, n_in = result.shape
    found = []
    for contender in result.contenders:
        row = {"network": f"{name}, {batch} x {n_out} x {n_in}", "method": contender.method}
        if contender.times_s:
            ratio, low, high = ratio_interval(contender.times_s, fastest.times_s)
            row |= {
                "median ms": f"{contender.median_s * 1e3:.3g}",
                "to the fastest": f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
                "peak MiB": f"{(contender.peak_bytes or 0) / 2**20:.3g}",
                "error": f"{contender.max_error:.1e}" if contender.max_error is not None else "",
                "note": f"took {contender.takes}" if contender.method == "auto" else "",
            }
        else:
            row["note"] = contender.why
        found.append(row)
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    unknown = set(options.names) - set(CASES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(CASES)}")
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}\n")
    table: list[dict[str, str]] = []
    for name in options.names or CASES:
        print(f"racing {name}", file=sys.stderr)
        table += rows(name, CASES[name], options.rounds)
    columns = ("network", "method", "median ms", "to the fastest", "peak MiB", "error", "note")
    print(markdown_table(TableView(table, columns)))


if __name__ == "__main__":
    main()
