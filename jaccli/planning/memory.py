"""How much memory there is, and how much a pass through a network takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.walk import graph_nodes, result_sizes
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.dispatch import Mode, passed
from jaccli.safety.memory import available_memory


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of f's activations for all samples: of all of them together, and of the widest one."""

    total: int
    widest: int


def available(device: torch.device) -> int:
    """Bytes that may be used on a device when the user sets no limit.

    In coarse steps: what other processes hold for the moment is not to decide how a batch is cut.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _steady(defaults.MEMORY_SHARE * free)
    unused = available_memory()
    return _steady(defaults.MEMORY_SHARE * (unused if unused is not None else _all_of_it()))


def _steady(size: float) -> int:
    """The largest of 1, 1.5, 2, 3, 4, 6, 8, … that is no more.

    >>> _steady(7.9), _steady(3.0), _steady(100.0)
    (6, 3, 96)
    """
    power = 1 << max(int(size).bit_length() - 1, 0)
    return power * 3 // 2 if size >= 1.5 * power else min(power, int(size))


def _all_of_it() -> int:
    """Where the system does not say what is free: what it has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def footprint(linear: LinearizedFunction) -> ActivationMemory:
    """What f holds: read off the gradient graph, or, without one, off one run operator by operator."""
    sizes = _graph_sizes(linear.recorded_pass.target) if linear.recorded_pass is not None else _run_sizes(linear)
    ends = [_bytes(linear.point), _bytes(linear.value)]
    return ActivationMemory(sum(sizes) + sum(ends), max([*sizes, *ends]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _graph_sizes(value: Tensor) -> list[int]:
    """Bytes of each operator's result in a gradient graph, which are those of its cotangent."""
    return [size * value.element_size() for node in graph_nodes(value) for size in result_sizes(node)]


def _run_sizes(linear: LinearizedFunction) -> list[int]:
    if linear.f.network.unwatchable:
        return []
    sizes = _Sizes()
    with torch.no_grad(), sizes:
        linear.evaluate(linear.point)
    return sizes.found


class _Sizes(Mode):
    """Bytes of every operator's results."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        self.found.extend(_bytes(item) for item in results if isinstance(item, Tensor))
        return result
