"""Carry out a decision: J of a block of samples by its method, or by another that can, compared with other products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, note, warn
from jaccli.graph import Bracketing
from jaccli.methods import METHODS, MethodGap, MethodName, MethodTask
from jaccli.methods.base import Tick
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization
from jaccli.planning.linearize.sample_independence import samples_mix_by_gradients
from jaccli.run.agreement import compared, disagreement
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class Outcome:
    """J of some samples, and how it was obtained.

    Args:
        matrix: J.
        method: the method that computed it, which after a gap is not the decision's.
        error_estimate: relative Frobenius error, from methods that are not exact.
        notes: why another method was taken, and what methods note themselves.
        passes: how many passes of each kind the method made.
        unsettled: the number of samples whose J could not be checked.
    """

    matrix: Shaped[Tensor, "batch n_out n_in"]
    method: str
    error_estimate: float | None = None
    notes: tuple[str, ...] = ()
    passes: Mapping[str, int] = field(default_factory=dict)
    unsettled: int = 0


def run(
    linearization: Linearization, decision: Decision, *, tick: Tick = lambda done: None
) -> tuple[Outcome, Linearization]:
    """J of linearized samples, and the linearization, corrected where a check showed that samples mix.

    A method that cannot be used for the model is replaced by the first of its fallbacks that can, with a note. A J that
    disagrees with plain backward passes is computed again row by row, with a warning.

    Cost: the method's passes, and a backward pass and a product of J with a vector, by which J is checked.

    Raises:
        UnsupportedError: no method can do this model.
        ResourceError: out of memory.
    """
    linear = linearization.linear
    if decision.method is None:
        return Outcome(linear.value.new_zeros(linear.shape), "zero", notes=(linearization.why_zero,)), linearization
    gaps: list[str] = []
    last = () if decision.asked else METHODS["auto"].fallbacks
    for method in (decision.method, *METHODS[decision.method].fallbacks, *last):
        chunk = decision.chunk_for(linear.batch)
        # The decision sized the chunk for its own method; a row of another one may need more memory.
        chunk = chunk if method == decision.method else min(chunk, defaults.TRIAL_ROWS)
        try:
            outcome = fill(linearization, method, chunk, tick, decision.bracketing)
        except MethodGap as gap:
            gaps.append(f"{method}: {gap}")
            continue
        if gaps:
            outcome = replace(outcome, notes=(f"{gaps[0]}; taken with {method}", *outcome.notes))
        return _verified(linearization, outcome)
    raise UnsupportedError(
        f"no Jacobian by {decision.method}: {gaps[0].split(': ', 1)[1]}",
        "expected a model that this method can differentiate",
        ""
        if decision.method == "finite-difference"
        else worded("try {method:finite-difference}: it needs no gradients"),
    )


def fill(
    linearization: Linearization,
    method: MethodName,
    chunk: int,
    tick: Tick = lambda done: None,
    bracketing: Bracketing | None = None,
) -> Outcome:
    """J by one method and no other; ``bracketing`` is for the structured method, where it is known.

    Raises:
        MethodGap: the method cannot do this model.
        ResourceError: out of memory.
    """
    linear = linearization.linear
    before = linear.passes.copy()
    try:
        out = linear.value.new_empty(linear.shape)
        mix, structure = linearization.samples_mix, linearization.structure
        task = MethodTask(linear, out, chunk, mix, tick, structure=structure, bracketing=bracketing)
        if gap := METHODS[method].why_not(linearization):
            raise MethodGap(gap)
        METHODS[method].fill(task)
    except (JaccliError, MethodGap):
        raise
    except Exception as error:
        if not is_out_of_memory(error):  # an operator's own rule fails: another method may have J
            raise MethodGap(f"{type(error).__name__}: {reason(error)}") from error
        raise ResourceError(
            f"out of memory: J has shape {linear.shape}",
            "expected passes that fit",
            worded("set {max_memory}, a smaller {chunk}, or take fewer samples"),
        ) from None
    return Outcome(task.out, method, task.error_estimate, tuple(task.notes), linear.passes - before)


def _verified(linearization: Linearization, outcome: Outcome) -> tuple[Outcome, Linearization]:
    """Compare uᵀJ with plain backward passes; where they differ, compute J row by row and say so.

    Without a backward pass Jz is compared with differences of f; where it differs, J is computed by those.
    """
    if outcome.method == "finite-difference":
        return outcome, linearization
    error, unsettled = compared(linearization, outcome.matrix)
    if error is None:
        return replace(outcome, unsettled=unsettled), linearization
    if linearization.probe.backward_gap is not None:
        return _confirmed(linearization, outcome, error), linearization
    by_rows = outcome if outcome.method == "loop" else fill(linearization, "loop", 1)
    remaining = disagreement(linearization, by_rows.matrix)
    # Even rows one by one disagree: then the comparison may rest on a wrong assumption, that samples do not mix.
    if remaining is not None and not linearization.samples_mix and samples_mix_by_gradients(linearization.linear):
        # Samples mix in a way that every other sample does not show.
        linearization = linearization.with_mixing_samples()
        by_rows = fill(linearization, "loop", 1)
        remaining = disagreement(linearization, by_rows.matrix)
        if remaining is None:
            return by_rows, linearization
    if outcome.method != "loop":
        say = note if remaining is None else warn
        say(
            f"{outcome.method} gave a Jacobian that is {error:.2g} off an independent backward pass; "
            "it was taken again row by row (loop)"
        )
    _warn_of_backward_pass(linearization, remaining)
    return by_rows, linearization


def _warn_of_backward_pass(linearization: Linearization, error: float | None) -> None:
    """Say why rows one by one may not be J: two passes differ, or their sum differs from one pass by ``error``."""
    rounding = linearization.rounding
    if linearization.linear.f.network.draws.nondeterminism:  # the user was warned of that
        return
    if rounding is not None and not rounding.steady:
        warn("two passes at one point disagree: the model is not deterministic, do not rely on J")
    elif error is not None:
        warn(
            f"a backward pass disagrees by {error:.2g} with the sum of passes for each output: the backward pass "
            "is not deterministic, or not linear (a clipped or rounded gradient), do not rely on J"
        )


def _confirmed(linearization: Linearization, outcome: Outcome, error: float) -> Outcome:
    """Without a backward pass: J by another method, where differences confirm that; else a warning."""
    gap = f"{outcome.method} gave a Jacobian that is {error:.2g} off differences"
    others: tuple[tuple[MethodName, Callable[[str], None]], ...] = (("forward", note), ("finite-difference", warn))
    for method, say in others:
        try:
            replacement = fill(linearization, method, defaults.TRIAL_ROWS) if method != outcome.method else None
        except MethodGap:
            continue
        if replacement is not None and compared(linearization, replacement.matrix) == (None, 0):
            say(f"{linearization.name}: {gap}, and there is no backward pass; taken with {method}")
            return replace(replacement, notes=(*outcome.notes, *replacement.notes))
    remedy = "" if outcome.matrix.dtype == torch.float64 else worded(", or try {dtype:float64}")
    text = "{name}: {gap}, there is no backward pass, and no other method is confirmed: do not rely on J{remedy}"
    warn(worded(text, name=linearization.name, gap=gap, remedy=remedy))
    return outcome
