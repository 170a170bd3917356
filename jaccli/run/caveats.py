"""What a user should know of a J that was computed: warnings and notes about one layer pair."""

from __future__ import annotations

import torch

from jaccli import defaults
from jaccli.errors import note, warn
from jaccli.linearization.differences import unchecked
from jaccli.planning.linearize import Linearization
from jaccli.planning.mixing_message import mixing
from jaccli.run.execute import Outcome
from jaccli.runtime.torch_errors import reraise_out_of_memory
from jaccli.text.quantities import dtype_name
from jaccli.text.wording import worded

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_DTYPE_OF_EPSILON = {torch.finfo(d).eps: dtype_name(d) for d in _DTYPES}


def report_outcome(linearization: Linearization, outcome: Outcome) -> None:
    """All warnings and notes about one pair's J. Cost: a norm of J ``(batch, n_out, n_in)``."""
    name = linearization.name
    report_path(linearization)
    if outcome.method == "finite-difference" and not outcome.matrix.any():
        if _target_moves(linearization):
            warn(f"{name}: differences are zero, and larger steps move the target: lower precision inside, or stairs")
        else:
            note(f"{name}: J is zero: the target does not move with the source")
    if linearization.samples_mix:
        warn(worded("{name}: {mixing}", name=name, mixing=mixing(linearization)))
    if outcome.method != "finite-difference":
        _report_rounding(linearization)
        report_unchecked(linearization, outcome.unsettled)
    for text in outcome.notes if linearization.connected else ():
        note(f"{name}: {text}")
    if outcome.error_estimate is not None:
        say = warn if outcome.error_estimate > defaults.DOUBTFUL_ERROR else note
        say(f"{name}: finite differences, estimated relative error {outcome.error_estimate:.1g}")
    # One norm is cheaper than a mask of J: the mask is made only where the norm is not finite.
    if not bool(torch.linalg.vector_norm(outcome.matrix).isfinite()):
        bad = ~outcome.matrix.isfinite()
        if bool(bad.any()):  # else the sum of squares overflowed
            first = int(bad.flatten(1).any(1).nonzero()[0])
            warn(f"{name}: J has {int(bad.sum())} non-finite values (first at sample {first})")


def report_path(linearization: Linearization) -> None:
    """Say that J is zero where no path leads from source to target, or too small for the digits of its dtype."""
    if not linearization.connected:
        say = warn if linearization.path_is_hidden else note
        say(f"{linearization.name}: J is zero: {linearization.why_zero}")
    _report_subnormal(linearization)


def _report_subnormal(linearization: Linearization) -> None:
    """Warn where the rows of the probe, which are computed anyway, lie below the normal numbers of their dtype."""
    rows = linearization.known_rows
    sizes = torch.cat([row.abs().amax(1) for row in rows]) if rows else torch.zeros(0)
    least = torch.finfo(sizes.dtype).tiny
    if low := int(((sizes > 0) & (sizes < least)).sum()):
        kind = dtype_name(sizes.dtype)
        text = (
            f"J of {low} of {len(sizes)} samples looked at is below the normal numbers of {kind}, from {least:.2g} on"
        )
        remedy = worded(": {dtype:float64}") if kind != "float64" else ""
        warn(worded("{name}: {text}, and has lost digits{remedy}", name=linearization.name, text=text, remedy=remedy))


def _target_moves(linearization: Linearization) -> bool:
    """Whether a step of a tenth moves the target. Cost: one evaluation."""
    linear = linearization.linear
    h = linear.point
    try:
        with torch.no_grad():
            value = linear.evaluate(h + 0.1 * (h.abs() + h.abs().mean()))
    except Exception as error:
        reraise_out_of_memory(error)
        return False
    return not torch.equal(value.reshape(-1), linear.value.reshape(-1))


def report_unchecked(linearization: Linearization, unsettled: int) -> None:
    """Warn of the samples whose J was compared with differences that did not settle."""
    if unsettled:
        warn(f"{linearization.name}: {unchecked('J', unsettled, linearization.linear.batch)}")


def _report_rounding(linearization: Linearization) -> None:
    """Say of how many samples J is no more than rounding, where a disagreement led to the question."""
    rounding, live, name = linearization.known_rounding, linearization.linear.recorded_pass, linearization.name
    drowned = int(rounding.drowned().sum()) if rounding is not None and rounding.steady and live is not None else 0
    if not drowned or live is None or linearization.linear.f.network.draws.nondeterminism:
        return
    own = torch.finfo(linearization.linear.value.dtype).eps
    kind = _DTYPE_OF_EPSILON.get(live.rounding, "")
    inside = "" if live.rounding <= own else ", in which the network works inside"
    remedy = worded(": {dtype:float64}") if own > torch.finfo(torch.float64).eps and not inside else ""
    text = f"{name}: J of {drowned} of {linearization.linear.batch} samples is below {kind}'s rounding{inside}"
    warn(worded("{text}{remedy}", text=text, remedy=remedy))
