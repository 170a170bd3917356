"""What a network's Jacobian must cost at least, and what memory a call may take and takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from networks import Case
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

MEMORY_SHARE = 1.25


@dataclass(frozen=True)
class Machine:
    """What this machine reaches, by minimum over repetitions.

    Args:
        flops: floating-point operations a second of a float32 matrix product.
        bytes: bytes a second written to memory that is there already.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Floor:
    """The least time for one network.

    Args:
        forward: operations of the forward pass, counted.
        jacobian: operations of J beyond it, by hand.
        result_bytes: of J.
        seconds: the larger of operations over the product rate and bytes over the write rate.
    """

    forward: int
    jacobian: int
    result_bytes: int
    seconds: float


def measure_machine() -> Machine:
    """A second of products and writes."""
    sizes = (512, 1024, 2048)
    flops = max(2 * n**3 / _least(_product(n)) for n in sizes)
    block = torch.empty(2**24)
    return Machine(flops, block.nbytes / _least(lambda: block.fill_(1.0)))


def _product(n: int) -> Callable[[], Any]:
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return lambda: torch.mm(a, b, out=out)


def _least(action: Callable[[], Any], seconds: float = 0.3) -> float:
    action()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def floor(case: Case, machine: Machine, result_bytes: int) -> Floor:
    """The least time that this machine would need for a case."""
    model, x = case.model(), case.samples(0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.tail(model, case.head(model, x))
    forward, jacobian = counter.get_total_flops(), case.operations * case.batch
    seconds = max((forward + jacobian) / machine.flops, result_bytes / machine.bytes)
    return Floor(forward, jacobian, result_bytes, seconds)


class _Outputs(TorchDispatchMode):
    """Adds up the storages that operators make; they are kept, so that no address is seen twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.kept[leaf.untyped_storage().data_ptr()] = leaf
        return out


def activation_bytes(case: Case) -> int:
    """Bytes of all that the operators of one forward pass to the target put out."""
    model, x = case.model(), case.samples(0)
    with torch.no_grad(), _Outputs() as outputs:
        case.tail(model, case.head(model, x))
    return sum(t.untyped_storage().nbytes() for t in outputs.kept.values())


def memory(make: Callable[[], Callable[[], Tensor]]) -> tuple[int, int]:
    """Bytes of the PyTorch allocator: the most that one call holds at once, and what is held between calls.

    Args:
        make: makes the plan; what it returns makes one J.
    """
    with _recording() as before:
        call = make()
        result_bytes = call().nbytes
        gc.collect()
    kept = sum(_changes(before))
    with _recording() as during:
        call()
    held = peak = 0
    for change in _changes(during):
        held += change
        peak = max(peak, held)
    # Less than the result itself: the result came from another allocator.
    return (peak if peak >= result_bytes else peak + result_bytes), max(kept, 0)


def _recording() -> profile:
    return profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False)


def _changes(recorded: profile) -> list[int]:
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events: Any = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return [change for _, change in changes]
