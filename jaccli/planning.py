"""Which method, how many rows at once, how many samples at once; and why.

``auto`` decides by this table, top to bottom:

    no path from source to target             nothing to compute: zeros
    the backward pass fails                   forward, or finite-difference
    one backward pass each is soon done       reverse, or forward where columns are far fewer
    otherwise                                 the candidates are tried on a few rows; the fastest wins
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from jaccli import defaults
from jaccli.errors import ResourceError, UsageError
from jaccli.memory import Footprint, available, footprint
from jaccli.methods import METHOD_NAMES, METHODS, MethodGap, MethodName, Task
from jaccli.methods.base import is_out_of_memory
from jaccli.prepare import Prepared


@dataclass(frozen=True)
class Decision:
    """How J is going to be obtained.

    Args:
        method: a method, or ``zero`` where no path leads from source to target.
        chunk: rows, columns or copies that go through the network at once.
        block: samples taken at a time.
        why: the reason for the method.
        others: why each other method was not taken.
        result_bytes: size of J for all samples.
        peak_bytes: predicted peak memory beyond the network's own, of one block.
        predicted_s: predicted time of one block, where it was measured.
    """

    method: MethodName | None
    chunk: int
    block: int
    why: str
    result_bytes: int
    peak_bytes: int
    others: dict[str, str] = field(default_factory=dict)
    predicted_s: float | None = None


def check_method(name: str) -> MethodName:
    """The method of this name.

    Raises:
        UsageError: there is none.
    """
    for known in METHOD_NAMES:
        if known == name:
            return known
    raise UsageError(f"method {name!r} is not known", f"expected one of {', '.join(METHOD_NAMES)}")


def decide(
    prepared: Prepared, method: MethodName, *, max_memory: int | None = None, chunk: int | None = None
) -> Decision:
    """Choose for a prepared pair.

    Args:
        prepared: f at the samples.
        method: the user's choice, or ``auto``.
        max_memory: bytes that J and the passes may take; by default a share of what is free.
        chunk: the user's choice of chunk.

    Raises:
        ResourceError: not even one row of one sample fits.
    """
    linear = prepared.linear
    sizes = footprint(linear)
    if not prepared.connected:
        return _sized(prepared, None, "no path from source to target: J is structurally zero", max_memory, 1, sizes)
    if method != "auto":
        return _sized(prepared, method, "asked for", max_memory, chunk, sizes)
    choice, why, others, seconds = _auto(prepared, lambda name: _chunk(prepared, name, max_memory, sizes))
    decision = _sized(prepared, choice, why, max_memory, chunk, sizes)
    return Decision(**{**vars(decision), "others": others, "predicted_s": seconds})


def _limit(prepared: Prepared, max_memory: int | None) -> int:
    return max_memory if max_memory is not None else available(prepared.linear.value.device)


def _row_bytes(prepared: Prepared, method: MethodName, sizes: Footprint) -> int:
    """What one more row, column or copy in a chunk costs."""
    linear = prepared.linear
    item = linear.value.element_size()
    seeds = 2 * linear.batch * (linear.f.n_in + linear.f.n_out) * item
    held = sizes.total if method == "replicate" else 0
    return seeds + held + defaults.ROW_TENSORS * sizes.widest


def _chunk(prepared: Prepared, method: MethodName, max_memory: int | None, sizes: Footprint) -> int:
    linear = prepared.linear
    count = linear.f.n_out if METHODS[method].by == "row" else linear.f.n_in
    row = _row_bytes(prepared, method, sizes)
    room = _limit(prepared, max_memory) - _result(prepared) - sizes.total
    fits = min(room, max(defaults.WORKING_SET, row)) // row
    return max(1, min(fits, 2 * count if method == "finite-difference" else count))


def _result(prepared: Prepared) -> int:
    batch, n_out, n_in = prepared.linear.shape
    return batch * n_out * n_in * prepared.linear.value.element_size()


def _sized(
    prepared: Prepared, method: MethodName | None, why: str, max_memory: int | None, chunk: int | None, sizes: Footprint
) -> Decision:
    """Fit chunk and block of samples into memory."""
    linear = prepared.linear
    limit = _limit(prepared, max_memory)
    result = _result(prepared)
    row = _row_bytes(prepared, method or "loop", sizes)
    chunk = chunk or _chunk(prepared, method or "loop", max_memory, sizes)
    need = result + sizes.total + min(chunk, 1 if chunk == 1 else chunk) * row
    block = linear.batch
    if need > limit:
        block = max(1, int(linear.batch * limit / (result + sizes.total + row))) if linear.batch > 1 else 1
        per_sample = (result + sizes.total + row) // linear.batch
        if per_sample > limit:
            raise ResourceError(
                f"one sample's J ({linear.f.n_out} × {linear.f.n_in}) and its passes need {human(per_sample)}",
                f"expected at most {human(limit)}" + (" (--max-memory)" if max_memory else " (free memory)"),
                "take part of a layer, as --to 'output[0:100]', or allow more with --max-memory",
            )
        chunk = 1
        need = per_sample * block
    return Decision(method, int(chunk), block, why, result, int(need))


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _auto(
    prepared: Prepared, chunk_of: Callable[[MethodName], int]
) -> tuple[MethodName, str, dict[str, str], float | None]:
    linear = prepared.linear
    n_out, n_in = linear.f.n_out, linear.f.n_in
    if linear.live is None or prepared.probe.backward_gap:
        return _without_backward(prepared, chunk_of)
    start = time.perf_counter()
    linear.vjp(torch.ones_like(linear.value).reshape(linear.batch, -1))
    loop_s = (time.perf_counter() - start) * n_out
    shape = f"{n_out} rows, {n_in} columns"
    if loop_s < defaults.TRIAL_FROM:
        others = {"loop": "rows one by one, where they go together", "forward": f"{n_in} columns, not fewer"}
        return "reverse", f"{shape}: backward passes are soon done", others, None
    predicted = _tried(prepared, loop_s, chunk_of)
    best = min(predicted, key=lambda name: predicted[name])
    others = {name: f"{_seconds(s)} predicted" for name, s in predicted.items() if name != best}
    if "forward" not in predicted:
        others["forward"] = f"{n_in} columns against {n_out} rows"
    others["finite-difference"] = "not exact"
    return best, f"{shape}: {_seconds(predicted[best])} predicted, the least", others, predicted[best]


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _tried(
    prepared: Prepared, loop_s: float, chunk_of: Callable[[MethodName], int]
) -> dict[MethodName, float]:
    """Predicted seconds of each candidate, from a few of its rows or columns."""
    n_out, n_in = prepared.linear.f.n_out, prepared.linear.f.n_in
    predicted: dict[MethodName, float] = {"loop": loop_s}
    candidates: list[MethodName] = ["reverse"]
    if n_in < 2 * n_out and min(loop_s, loop_s * n_in / n_out) > defaults.FUNCTORCH_IMPORT / 4:
        candidates.append("forward")
    elif 2 * n_in <= n_out:
        candidates.append("forward")
    for name in candidates:
        seconds = _trial(prepared, name, min(defaults.TRIAL_ROWS, chunk_of(name)))
        if seconds is not None:
            predicted[name] = seconds
    return predicted


def _trial(prepared: Prepared, name: MethodName, chunk: int) -> float | None:
    """Seconds for all rows or columns, from the second of two chunks; None where the method has a gap."""
    linear = prepared.linear
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


def _without_backward(
    prepared: Prepared, chunk_of: Callable[[MethodName], int]
) -> tuple[MethodName, str, dict[str, str], float | None]:
    gap = prepared.probe.backward_gap or "no gradients"
    others = {name: f"the backward pass fails: {gap}" for name in ("reverse", "loop", "replicate", "functional")}
    linear = prepared.linear
    task = Task(linear, linear.value.new_zeros(linear.shape), chunk_of("forward"))
    try:
        METHODS["forward"].fill(task)
    except MethodGap as forward_gap:
        others["forward"] = str(forward_gap)
        return "finite-difference", "neither backward nor forward passes work", others, None
    return "forward", "the backward pass fails", others, None
