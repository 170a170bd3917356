"""All that is measured on one network, in a process of its own: a peer that breaks something breaks only that."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import first_call
import jax_peers
import peers
import torch
from costs import Machine, activation_bytes, floor, measure_machine, memory
from measure import COMPILE_S, Contender, drop_hopeless, enter, race
from networks import CASES, Case
from oracle import oracle
from peers import COMPILED, EAGER, OURS_COMPILED, Problem, Setting, Variant
from report import Result
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

FIRST_WARM_S = 3.0  # no first call of a peer that needs longer than this when warm


@dataclass(frozen=True)
class Options:
    """What to measure, and how much of it.

    Args:
        rounds: of the race.
        peers: names of the contenders besides jaccli.
        first_repeats: fresh processes for each first call; none at 0.
        threads: of torch; None leaves it alone.
    """

    rounds: int
    peers: tuple[str, ...]
    first_repeats: int
    threads: int | None = None


def measure_apart(name: str, options: Options) -> tuple[Result, Machine] | None:
    """``measure`` in a fresh process; None where that failed (its traceback is on standard error)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, options, sender))
    process.start()
    sender.close()
    try:
        found: tuple[Result, Machine] = receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
    return found


def _child(name: str, options: Options, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    limit_threads(options.threads)
    try:
        machine = measure_machine()
        result = measure(CASES[name], options, machine)
    except Exception:
        traceback.print_exc()
        return
    stripped = [replace(c, run=None, samples=None) for c in result.contenders]
    sender.send((replace(result, contenders=stripped), machine))


def limit_threads(count: int | None) -> None:
    """For torch, for JAX (which takes what cores it sees) and for processes started from here."""
    if count is None:
        return
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def measure(case: Case, options: Options, machine: Machine) -> Result:
    """The race, then memory, then first calls.

    Raises:
        RuntimeError: a peer left torch in a state in which nothing it says can be believed.
    """
    say(case, "float64 reference")
    x = case.samples(0)
    truth = oracle(case, x)
    contenders = [enter(Contender("jaccli", "jaccli", samples=x), ours(case), truth)]
    contenders += _eager(case, options, x, truth)
    contenders += _compiled(case, options, x, truth, contenders)
    contenders += _ours_compiled(case, options, x, truth)
    contenders += _jax(case, options, x, truth)
    drop_hopeless(contenders)
    say(case, f"{options.rounds} rounds of {sum(c.status == 'races' for c in contenders)}")
    race(contenders, options.rounds)
    check_sane("the race")
    result = Result(case.name, tuple(truth.shape), contenders, floor(case, machine, 4 * truth.numel()))
    _memory(result, case)
    if options.first_repeats:
        say(case, "first calls")
        # A peer too slow to race may still be the quickest to start.
        entrants = {c.name: c.label for c in contenders if c.kind in ("jaccli", "eager") and c.warm_s < FIRST_WARM_S}
        result.first_s = first_call.medians(case.name, entrants, options.first_repeats)
    return result


def ours(case: Case, compile: bool = False) -> Iterator[Variant]:
    """A plan made at other samples than it is called with."""
    import jaccli

    plan = jaccli.plan(case.model(), case.samples(1), source=case.source, target=case.target, compile=compile)
    if compile and plan.compile_s is None:
        raise RuntimeError("it runs uncompiled")
    yield Variant("", plan, prepare_s=plan.compile_s)


def _ours_compiled(case: Case, options: Options, x: Tensor, truth: Tensor) -> list[Contender]:
    if OURS_COMPILED not in options.peers:
        return []
    say(case, OURS_COMPILED)
    return [enter(Contender(OURS_COMPILED, "jaccli compiled", samples=x), ours(case, compile=True), truth)]


def _eager(case: Case, options: Options, x: Tensor, truth: Tensor) -> list[Contender]:
    problem = Problem(case)
    found: list[Contender] = []
    best_s = float("inf")
    for name in filter(options.peers.__contains__, EAGER):
        say(case, name)
        found.append(enter(Contender(name, "eager", samples=x), peers.eager(problem, name), truth, best_s))
        best_s = min(best_s, found[-1].warm_s)
        check_sane(name)
    return found


def _compiled(case: Case, options: Options, x: Tensor, truth: Tensor, others: Sequence[Contender]) -> list[Contender]:
    problem = Problem(case)
    labels = {c.name: c.label for c in others}
    found: list[Contender] = []
    for name, plain in COMPILED.items():
        if name in options.peers:
            say(case, name)
            best = Setting.parse(labels.get(plain, ""))
            variants = _tried_apart(case.name, name, peers.compiled(problem, name, best))
            found.append(enter(Contender(name, "compiled", samples=x), variants, truth))
            check_sane(name)
    return found


def _tried_apart(network: str, name: str, variants: Iterator[Variant]) -> Iterator[Variant]:
    """Each compiled variant in a process of its own first: where the compiler gives up inside a transform,
    it leaves torch broken. What it compiled is found again in its cache."""
    for variant in variants:
        try:
            seconds = first_call.one(network, name, variant.label, limit_s=COMPILE_S)
        except RuntimeError as trouble:
            yield replace(variant, run=_raising(trouble))
        else:
            yield replace(variant, prepare_s=seconds)


def _raising(trouble: Exception) -> Callable[[Tensor], Tensor]:
    def run(_x: Tensor) -> Tensor:
        raise trouble

    return run


def _jax(case: Case, options: Options, x: Tensor, truth: Tensor) -> list[Contender]:
    found = []
    for name in filter(options.peers.__contains__, jax_peers.available()):
        say(case, name)
        contender = Contender(name, "jax", samples=jax_peers.array(x))
        found.append(enter(contender, jax_peers.variants(case, name), truth))
    return found


def _memory(result: Result, case: Case) -> None:
    import jaccli

    result.activation_bytes = activation_bytes(case)
    if result.ours.status != "races":
        return
    result.plan = str(result.ours.run)

    def make() -> Callable[[], Tensor]:
        (variant,) = ours(case)
        return lambda: variant.run(result.ours.samples)

    peak, result.held_bytes = memory(make)
    assert isinstance(result.ours.run, jaccli.Plan)
    result.peak_bytes = peak + result.ours.run.kept_bytes


def check_sane(after: str) -> None:
    """Whether torch still differentiates as it should.

    Raises:
        RuntimeError: it does not.
    """
    points = torch.tensor([[0.5], [1.0]])
    try:
        right = all(torch.allclose(vmap(j(torch.sin))(points)[..., 0], points.cos()) for j in (jacfwd, jacrev))
    except RuntimeError:
        right = False
    if not right:
        raise RuntimeError(f"torch is broken after {after}: leave it out with --peers")


def say(case: Case, what: str) -> None:
    """Progress, on standard error."""
    print(f"{case.name}: {what}", file=sys.stderr, flush=True)
