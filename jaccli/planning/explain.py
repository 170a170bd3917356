"""A decision in words: ``str(plan)`` and ``--explain``."""

from __future__ import annotations

from jaccli.methods import METHODS, Method
from jaccli.names import MethodName
from jaccli.planning.decide import Decision
from jaccli.text.quantities import human, seconds


def explain(
    name: str,
    shape: tuple[int, int, int],
    decision: Decision,
    compile_s: float | None = None,
    kept_bytes: int = 0,
    groups: int = 1,
) -> str:
    """A plan that a person can read, in some 15 lines.

    Args:
        name: of the layer pair.
        shape: ``(batch, n_out, n_in)``.
        decision: the plan.
        compile_s: seconds that compiling took, where it was done.
        kept_bytes: for intermediate results that stay between calls.
        groups: number of groups of samples that a call of the plan computes one after another.
    """
    batch, n_out, n_in = shape
    samples = f"each of {batch} samples" if batch > 1 else "one sample"
    at_once = f"at most {decision.block} samples at a time" if decision.block < batch else "all samples at a time"
    lines = [
        f"plan {name}: J is {n_out} x {n_in} for {samples} ({human(batch * decision.sample_bytes)})",
        f"  method  {decision.method or 'none'}: {decision.why}",
        f"  passes  {_passes(n_out, n_in, decision)}",
    ]
    lines += [f"  {step}" for step in decision.steps]
    if groups > 1:
        at_once = f"in {groups} groups of {batch // groups}"
    stays = f"; {human(kept_bytes)} kept between calls" if kept_bytes else ""
    lines.append(f"  memory  {human(decision.peak_bytes)} predicted, {at_once}{stays}")
    if decision.predicted_s is not None:
        lines.append(f"  time    {_time(decision)}")
    if compile_s is not None:
        lines.append(f"  compile {seconds(compile_s)}, once, apart from the time of a call")
    return "\n".join(lines + [f"  not {other}: {why}" for other, why in reasons(n_out, n_in, decision).items()])


def _passes(n_out: int, n_in: int, decision: Decision) -> str:
    method = decision.method
    if method is None:
        return "none"
    if method == "structured":
        if "structured" in decision.others:
            return f"{n_out} backward passes in its place: the engine cannot take this network"
        return f"1 forward pass; {decision.passes} instead of {n_out} backward passes"
    passes = METHODS[method].passes(n_out, n_in)
    return f"{passes.count} {passes.kind} passes, {min(decision.chunk, passes.count)} at a time"


def _time(decision: Decision) -> str:
    assert decision.predicted_s is not None
    if decision.bracketing is None:
        return f"{seconds(decision.predicted_s)} predicted"
    steps = f"{seconds(decision.bracketing.seconds)} predicted for the steps"
    if decision.predicted_s == decision.bracketing.seconds:
        return f"{steps}, and a forward pass"
    return f"{seconds(decision.predicted_s)} a call, as measured when it was planned; {steps}"


def reasons(n_out: int, n_in: int, decision: Decision) -> dict[MethodName, str]:
    """Why each method that is not used is not, in the order of ``METHODS``."""

    def reason(name: MethodName, method: Method) -> str:
        if name in decision.others:
            return decision.others[name]
        if decision.method is None:
            return "nothing to compute"
        if name == "structured" and decision.asked:
            return f"{decision.method} was asked for"
        return method.drawback.format(n_out=n_out, n_in=n_in)

    used = {"auto", decision.method} - decision.others.keys()
    return {name: reason(name, method) for name, method in METHODS.items() if name not in used}
