"""Methods side by side: in one process, at the same samples, in rounds that take turns, compared with a reference.

network, pair, inputs ─► reference J in float64
                      └► a Contender for each method: plan, warm-up and error ─► rounds ─► peak memory ─► Race
"""

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
from jaccli.methods import MethodGap
from jaccli.names import MethodName
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision, predicted_seconds
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.planning.linearize import Pair, computing, exact_attention, linearize
from jaccli.run.autotune import tuned_decision
from jaccli.run.blocks import RunOptions, whole_jacobian
from jaccli.run.execute import fill
from jaccli.run.reference import Reference, reference, relative_error
from jaccli.runtime.timed import timed
from jaccli.runtime.torch_errors import reason

Say = Callable[[str], None]


@dataclass
class Contender:
    """One method in the race.

    Args:
        method: its name.
        status: ``ok``, or ``failed`` with ``why``.
        takes: the method that is used: of ``auto``, the one chosen.
        times_s: seconds of each round, forward pass included.
        peak_bytes: most memory allocated at once during a call, J included.
        max_error: largest relative Frobenius error of a sample against the reference.
        predicted_s: what the plan said.
        predicted_bytes: what the plan said of the peak.
        plan_s: seconds that planning took, once; ``compile_s``: that compiling took, where it was done.
        session: entered around the calls, and not timed.
        call: computes J ``(batch, n_out, n_in)``; ``forget`` lets go of memory that it keeps for the next call.
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
    """All contenders, and what they were compared with; ``shape`` is that of J, ``(batch, n_out, n_in)``."""

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
    are done: at least three, at most ``BENCH_ROUNDS``, about ``max_time`` seconds in all. A round times one
    whole J from samples in memory: forward pass and products; for ``auto`` and ``structured`` a call of a plan, as
    ``jaccli.plan`` makes it, its checks included.

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
        say: called with what is going on.
    """
    options = RunOptions("auto", max_memory, chunk)
    with computing(network), exact_attention(True):
        refuse_too_large(network, inputs, [pair], "auto", max_memory, keep=inputs.batch)
        (linearization,) = linearize(network, inputs, [pair])
        say("reference in float64")
        mix, shape = linearization.samples_mix, linearization.linear.shape
        truth = reference(network, inputs, pair, mix)
    contenders = []
    for method in methods:
        say(f"plan for {method}")
        contenders.append(_contender(network, inputs, pair, replace(options, method=method), mix, compile))
    for contender in contenders:
        say(f"warm-up {contender.method}")
        _warm_up(contender, truth)
    running = [c for c in contenders if c.status == "ok"]
    warm = [c.times_s.pop() for c in running]
    count = rounds or _rounds(warm, max_time)
    for turn in range(count):
        say(f"round {turn + 1} of {count}")
        # A new random order in each round: in a fixed one each would always find its predecessor's caches.
        for contender in random.Random(turn).sample(running, len(running)):
            contender.times_s.append(_timed(contender)[0])
    for contender in running:
        say(f"memory of {contender.method}")
        contender.peak_bytes = _peak_bytes(contender)
    return Race(contenders, truth, count, shape)


def _contender(
    network: Network, inputs: Inputs, pair: Pair, options: RunOptions, samples_mix: bool, compile: bool
) -> Contender:
    """A method with its plan and its call; one that cannot be planned has failed."""
    contender = Contender(options.method)
    start = time.perf_counter()
    try:
        linearization, decision, cache = tuned_decision(network, pair, inputs, options, compile)
        contender.compile_s = cache.compile_s if cache is not None and compile else None
        contender.plan_s = time.perf_counter() - start - (contender.compile_s or 0.0)
        with options.session(network):
            contender.predicted_s = predicted_seconds(linearization, decision)
    except JaccliError as error:
        contender.status, contender.why = "failed", error.given
        return contender
    contender.takes, contender.predicted_bytes = decision.method or "zero", decision.peak_bytes
    if cache is not None:
        contender.call, contender.forget = partial(cache, inputs), cache.forget
    elif decision.method is None or options.method == "auto" or decision.bracketing is not None:
        contender.call = partial(whole_jacobian, network, inputs, pair, options, decision)
    else:
        contender.call = _method_call(network, inputs, pair, options, decision, samples_mix)
        contender.session = partial(options.session, network)
    return contender


def _method_call(
    network: Network, inputs: Inputs, pair: Pair, options: RunOptions, decision: Decision, samples_mix: bool
) -> Callable[[], Tensor]:
    """J ``(batch, n_out, n_in)`` by one method alone: no checks, and no other method in its place."""
    method = decision.method
    assert method is not None

    def call() -> Tensor:
        (linearization,) = linearize(network, inputs, [pair], graph=options.needs_graph, probe=False)
        linearization = replace(linearization, samples_mix=samples_mix)
        return fill(linearization, method, decision.chunk).matrix

    return call


def _warm_up(contender: Contender, truth: Reference) -> None:
    """The first calls: the error of J, and the seconds of a call, as the only entry of ``times_s``."""
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
    """Seconds of a call, and its J ``(batch, n_out, n_in)``."""
    assert contender.call is not None
    with contender.session():
        return timed(contender.call)


def _rounds(warm: Sequence[float], max_time: float) -> int:
    """How many rounds fit the time, by the seconds of each contender's warm-up."""
    return int(min(max(max_time / max(sum(warm), 1e-9), 3), defaults.BENCH_ROUNDS))


def _peak_bytes(contender: Contender) -> int:
    """The most bytes that one more call holds at once, as the allocator counts them; what it keeps is included."""
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
            contender.forget()  # it ran on the CPU
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
