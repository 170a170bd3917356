"""Running a decision: J in blocks of samples, checked against an independent product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, note, warn
from jaccli.graph import Bracketing
from jaccli.linearization.differences import unchecked
from jaccli.linearization.rounding import apart, norms
from jaccli.linearization.verify import tolerance
from jaccli.methods import METHODS, MethodGap, MethodName, MethodTask
from jaccli.methods.base import is_out_of_memory, reason
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization, is_hidden_path, probe_first_sample
from jaccli.planning.mixing_message import mixing
from jaccli.planning.sample_independence import leaks
from jaccli.text.wording import worded

Tick = Callable[[int], None]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Outcome:
    """J of some samples and how it was obtained.

    Args:
        matrix: ``(batch, n_out, n_in)``.
        method: the method that gave it, which after a gap is not the one asked for.
        error_estimate: relative Frobenius error, from methods that are not exact.
        notes: fallbacks taken.
    """

    matrix: Tensor
    method: str
    error_estimate: float | None = None
    notes: tuple[str, ...] = ()
    passes: Mapping[str, int] = field(default_factory=dict)


_NEXT: dict[MethodName, tuple[MethodName, ...]] = {
    "structured": ("reverse", "loop", "forward"),
    "forward": ("reverse", "loop"),
    "reverse": ("loop", "forward"),
    "replicate": ("reverse", "loop", "forward"),
    "functional": ("reverse", "loop", "forward"),
    "loop": ("forward",),
    "finite-difference": (),
}


def run(
    linearization: Linearization, decision: Decision, *, tick: Tick = lambda done: None, check: bool = True
) -> Outcome:
    """J of the prepared samples.

    Cost: the method's passes, and with ``check`` one product of J with a vector. A method that cannot
    do the model is replaced by the next that can, with a note; a J that disagrees with a single
    backward pass is taken again row by row, with a warning.

    Raises:
        UnsupportedError: no method can do this model.
        ResourceError: out of memory.
    """
    linear = linearization.linear
    if decision.method is None:
        return Outcome(linear.value.new_zeros(linear.shape), "zero", notes=(linearization.why_zero,))
    gaps: list[str] = []
    last: tuple[MethodName, ...] = () if decision.asked else ("finite-difference",)
    for method in (decision.method, *_NEXT[decision.method], *last):
        chunk = decision.chunk_for(linear.batch)
        chunk = chunk if method == decision.method else min(chunk, defaults.TRIAL_ROWS)
        try:
            outcome = fill(linearization, method, chunk, tick, decision.bracketing)
        except MethodGap as gap:
            gaps.append(f"{method}: {gap}")
            continue
        if gaps:
            outcome = Outcome(**{**vars(outcome), "notes": (f"{gaps[0]}; taken with {method}", *outcome.notes)})
        return _verified(linearization, outcome) if check else outcome
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
    """J by one method, no fallback; ``bracketing`` is the structured one's, found before.

    Raises:
        MethodGap: the method cannot do this model.
        ResourceError: out of memory.
    """
    linear = linearization.linear
    before = linear.passes.copy()
    try:
        out = linear.value.new_empty(linear.shape)
        task = MethodTask(
            linear, out, chunk, linearization.samples_mix, tick, engine=linearization.engine, bracketing=bracketing
        )
        if METHODS[method].needs_graph and linearization.probe.backward_gap:
            raise MethodGap(linearization.probe.backward_gap)
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


def _verified(linearization: Linearization, outcome: Outcome) -> Outcome:
    """Hold uᵀJ against plain backward passes; where they differ, take J row by row and say so.

    Without a backward pass Jz is held against differences of f; where it differs, J is taken by those.
    """
    if outcome.method == "finite-difference":
        return outcome
    error = disagreement(linearization, outcome.matrix)
    if error is None:
        return outcome
    if linearization.probe.backward_gap is not None:
        return _confirmed(linearization, outcome, error)
    again = outcome if outcome.method == "loop" else fill(linearization, "loop", 1)
    second = disagreement(linearization, again.matrix)
    if second is not None and not linearization.samples_mix and leaks(linearization.linear):
        # Samples mix in a way that every other sample does not show.
        linearization.samples_mix = True
        probe_first_sample(linearization)
        again = fill(linearization, "loop", 1)
        second = disagreement(linearization, again.matrix)
        if second is None:
            return again
    if outcome.method != "loop":
        say = note if second is None else warn
        say(
            f"{outcome.method} gave a Jacobian that is {error:.2g} off an independent backward pass; "
            "it was taken again row by row (loop)"
        )
    found = linearization.rounding()
    if linearization.linear.f.network.draws.unsteady:  # told already
        return again
    if found is not None and not found.steady:
        warn("two passes at one point disagree: the model is not deterministic, do not rely on J")
    elif second is not None:
        warn(
            f"a backward pass disagrees by {second:.2g} with the sum of passes for each output: the backward pass "
            "is not deterministic, or not linear (a clipped or rounded gradient), do not rely on J"
        )
    return again


def _confirmed(linearization: Linearization, outcome: Outcome, error: float) -> Outcome:
    """Without a backward pass: J by another method, where differences confirm that; else a warning."""
    gap = f"{outcome.method} gave a Jacobian that is {error:.2g} off differences"
    others: tuple[tuple[MethodName, Callable[[str], None]], ...] = (("forward", note), ("finite-difference", warn))
    for method, say in others:
        try:
            again = fill(linearization, method, defaults.TRIAL_ROWS) if method != outcome.method else None
        except MethodGap:
            continue
        if (
            again is not None
            and disagreement(linearization, again.matrix) is None
            and not linearization.probe.unsettled
        ):
            say(f"{linearization.name}: {gap}, and there is no backward pass; taken with {method}")
            return replace(again, notes=(*outcome.notes, *again.notes))
    linearization.probe.unsettled = 0
    remedy = "" if outcome.matrix.dtype == torch.float64 else worded(", or try {dtype:float64}")
    text = "{name}: {gap}, there is no backward pass, and no other method is confirmed: do not rely on J{remedy}"
    warn(worded(text, name=linearization.name, gap=gap, remedy=remedy))
    return outcome


def disagreement(linearization: Linearization, *factors: Tensor) -> float | None:
    """The relative difference of uᵀJ from rows by plain backward passes, where it is more than rounding; else None.

    J is the product of the factors. Rules are wrong at some points only, so all samples are looked at. Cost: one
    more backward pass, a product with a vector and a norm of each factor, in their own dtype; where they differ by
    more than half of the digits, what rounding does to the row is found out, once. Without a backward pass: Jz
    against ``linearization.differences``, of the first sample where they mix.
    """
    if not factors[0].numel():
        return None
    if linearization.probe.backward_gap is not None:
        return _off_differences(linearization, factors)
    found = [_off(linearization, *evidence, factors) for evidence in linearization.evidence()]
    return max((error for error in found if error is not None), default=None)


def _off(
    linearization: Linearization, chosen: slice, u: Tensor, row: Tensor, factors: Sequence[Tensor]
) -> float | None:
    u, row = u[chosen], row[chosen]
    product, size = u, norms(u)
    lost = row.isfinite().all(1).cpu()
    finite = torch.ones_like(lost)
    for factor in factors:
        product = torch.bmm(product.unsqueeze(1), factor[chosen]).squeeze(1)
        size = size * _sizes(factor[chosen])
        finite &= size.isfinite() | factor[chosen].isfinite().all(2).all(1).cpu()
    difference, size = apart(product, row), torch.fmax(size, norms(row))
    error = difference / size.clamp(min=torch.finfo(size.dtype).tiny)
    error = torch.where(difference <= torch.finfo(row.dtype).tiny, 0.0, error)  # digits that subnormal numbers lack
    error = torch.where(lost & ~finite, torch.inf, error)
    if not bool((error > tolerance(torch.finfo(row.dtype).eps)).any()):
        return None
    found = linearization.rounding()
    if found is not None and found.steady:
        error = torch.where((difference <= found.row[chosen]) & error.isfinite(), 0.0, error)
    return float(error.max()) if bool((error > tolerance(linearization.linear.rounding)).any()) else None


def _off_differences(linearization: Linearization, factors: Sequence[Tensor]) -> float | None:
    if linearization.linear.f.network.draws.unsteady:  # told already
        return None
    differences = linearization.differences()
    image = differences.z.unsqueeze(-1)
    for factor in reversed(factors):
        image = torch.bmm(factor, image.to(factor))
    usual = _sizes(factors[0]) * norms(differences.z) / factors[0].shape[2] ** 0.5 if len(factors) == 1 else None
    verdict = differences.judge(image.squeeze(-1), usual)
    linearization.probe.unsettled = verdict.unsettled
    return verdict.off


def _sizes(factor: Tensor) -> Tensor:
    """‖·‖ of each sample's matrix, float64 ``(batch,)``; in its own dtype where squares neither overflow nor vanish."""
    found = torch.linalg.vector_norm(factor, dim=(1, 2)).double().cpu()
    least, most = torch.finfo(factor.dtype).tiny ** 0.25, torch.finfo(factor.dtype).max ** 0.25
    return found if bool(((found > least) & (found < most)).all()) else norms(factor)


def report_path(linearization: Linearization, name: str) -> None:
    """Say that J is zero where no path leads from source to target, or too small for the digits of its dtype."""
    if not linearization.connected:
        say = warn if is_hidden_path(linearization) else note
        say(f"{name}: J is zero: {linearization.why_zero}")
    _report_subnormal(linearization, name)


def _report_subnormal(linearization: Linearization, name: str) -> None:
    """Of how many samples rows that were taken anyway lie below the normal numbers of their dtype."""
    probe = linearization.probe
    rows = [] if probe.row is None else [probe.row[probe.samples]]
    if probe.rest is not None:
        rows.append(probe.rest[1][1::2])
    sizes = torch.cat([row.abs().amax(1) for row in rows]) if rows else torch.zeros(0)
    least = torch.finfo(sizes.dtype).tiny
    if low := int(((sizes > 0) & (sizes < least)).sum()):
        kind = str(sizes.dtype).removeprefix("torch.")
        text = (
            f"J of {low} of {len(sizes)} samples looked at is below the normal numbers of {kind}, from {least:.2g} on"
        )
        remedy = worded(": {dtype:float64}") if kind != "float64" else ""
        warn(worded("{name}: {text}, and has lost digits{remedy}", name=name, text=text, remedy=remedy))


def _moves(linearization: Linearization) -> bool:
    """Whether a step of a tenth moves the target. Cost: one evaluation."""
    linear = linearization.linear
    h = linear.point
    try:
        with torch.no_grad():
            found = linear.evaluate(h + 0.1 * (h.abs() + h.abs().mean()))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    return not torch.equal(found.reshape(-1), linear.value.reshape(-1))


def report(linearization: Linearization, outcome: Outcome, name: str) -> None:
    """Warnings and notes about one pair's J."""
    report_path(linearization, name)
    if outcome.method == "finite-difference" and not outcome.matrix.any():
        if _moves(linearization):
            warn(f"{name}: differences are zero, and larger steps move the target: lower precision inside, or stairs")
        else:
            note(f"{name}: J is zero: the target does not move with the source")
    if linearization.samples_mix:
        told = mixing(linearization)
        warn(worded("{name}: {told}", name=name, told=told))
    if outcome.method != "finite-difference":
        _report_rounding(linearization, name)
        report_unchecked(linearization, name)
    for text in outcome.notes if linearization.connected else ():
        note(f"{name}: {text}")
    if outcome.error_estimate is not None:
        say = warn if outcome.error_estimate > defaults.DOUBTFUL_ERROR else note
        say(f"{name}: finite differences, estimated relative error {outcome.error_estimate:.1g}")
    if not bool(torch.linalg.vector_norm(outcome.matrix).isfinite()):
        bad = int((~outcome.matrix.isfinite()).sum())
        if not bad:  # the sum of squares overflowed
            return
        first = int((~outcome.matrix.isfinite()).flatten(1).any(1).nonzero()[0])
        warn(f"{name}: J has {bad} non-finite values (first at sample {first})")


def report_unchecked(linearization: Linearization, name: str) -> None:
    """Say of how many samples J was held against differences that did not settle."""
    if linearization.probe.unsettled:
        warn(f"{name}: {unchecked('J', linearization.probe.unsettled, linearization.linear.batch)}")


def _report_rounding(linearization: Linearization, name: str) -> None:
    """Say of how many samples J is no more than rounding, where a disagreement led to the question."""
    found, live = linearization.probe.rounding, linearization.linear.live
    drowned = int(found.drowned().sum()) if found is not None and found.steady and live is not None else 0
    if not drowned or live is None or linearization.linear.f.network.draws.unsteady:
        return
    own = torch.finfo(linearization.linear.value.dtype).eps
    kind = _FORMATS.get(live.rounding, "")
    inside = "" if live.rounding <= own else ", in which the network works inside"
    remedy = worded(": {dtype:float64}") if own > torch.finfo(torch.float64).eps and not inside else ""
    text = f"{name}: J of {drowned} of {linearization.linear.batch} samples is below {kind}'s rounding{inside}"
    warn(worded("{text}{remedy}", text=text, remedy=remedy))


_FORMATS = {torch.finfo(d).eps: str(d).removeprefix("torch.") for d in _DTYPES}
