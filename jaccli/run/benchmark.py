"""Methods side by side: interleaved rounds, one process, the same samples, checked against a reference."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.errors import JaccliError
from jaccli.graph import meter
from jaccli.methods import MethodGap
from jaccli.methods.base import reason
from jaccli.names import MethodName
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision, decide, predicted_seconds
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.autotune import tuned
from jaccli.run.blocks import Choice, collect, stream
from jaccli.run.execute import Outcome, fill
from jaccli.run.reference import Reference, reference, relative_error

Say = Callable[[str], None]
# What is timed of these is a planned call.
PLANNED = ("auto", "structured")


@dataclass
class Contender:
    """One method in the race.

    Args:
        method: its name.
        status: ``ok``, or ``failed`` with ``why``.
        takes: the method that ``auto`` chose.
        times_s: seconds of each round, forward pass included.
        peak_bytes: most memory held at once beyond what was there before, J included.
        max_error: largest relative Frobenius error of a sample against the reference.
        predicted_s: what the plan said.
        predicted_bytes: what the plan said of the peak.
        plan_s: seconds that planning took, once; ``compile_s``: that compiling took, where it was done.
        session: held around the calls, and not timed.
        call: gives J; ``forget`` lets go of memory that it keeps for the next one.
    """

    method: MethodName
    status: str = "ok"
    why: str = ""
    takes: str = ""
    times_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    max_error: float | None = None
    predicted_s: float | None = None
    predicted_bytes: int | None = None
    plan_s: float = 0.0
    compile_s: float | None = None
    session: Callable[[], AbstractContextManager[None]] = nullcontext
    call: Callable[[], Tensor] | None = None
    forget: Callable[[], None] = lambda: None

    @property
    def median_s(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.times_s)) if self.times_s else float("nan")


@dataclass(frozen=True)
class Race:
    """All contenders and what they were held against."""

    contenders: list[Contender]
    reference: Reference
    rounds: int
    shape: tuple[int, int, int]


def race(
    network: Network,
    inputs: Inputs,
    pair: Pair,
    methods: Sequence[MethodName],
    *,
    rounds: int | None = None,
    max_time: float = 10.0,
    max_memory: int | None = None,
    chunk: int | None = None,
    compile: bool = False,
    say: Say = lambda text: None,
) -> Race:
    """Time the methods on one pair.

    Each is warmed up and checked once, then all take turns, in an order drawn anew each round, until the rounds
    are done: at least three, at most ``BENCH_ROUNDS``, about ``max_time`` seconds in all. What is timed
    is one whole J from samples that are there: forward pass and products; for ``auto`` and
    ``structured`` a call of a plan, as ``jaccli.plan`` makes it, its checks included.

    Args:
        network: the model.
        inputs: samples and further arguments.
        pair: addresses.
        methods: which.
        rounds: how many; by default what fits.
        max_time: aim in seconds.
        max_memory: as for ``jaccli.jacobian``.
        chunk: as for ``jaccli.jacobian``.
        compile: the recorded programs go through ``torch.compile``.
        say: told what is going on.
    """
    choice = Choice("auto", max_memory, chunk)
    with computing(network), exact_attention(True):
        refuse_too_large(network, inputs, [pair], "auto", max_memory, keep=inputs.batch)
        (probe,) = linearize(network, inputs, [pair])
        say("reference in float64")
        truth = reference(network, inputs, pair, probe.samples_mix)
    contenders = []
    for method in methods:
        say(f"plan for {method}")
        contenders.append(_enter(network, inputs, pair, replace(choice, method=method), probe, compile))
    for contender in contenders:
        say(f"warm-up {contender.method}")
        _warm_up(contender, truth)
    running = [c for c in contenders if c.status == "ok"]
    warm = [c.times_s.pop() for c in running]
    count = rounds or _rounds(warm, max_time)
    for turn in range(count):
        say(f"round {turn + 1} of {count}")
        # Drawn anew: whoever always came after the same one would always find the caches as that one left them.
        for contender in random.Random(turn).sample(running, len(running)):
            contender.times_s.append(_timed(contender)[0])
    for contender in running:
        say(f"memory of {contender.method}")
        contender.peak_bytes = _peak_bytes(contender)
    return Race(contenders, truth, count, probe.linear.shape)


def _enter(
    network: Network, inputs: Inputs, pair: Pair, choice: Choice, probe: Linearization, compile: bool
) -> Contender:
    contender = Contender(choice.method)
    start = time.perf_counter()
    replay = None
    try:
        with meter.as_measured():
            with computing(network), exact_attention(choice.exact_attention):
                (linearization,) = linearize(network, inputs, [pair], graph=choice.needs_graph)
                decision = decide(
                    linearization, choice.method, max_memory=choice.max_memory, chunk=choice.chunk, keep=inputs.batch
                )
            if choice.method in PLANNED:
                decision, replay = tuned(network, pair, choice, decision, inputs, linearization, compile)
        contender.compile_s = replay.compile_s if replay is not None and compile else None
        contender.plan_s = time.perf_counter() - start - (contender.compile_s or 0.0)
        with computing(network), exact_attention(choice.exact_attention):
            contender.predicted_s = predicted_seconds(linearization, decision)
    except JaccliError as error:
        contender.status, contender.why = "failed", error.given
        return contender
    contender.takes, contender.predicted_bytes = decision.method or "zero", decision.peak_bytes
    if replay is not None:
        contender.call, contender.forget = partial(replay, inputs), replay.forget
    elif decision.method is None or choice.method == "auto" or decision.bracketing is not None:
        contender.call = _streamed(network, inputs, pair, choice, decision)
    else:
        contender.call = _plain(network, inputs, pair, choice, decision, probe)
        contender.session = partial(computing, network)
    return contender


def _streamed(network: Network, inputs: Inputs, pair: Pair, choice: Choice, decision: Decision) -> Callable[[], Tensor]:
    """A call of a plan that is not recorded, its checks included."""
    return lambda: collect(stream(network, inputs, [pair], choice, keep=True, decisions=[decision]), inputs.batch)


def _plain(
    network: Network, inputs: Inputs, pair: Pair, choice: Choice, decision: Decision, probe: Linearization
) -> Callable[[], Tensor]:
    """One method alone: no checks, and no other in its place."""
    method = decision.method
    assert method is not None

    def call() -> Tensor:
        with exact_attention(choice.exact_attention):
            (linearization,) = linearize(network, inputs, [pair], graph=choice.needs_graph, probe=False)
            linearization.samples_mix = probe.samples_mix
            outcome: Outcome = fill(linearization, method, decision.chunk)
        return outcome.matrix

    return call


def _warm_up(contender: Contender, truth: Reference) -> None:
    if contender.status != "ok":
        return
    try:
        seconds, matrix = _timed(contender)
        if seconds < defaults.BENCH_SHORT:
            seconds, matrix = _timed(contender)
    except (JaccliError, MethodGap) as error:
        contender.status = "failed"
        contender.why = error.given if isinstance(error, JaccliError) else reason(error)
        return
    contender.max_error = relative_error(matrix, truth.matrix)
    contender.times_s.append(seconds)


def _timed(contender: Contender) -> tuple[float, Tensor]:
    assert contender.call is not None
    with contender.session():
        _synchronise()
        start = time.perf_counter()
        matrix = contender.call()
        _synchronise()
        return time.perf_counter() - start, matrix


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _rounds(warm: Sequence[float], max_time: float) -> int:
    total = sum(warm)
    return int(min(max(max_time / max(total, 1e-9), 3), defaults.BENCH_ROUNDS))


def _peak_bytes(contender: Contender) -> int:
    """The most bytes that one more call holds at once, by the allocator's own account; what it keeps is in it."""
    from torch.profiler import ProfilerActivity, profile

    assert contender.call is not None
    contender.forget()
    with contender.session():
        if torch.accelerator.is_available():
            backend: Any = torch.get_device_module()
            backend.reset_peak_memory_stats()
            before = backend.memory_allocated()
            contender.call()
            if backend.max_memory_allocated() > before:
                return int(backend.max_memory_allocated() - before)
            contender.forget()  # it ran on the CPU, and keeps memory since
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
            contender.call()
    held = peak = 0
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def ratio_interval(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of two medians with a 95 % bootstrap interval (Efron and Tibshirani 1993, percentiles).

    Rounds are drawn in pairs: what slows the machine down in one round slows both.
    """
    a, b = np.asarray(times), np.asarray(base)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(a), (defaults.BOOTSTRAPS, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(a) / np.median(b)), float(low), float(high)
