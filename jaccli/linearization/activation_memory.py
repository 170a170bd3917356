"""How much memory the activations of f take, which every pass through it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.autograd.walk import graph_nodes, result_sizes
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.dispatch import Mode, passed

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of f's activations, of all samples: of all activations together, and of the largest one."""

    total: int
    widest: int


def footprint(linear: LinearizedFunction) -> ActivationMemory:
    """The memory of f's activations, from the gradient graph. Without a graph: from one evaluation."""
    sizes = _graph_sizes(linear.recorded_pass.target) if linear.recorded_pass is not None else _run_sizes(linear)
    # The point is a leaf and no operator's result; counted also where f has no operator at all.
    sizes += [_bytes(linear.point), _bytes(linear.value)]
    return ActivationMemory(sum(sizes), max(sizes))


def _bytes(tensor: Shaped[Tensor, "*shape"]) -> int:
    return tensor.numel() * tensor.element_size()


def _graph_sizes(value: Shaped[Tensor, "*shape"]) -> list[int]:
    """Bytes of each operator's result in a gradient graph, which are those of its cotangent."""
    # The graph knows how many elements results have; that they have the value's dtype is a guess, near enough here.
    return [size * value.element_size() for node in graph_nodes(value) for size in result_sizes(node)]


def _run_sizes(linear: LinearizedFunction) -> list[int]:
    if linear.f.network.refuses_modes:
        return []
    sizes = _Sizes()
    with torch.no_grad(), sizes:
        linear.evaluate(linear.point)
    return sizes.sizes


class _Sizes(Mode):
    """Bytes of every operator's results."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        self.sizes.extend(_bytes(item) for item in results if isinstance(item, Tensor))
        return result
