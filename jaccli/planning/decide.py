"""Which method, how many rows at once, how many samples at once; and why.

``auto`` decides by this table, top to bottom:

    no path from source to target             nothing to compute: zeros
    the backward pass fails                   forward, or finite-difference
    one backward pass each is soon done       loop, or reverse where its imports are done
    sooner than a graph is captured           the same candidates, without the engine
    the engine predicts far less              structured
    otherwise                                 what is predicted to take the least

Times are predicted from counts of operators and sizes (``prediction``), not measured: two runs choose alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from jaccli import defaults
from jaccli.errors import ResourceError, note
from jaccli.graph import Bracketing, CaptureGap, Graph, capture, plan_elimination
from jaccli.linearization.linearization import batching_imported
from jaccli.methods import METHODS, MethodGap, MethodName, MethodTask
from jaccli.methods.base import is_out_of_memory
from jaccli.planning.linearize import Linearization, readable
from jaccli.planning.memory import ActivationMemory, available, footprint
from jaccli.planning.predict import counted, roughly
from jaccli.runtime.dispatch import LeftTorch, Within
from jaccli.text.wording import term, worded


@dataclass(frozen=True)
class Decision:
    """How J is going to be obtained.

    Args:
        method: None where no path leads from source to target, and J is zero.
        chunk: rows, columns or copies that go through the network at once, for ``batch`` samples.
        batch: the number of samples it was decided with.
        block: how many samples may be taken at a time.
        why: the reason for the method.
        sample_bytes: size of one sample's J.
        peak_bytes: predicted peak memory of ``batch`` samples beyond the network's own.
        others: why each other method was not taken.
        predicted_s: time of ``batch`` samples, predicted from counts, or as measured by a plan that raced programs;
            None where the decision needed no prediction.
        bracket: of the structured method: how the chain is multiplied out.
        steps: the same for people; ``passes`` in short.
        asked: the method was named by the user.
    """

    method: MethodName | None
    chunk: int
    batch: int
    block: int
    why: str
    sample_bytes: int
    peak_bytes: int
    others: dict[str, str] = field(default_factory=dict)
    predicted_s: float | None = None
    bracketing: Bracketing | None = None
    steps: tuple[str, ...] = ()
    passes: str = ""
    asked: bool = False

    def chunk_for(self, batch: int) -> int:
        """The chunk that takes the same memory with another number of samples."""
        return max(1, self.chunk * self.batch // batch)


@dataclass(frozen=True)
class MemoryBudget:
    """Memory: ``limit`` for everything, of which ``kept`` is for results that stay."""

    limit: int
    kept: int
    stated: bool

    @property
    def free(self) -> int:
        return self.limit - self.kept


class TooLarge(ResourceError):
    """J, or one sample's J and its passes, do not fit the memory."""


def decide(
    linearization: Linearization,
    method: MethodName,
    *,
    max_memory: int | None = None,
    chunk: int | None = None,
    keep: int = 0,
) -> Decision:
    """Choose for a prepared pair.

    Args:
        prepared: f at some samples.
        method: the user's choice, or ``auto``.
        max_memory: bytes that J and the passes may take; by default a share of what is free.
        chunk: the user's choice of chunk.
        keep: of how many samples J stays in memory; 0 where each block is written and let go.

    Raises:
        TooLarge: the results do not fit, or not even one row of one sample does.
    """
    linear = linearization.linear
    with readable(linear.f.inputs):
        sizes = footprint(linear)
    room = _room(linearization, max_memory, keep)
    if not linearization.connected:
        return _sized(linearization, None, "no path from source to target: J is structurally zero", room, 1, sizes)

    def asked() -> Decision:
        return replace(_sized(linearization, method, "asked for", room, chunk, sizes), asked=True)

    if method == "structured":
        gap = look(linearization)
        if gap is None:
            return with_structure(linearization, asked(), room)
        return replace(asked(), others={"structured": gap})
    if method != "auto":
        return asked()
    choice, why, others, seconds = _auto(
        linearization, sizes, lambda name: _sized(linearization, name, "", room, chunk, sizes).chunk
    )
    decision = _sized(linearization, choice, why, room, chunk, sizes)
    decision = replace(decision, others=others, predicted_s=seconds)
    if choice != "structured":
        return decision
    found = with_structure(linearization, decision, room)
    if found.peak_bytes <= room.limit:
        return found
    others = {**others, "structured": f"{human(found.peak_bytes)} for one sample"}
    others.pop("reverse", None)
    decision = _sized(linearization, "reverse", "the structured engine does not fit the memory", room, chunk, sizes)
    return replace(decision, others=others)


def check_room(
    linearization: Linearization, method: MethodName, *, max_memory: int | None = None, keep: int = 0
) -> None:
    """Refuse what ``decide`` would refuse for its size, before it is known how J is obtained.

    Raises:
        TooLarge: the results do not fit, or not even one row of one sample does.
    """
    with readable(linearization.linear.f.inputs):
        sizes = footprint(linearization.linear)
    _sized(linearization, None if method == "auto" else method, "", _room(linearization, max_memory, keep), 1, sizes)


def _room(linearization: Linearization, max_memory: int | None, keep: int) -> MemoryBudget:
    limit = max_memory if max_memory is not None else available(linearization.linear.value.device)
    return MemoryBudget(limit, keep * _sample_bytes(linearization), max_memory is not None)


def look(linearization: Linearization, within: float = float("inf")) -> str | None:
    """Capture f as a graph and find the bracketing; why it cannot be done, or None.

    Args:
        prepared: f; keeps what was found, unless a search that was cut short is wanted thorough now.
        within: seconds after which the search is cut short.
    """
    if linearization.engine is None or (within == float("inf") and not linearization.engine.thorough):
        if linearization.samples_mix:
            return "samples mix"
        with readable(linearization.linear.f.inputs):
            try:
                linearization.engine = plan_elimination(captured(linearization), within=within)
            except (CaptureGap, LeftTorch) as gap:
                return str(gap)
    return None


def captured(linearization: Linearization) -> Graph:
    """f as a graph.

    Raises:
        CaptureGap, LeftTorch: it cannot be captured, or its derivative cannot.
    """
    with Within(dual=False) if linearization.linear.live is None else nullcontext():
        return capture(linearization.linear.f)


def with_structure(linearization: Linearization, decision: Decision, room: MemoryBudget | None = None) -> Decision:
    """The decision with the bracketing that ``look`` found, and the memory that it takes."""
    assert linearization.engine is not None
    found, batch = linearization.engine, decision.batch
    need = found.work_bytes + (0 if room is not None and room.kept else batch * decision.sample_bytes)
    block = decision.block if room is None else max(1, int(room.free * batch / max(need, 1)))
    kept = room.kept if room is not None else 0
    peak = int(need * min(block, batch) / batch) + kept
    return replace(
        decision,
        bracketing=found.bracketing,
        steps=tuple(found.describe()),
        passes=found.passes(),
        predicted_s=found.seconds,
        block=max(block, batch) if linearization.samples_mix else block,
        peak_bytes=peak,
    )


def _sample_bytes(linearization: Linearization) -> int:
    f = linearization.linear.f
    return f.n_out * f.n_in * linearization.linear.value.element_size()


def _row_bytes(linearization: Linearization, method: MethodName, sizes: ActivationMemory) -> int:
    """What one more row, column or copy in a chunk costs, for all samples."""
    linear = linearization.linear
    item = linear.value.element_size()
    seeds = 2 * linear.batch * (linear.f.n_in + linear.f.n_out) * item
    held = sizes.total if method == "replicate" else 0
    return seeds + held + defaults.ROW_TENSORS * sizes.widest


def _sized(
    linearization: Linearization,
    method: MethodName | None,
    why: str,
    room: MemoryBudget,
    chunk: int | None,
    sizes: ActivationMemory,
) -> Decision:
    """Fit the chunk and the block of samples into the room there is."""
    linear = linearization.linear
    batch, name = linear.batch, method or "loop"
    row = _row_bytes(linearization, name, sizes)
    fixed = sizes.total + (0 if room.kept else batch * _sample_bytes(linearization))
    least = (fixed + row) / batch
    if room.free < least:
        raise _too_small(linearization, room, int(least) + room.kept)
    count = linear.f.n_out if METHODS[name].by == "row" else linear.f.n_in
    count = 2 * count if name == "finite-difference" else count
    fits = min(int(defaults.MEMORY_FILL * (room.free - fixed)), max(defaults.WORKING_SET, row)) // row
    chosen = chunk or max(1, min(int(fits), count))
    block = max(1, int(room.free * batch / (fixed + min(chosen, defaults.TRIAL_ROWS) * row)))
    if linearization.samples_mix:
        block = max(block, batch)
    taken = min(block, batch) / batch
    peak = int(taken * (fixed + chosen * row)) + room.kept
    return Decision(method, chosen, batch, block, why, _sample_bytes(linearization), peak)


def _too_small(linearization: Linearization, room: MemoryBudget, need: int) -> TooLarge:
    f = linearization.linear.f
    what = "all samples' J" if room.kept > room.limit else "one sample's J and its passes"
    return TooLarge(
        f"{what}, {f.n_out} x {f.n_in} each, need {human(need)}",
        worded(
            "expected at most {size} ({of})",
            size=human(room.limit),
            of=term("max_memory") if room.stated else "free memory",
        ),
        worded("take fewer samples, part of a layer, as {target:output[0:100]}, or allow more with {max_memory}"),
    )


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


_Verdict = tuple[MethodName, str, dict[str, str], float | None]


def _auto(linearization: Linearization, sizes: ActivationMemory, chunk_of: Callable[[MethodName], int]) -> _Verdict:
    linear = linearization.linear
    if linear.live is None or linearization.probe.backward_gap:
        return _without_backward(linearization, chunk_of)
    n_out, n_in = linear.f.n_out, linear.f.n_in
    shape = f"{n_out} rows, {n_in} columns"
    cold = not batching_imported()
    importing = f"the first batched pass of a process imports for {seconds(defaults.SYMPY_IMPORT)}"
    loop_s = roughly(linear, sizes)
    if loop_s < defaults.SOON:
        why = f"{shape}: backward passes are soon done"
        if cold:
            return "loop", why, {"reverse": importing}, loop_s
        others = {"loop": "rows one by one, where they go together", "forward": f"{n_in} columns, not fewer"}
        return "reverse", why, others, None
    with readable(linear.f.inputs):
        work = counted(linear)
    loop_s = work.loop(n_out)
    gap, engine_s = structure(linearization, loop_s)
    if engine_s < defaults.CLEARLY * loop_s:
        others = dict.fromkeys(("reverse", "loop"), f"at most {seconds(loop_s)}")
        return "structured", f"{shape}: {seconds(engine_s)} predicted from the network's structure", others, engine_s
    imports = cold and min(engine_s, loop_s) < defaults.SYMPY_IMPORT
    predicted: dict[MethodName, float] = {"loop": loop_s}
    if not imports:
        predicted["reverse"] = work.reverse(n_out, chunk_of("reverse"))
        if n_in < 2 * n_out:
            predicted["forward"] = work.forward(n_in, chunk_of("forward")) + cold * defaults.FUNCTORCH_IMPORT
    if gap is None:
        predicted["structured"] = engine_s
    best = min(predicted, key=lambda name: predicted[name])
    others = {"reverse": importing, "forward": importing} if imports else {}
    others |= {name: f"{seconds(s)} predicted" for name, s in predicted.items() if name != best}
    if gap is not None:
        others["structured"] = gap
    if not imports and "forward" not in predicted:
        others["forward"] = f"{n_in} columns against {n_out} rows"
    others["finite-difference"] = "not exact"
    return best, f"{shape}: {seconds(predicted[best])} predicted, the least", others, predicted[best]


def structure(linearization: Linearization, loop_s: float) -> tuple[str | None, float]:
    """Why a single run does without the structured engine, or None; and the engine's predicted seconds.

    Args:
        prepared: f; keeps the engine.
        loop_s: seconds of the loop over rows, of which the search may take a share.
    """
    assert linearization.linear.live is not None
    search_s = linearization.linear.live.operators() * defaults.ENGINE_OPERATOR_S
    if loop_s < search_s:
        return f"a search for structure takes {seconds(search_s)}, the loop {seconds(loop_s)}", float("inf")
    gap = look(linearization, within=defaults.SEARCH_SHARE * loop_s)
    return gap, linearization.engine.seconds if linearization.engine is not None and gap is None else float("inf")


def seconds(value: float) -> str:
    """Seconds for people."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def predicted_seconds(linearization: Linearization, decision: Decision) -> float | None:
    """What the decision's method is going to take, from a few of its passes; None where those fail.

    Cost: two chunks of some rows or columns, where the decision does not know already.
    """
    linear, name = linearization.linear, decision.method
    if decision.predicted_s is not None or name is None or name == "structured":
        return decision.predicted_s
    if name in ("reverse", "forward"):
        return _trial(linearization, name, min(defaults.TRIAL_ROWS, decision.chunk))
    try:
        if name == "finite-difference":
            with torch.no_grad():
                return min(_timed(lambda: linear.evaluate(linear.point)) for _ in range(2)) * 2 * linear.f.n_in
        ones = torch.ones_like(linear.value).reshape(linear.batch, -1)
        return min(_timed(lambda: linear.vjp(ones)) for _ in range(2)) * linear.f.n_out
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


def _trial(linearization: Linearization, name: MethodName, chunk: int) -> float | None:
    """Seconds for all rows or columns, from the second of two chunks; None where the method has a gap."""
    linear = linearization.linear
    by_row = METHODS[name].by == "row"
    count = linear.f.n_out if by_row else linear.f.n_in
    chunk = min(chunk, count)
    run = linear.vjps if by_row else linear.jvps
    seeds = linear.value.new_zeros(chunk, linear.batch, count)
    seeds[torch.arange(chunk), :, torch.arange(chunk)] = 1
    try:
        seconds = [_timed(lambda: run(seeds)) for _ in range(2)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
    return min(seconds) * count / chunk


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _without_backward(linearization: Linearization, chunk_of: Callable[[MethodName], int]) -> _Verdict:
    gap = linearization.probe.backward_gap or "no gradients"
    others = dict.fromkeys(("reverse", "loop", "replicate", "functional"), f"the backward pass fails: {gap}")
    linear = linearization.linear
    task = MethodTask(linear, linear.value.new_zeros(linear.shape), chunk_of("forward"))
    try:
        METHODS["forward"].fill(task)
    except MethodGap as forward_gap:
        others["forward"] = str(forward_gap)
        note(
            f"{linearization.name}: the backward pass fails ({gap}), and so does forward mode; "
            "taken by finite differences"
        )
        return "finite-difference", "neither backward nor forward passes work", others, None
    note(f"{linearization.name}: the backward pass fails ({gap}); taken in forward mode")
    return "forward", "the backward pass fails", others, None
