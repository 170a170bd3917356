"""Which method is fastest at these samples, by the clock: the recorded program against the method decided on."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import torch

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.calibration import calibrate, load
from jaccli.graph import measured_rates, with_bracketing
from jaccli.methods import METHODS
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision, decide, with_structure
from jaccli.planning.linearize import Linearization, Pair, linearize
from jaccli.run.blocks import RunOptions
from jaccli.run.program_builder import ProgramBuilder
from jaccli.run.program_cache import ProgramCache
from jaccli.runtime.timed import timed
from jaccli.text.quantities import seconds


def tuned_decision(
    network: Network, pair: Pair, inputs: Inputs, options: RunOptions, compile: bool
) -> tuple[Linearization, Decision, ProgramCache | None]:
    """f at the samples of a plan, the decision after the race, and the programs, where those are faster.

    Cost: see ``decide`` and ``autotune``.

    Raises:
        TooLarge: J does not fit the memory.
    """
    with measured_rates():
        with options.session(network):
            (linearization,) = linearize(network, inputs, [pair], graph=options.needs_graph)
            limit, chunk = options.max_memory, options.chunk
            decision = decide(linearization, options.method, max_memory=limit, chunk=chunk, keep=inputs.batch)
        return linearization, *autotune(network, pair, options, decision, inputs, linearization, compile)


def autotune(
    network: Network,
    pair: Pair,
    options: RunOptions,
    decision: Decision,
    inputs: Inputs,
    linearization: Linearization,
    compile: bool,
) -> tuple[Decision, ProgramCache | None]:
    """The decision after the race, and the programs, where those are faster.

    Args:
        network: the model.
        pair: source and target.
        options: methods that the user asked for are not raced.
        decision: before the race.
        inputs: the samples of the plan and further arguments.
        linearization: f at these samples.
        compile: the program goes through ``torch.compile``.

    Cost: some calls of each.
    """
    if decision.method is None or not METHODS[options.method].recordable or inputs.batch > decision.block:
        return decision, None
    with options.session(network):
        gap = linearization.search_structure()
    structure = linearization.structure
    if structure is None:
        return replace(decision, others={**decision.others, "structured": str(gap)}), None
    structured = with_structure(linearization, structure, replace(decision, method="structured"))
    builder = ProgramBuilder(network, pair, options, compile)
    cache = ProgramCache(builder, structured)
    program_s = cache.record(inputs, structure.bracketings())
    if program_s is None:
        return decision, None
    bracketing = cache.decision.bracketing
    if bracketing is not None and bracketing is not structured.bracketing:  # the clock chose another
        structured = with_structure(linearization, with_bracketing(structure, bracketing), structured)
    if options.method == "auto":
        plain_s = _seconds_of_method(builder, decision, inputs, program_s)
        if plain_s < program_s:
            others = {**decision.others, "structured": f"{seconds(program_s)} measured"}
            others.pop(str(decision.method), None)
            why = f"{seconds(plain_s)} measured, the least"
            return replace(decision, why=why, others=others, predicted_s=plain_s), None
        others = dict(decision.others)
        if plain_s < float("inf"):
            others[decision.method if decision.method != "structured" else "reverse"] = f"{seconds(plain_s)} measured"
        others.pop("structured", None)
        structured = replace(structured, why=f"{seconds(program_s)} measured, the least", others=others)
    cache.decision = replace(structured, predicted_s=program_s)
    return cache.decision, cache


def calibrate_once(device: torch.device) -> None:
    """Calibrate the machine before its first plan: half a second, and kept for later processes."""
    if load(device) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ``doctor`` says that it was too busy
            calibrate(device)


def _seconds_of_method(builder: ProgramBuilder, decision: Decision, inputs: Inputs, program_s: float) -> float:
    """Seconds of a call of the method decided on; infinity where it does not come near the program's ``program_s``."""
    if decision.method == "structured" or (decision.predicted_s or 0.0) > 4 * program_s:
        return float("inf")
    best = float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(defaults.PROGRAM_TRIES):
            best = min(best, timed(partial(builder.without_program, inputs, decision))[0])
            if best > 4 * program_s:
                break
    return best
