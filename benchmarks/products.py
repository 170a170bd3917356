"""What can be known about J without building it, and J inside a loss, measured.

    python benchmarks/products.py [estimate] [loss]

``estimate``: ``jaccli deviation --estimate`` on a residual chain of 16,384 units, in a process of its own: time and
peak memory, and the time that the exact value is predicted to take. ``loss``: one training step with ‖J − I‖² by
``hutchinson`` and by ``exact``, against ``torch.func`` versions written by hand; rounds in an order drawn anew each,
medians of ratios.
"""

from __future__ import annotations

import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

WIDTH = 16384
ROUNDS = 15


class Block(nn.Module):
    """h + W₂ tanh(W₁h + b₁) + b₂."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(torch.tanh(self.down(h)))


def residual_chain(width: int = WIDTH, hidden: int = 64, blocks: int = 8) -> nn.Module:
    """The network of ``estimate``."""
    return nn.Sequential(*(Block(width, hidden) for _ in range(blocks)))


def mlp(width: int, hidden: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.Tanh()]
    for _ in range(depth):
        layers += [nn.Linear(hidden, hidden), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, width))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp 16-32-16, batch 32": (lambda: mlp(16, 32, 1), (32, 16)),
    "mlp 64-256-256-64, batch 64": (lambda: mlp(64, 256, 2), (64, 64)),
    "mlp 256 x 5, batch 32": (lambda: mlp(256, 256, 3), (32, 256)),
    "autoencoder 256-16-256, batch 32": (
        lambda: nn.Sequential(nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 256)),
        (32, 256),
    ),
    "residual 128, LayerNorm, batch 16": (
        lambda: nn.Sequential(nn.LayerNorm(128), Block(128, 256), nn.LayerNorm(128), Block(128, 256)),
        (16, 128),
    ),
}


def by_hand(net: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """‖J − I‖² as one writes it with torch.func."""
    weights: dict[str, Tensor] = dict(net.named_parameters())
    n = math.prod(x.shape[1:])
    eye = torch.eye(n)

    def hutchinson() -> Tensor:
        pull = vjp(lambda z: functional_call(net, weights, (z,)), x)[1]
        v = torch.randint(0, 2, x.shape).float() * 2 - 1
        return (pull(v)[0] - v).square().sum(1)

    def exact() -> Tensor:
        j = vmap(jacrev(lambda z: functional_call(net, weights, (z[None],))[0]))(x)
        return (j - eye).square().sum((1, 2))

    return {"hutchinson": hutchinson, "exact": exact}


def loss() -> None:
    """One training step each way."""
    import jaccli

    print("| network | forward pass, ms | hutchinson, ms | to by hand | to forward | exact, ms | to by hand |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        net, x = build(), torch.randn(shape)

        def step(value: Callable[[], Tensor], net: nn.Module = net) -> None:
            for p in net.parameters():
                p.grad = None
            value().mean().backward()

        runs: dict[str, Callable[[], object]] = {"forward": partial(net, x)}
        for kind, value in by_hand(net, x).items():
            runs[f"{kind} by hand"] = partial(step, value)
            ours = partial(jaccli.identity_deviation, net, x, estimator=cast(Any, kind))
            runs[kind] = partial(step, ours)
        times: dict[str, list[float]] = {key: [] for key in runs}
        for run in runs.values():
            run(), run()
        for _ in range(ROUNDS):
            order = list(runs)
            random.shuffle(order)
            for key in order:
                start = time.perf_counter()
                runs[key]()
                times[key].append(time.perf_counter() - start)
        ms = {key: 1e3 * statistics.median(found) for key, found in times.items()}
        ratio = {
            kind: statistics.median(a / b for a, b in zip(times[kind], times[f"{kind} by hand"], strict=True))
            for kind in ("hutchinson", "exact")
        }
        to_forward = statistics.median(a / b for a, b in zip(times["hutchinson"], times["forward"], strict=True))
        print(
            f"| {name} | {ms['forward']:.3g} | {ms['hutchinson']:.3g} | {ratio['hutchinson']:.2f} | {to_forward:.1f} | "
            f"{ms['exact']:.3g} | {ratio['exact']:.2f} |"
        )


def estimate() -> None:
    """Time and peak memory of the command, and the exact value's predicted time."""
    model = f"{Path(__file__).resolve()}:residual_chain"
    command = [sys.executable, "-m", "jaccli", "deviation", model, "-i", f"random:{WIDTH}", "--samples", "0"]
    command += ["--layer", "input", "--format", "json", "-q"]
    for flags in (["--max-memory", "1GiB"], ["--tolerance", "1%"]):
        done = subprocess.run([*command, *flags], capture_output=True, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        found = json.loads(done.stdout)
        sample, timing = found["pairs"][0]["samples"][0], found["timing"]
        print(
            f"{' '.join(flags)}: ‖J - I‖ = {sample['frobenius']:.4g} ± {sample['frobenius_stderr']:.2g}, ‖J - I‖₂ = "
            f"{sample['spectral']:.6g}, {timing['plan_s'] + timing['compute_s']:.2f} s of {timing['total_s']:.2f} s, "
            f"peak {peak:.2f} GiB"
        )
    print(f"exact: predicted {_predicted():.3g} s for J alone, of {4 * WIDTH**2 / 2**30:.2g} GiB")


def _predicted() -> float:
    from jaccli.planning.bind import bind
    from jaccli.planning.decide import decide, predicted_seconds
    from jaccli.planning.linearize import computing, exact_attention, linearize

    network, pair, inputs = bind(residual_chain().eval(), torch.randn(1, WIDTH), "input", "output", (), None)
    with computing(network), exact_attention(True):
        (linearization,) = linearize(network, inputs, [pair])
        decision = decide(linearization, "auto", max_memory=2**40)
        return predicted_seconds(linearization, decision) or math.nan


if __name__ == "__main__":
    parts = {"estimate": estimate, "loss": loss}
    for part in sys.argv[1:] or parts:
        parts[part]()
