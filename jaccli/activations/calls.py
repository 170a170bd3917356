"""Step 1b: which layers an input reaches and how often, so that ``#*`` becomes an address for each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from jaccli.activations.address import EVERY, Address
from jaccli.activations.nested import leaves
from jaccli.activations.record import Inputs
from jaccli.networks.network import Network
from jaccli.networks.tensor_kinds import shape_of
from jaccli.text.quantities import dtype_name


@dataclass
class LayerCalls:
    """How often a layer was called in a run, and the tensors of its first output: element → shape and dtype."""

    calls: int = 0
    outputs: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


class _CallCounter:
    """A tap that counts the calls of all layers and changes nothing."""

    def __init__(self) -> None:
        self.paths: frozenset[str] | None = None
        self.layers: dict[str, LayerCalls] = {}

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.layers.setdefault(path, LayerCalls())
        layer.calls = max(layer.calls, call)
        return args, kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        if call == 1:
            self.layers[path].outputs = shapes(output)
        return output


def shapes(value: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The tensors of a nested value: element → shape and dtype; a tensor itself is element ``""``."""
    return {".".join(p): (shape_of(t), "nested " * t.is_nested + dtype_name(t.dtype)) for p, t in leaves(value)}


def each_call(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> list[Address]:
    """Addresses with ``#*`` replaced by those of each call, each address once.

    A layer that is not called gets the address of its first call; ``record`` then reports that it is not reached.

    Cost: a forward pass without gradients if there is such an address, else nothing.
    """
    if all(address.call != EVERY for address in addresses):
        return [*addresses]
    layers, _ = watch(network, inputs)
    result: dict[Address, None] = {}
    for address in addresses:
        calls = layers[address.path].calls if address.path in layers else 1
        each = [address.at_call(k) for k in range(1, calls + 1)] if address.call == EVERY else [address]
        result.update(dict.fromkeys(each))
    return list(result)


def watch(network: Network, inputs: Inputs) -> tuple[dict[str, LayerCalls], Any]:
    """One forward pass without gradients: module path → its calls, for the layers reached; and the model's output."""
    counter = _CallCounter()
    with torch.no_grad():
        output = network.run(inputs.args, inputs.kwargs, counter)
    return counter.layers, output
