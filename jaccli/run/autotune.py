"""A plan tried out: which way is fastest at these samples, by the clock."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import torch

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.calibration import calibrate, load
from jaccli.graph import with_bracketing
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision, look, seconds, with_structure
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention
from jaccli.run.blocks import Choice, collect, stream
from jaccli.run.program_cache import ProgramCache


def tuned(
    network: Network,
    pair: Pair,
    choice: Choice,
    decision: Decision,
    inputs: Inputs,
    linearization: Linearization,
    compile: bool = False,
) -> tuple[Decision, ProgramCache | None]:
    """The decision after a race between the recorded program and the method decided on.

    Cost: some calls of each. Methods that the user asked for are not raced.
    """
    if decision.method is None or choice.method not in ("auto", "structured"):
        return decision, None
    if inputs.batch > decision.block:
        return decision, None
    with computing(network), exact_attention(choice.exact_attention):
        gap = look(linearization)
    if gap is not None:
        return replace(decision, others={**decision.others, "structured": gap}), None
    candidate = with_structure(linearization, replace(decision, method="structured"))
    replay = ProgramCache(network, pair, choice, candidate, compile=compile)
    recorded = replay.linearize(inputs, linearization)
    if recorded is None:
        return decision, None
    if (
        replay.decision.bracketing is not candidate.bracketing and linearization.engine is not None
    ):  # the clock chose another
        assert replay.decision.bracketing is not None
        linearization.engine = with_bracketing(linearization.engine, replay.decision.bracketing)
        candidate = with_structure(linearization, candidate)
    if choice.method == "auto":
        plain = _plain_seconds(network, pair, choice, decision, inputs, recorded)
        if plain < recorded:
            others = {**decision.others, "structured": f"{seconds(recorded)} measured"}
            others.pop(str(decision.method), None)
            why = f"{seconds(plain)} measured, the least"
            return replace(decision, why=why, others=others, predicted_s=plain), None
        name = decision.method if decision.method != "structured" else "reverse"
        others = {**decision.others, name: f"{seconds(plain)} measured"} if plain < float("inf") else decision.others
        others.pop("structured", None)
        candidate = replace(candidate, why=f"{seconds(recorded)} measured, the least", others=others)
    replay.decision = replace(candidate, predicted_s=recorded)
    return replay.decision, replay


def measured_once(device: torch.device) -> None:
    """Calibrate the machine before its first plan: half a second, and kept for later processes."""
    if load(device) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was too busy is doctor's to say
            calibrate(device)


def _plain_seconds(
    network: Network, pair: Pair, choice: Choice, decision: Decision, inputs: Inputs, recorded: float
) -> float:
    """Seconds of a call of the plain method, where it may come near the recorded program's."""
    if decision.method == "structured" or (decision.predicted_s or 0.0) > 4 * recorded:
        return float("inf")
    best = float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(defaults.REPLAY_TRIES):
            start = time.perf_counter()
            collect(stream(network, inputs, [pair], choice, keep=True, decisions=[decision]), inputs.batch)
            best = min(best, time.perf_counter() - start)
            if best > 4 * recorded:
                break
    return best
