"""Plans in words."""

from __future__ import annotations

from jaccli.methods import METHODS
from jaccli.names import METHOD_NAMES
from jaccli.planning.decide import Decision, human, seconds


def explain(
    name: str,
    shape: tuple[int, int, int],
    decision: Decision,
    compile_s: float | None = None,
    kept: int = 0,
    groups: int = 1,
) -> str:
    """A plan that a person can read, in some 15 lines.

    Args:
        name: of the layer pair.
        shape: ``(batch, n_out, n_in)``.
        decision: the plan.
        compile_s: seconds that compiling took, where it was done.
        kept: bytes for intermediate results that stay between calls.
        groups: of samples that a call of the plan takes one after another.
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
    stays = f"; {human(kept)} kept between calls" if kept else ""
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
    by_row = METHODS[method].by == "row"
    count, unit = (n_out, "backward") if by_row else (n_in, "forward")
    if method == "finite-difference":
        count, unit = 2 * n_in, "plain forward"
    return f"{count} {unit} passes, {min(decision.chunk, count)} at a time"


def _time(decision: Decision) -> str:
    assert decision.predicted_s is not None
    if decision.bracketing is None:
        return f"{seconds(decision.predicted_s)} predicted"
    steps = f"{seconds(decision.bracketing.seconds)} predicted for the steps"
    if decision.predicted_s == decision.bracketing.seconds:
        return f"{steps}, and a forward pass"
    return f"{seconds(decision.predicted_s)} a call, as measured when it was planned; {steps}"


def reasons(n_out: int, n_in: int, decision: Decision) -> dict[str, str]:
    """Why each method that was not taken was not."""
    asked = decision.why == "asked for"
    usual = {
        "structured": "a capture and a search, more than so few passes take",
        "reverse": f"{n_out} backward passes through the whole network",
        "forward": f"{n_in} forward passes through the whole network",
        "loop": f"{n_out} backward passes, one by one",
        "replicate": f"{n_out} backward passes, and as many copies of the input",
        "functional": f"{n_out} backward passes, one by one",
        "finite-difference": "not exact",
    }
    if decision.method is None:
        usual = dict.fromkeys(usual, "nothing to compute")
    found: dict[str, str] = {}
    for name in METHOD_NAMES:
        if name in decision.others:
            found[name] = decision.others[name]
        elif name not in ("auto", decision.method):
            found[name] = f"{decision.method} was asked for" if asked and name == "structured" else usual[name]
    return found
