"""Which layers an input reaches, how often, and what shapes their outputs have."""

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


@dataclass
class LayerCalls:
    """One layer in a run: its calls, and of the first the output's tensors: element → shape and dtype."""

    calls: int = 0
    outputs: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


class _Watcher:
    def __init__(self) -> None:
        self.paths: frozenset[str] | None = None
        self.seen: dict[str, LayerCalls] = {}

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen = self.seen.setdefault(path, LayerCalls())
        seen.calls = max(seen.calls, call)
        return args, kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        if call == 1:
            self.seen[path].outputs = shapes(output)
        return output


def shapes(value: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The tensors of a nested value: element → shape and dtype; a tensor itself is element ``""``."""
    return {
        ".".join(p): (shape_of(t), "nested " * t.is_nested + str(t.dtype).removeprefix("torch."))
        for p, t in leaves(value)
    }


def each_call(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> list[Address]:
    """Addresses with ``#*`` replaced by those of each call, each address once.

    A layer that is not called has its first call named, of which ``record`` says that it is not there.

    Cost: where there is such an address, a forward pass without gradients.
    """
    if all(address.call != EVERY for address in addresses):
        return [*addresses]
    seen, _ = watch(network, inputs)
    found: dict[Address, None] = {}
    for address in addresses:
        calls = seen[address.path].calls if address.path in seen else 1
        each = [address.at_call(k) for k in range(1, calls + 1)] if address.call == EVERY else [address]
        for one in each:
            found.setdefault(one)
    return list(found)


def watch(network: Network, inputs: Inputs) -> tuple[dict[str, LayerCalls], Any]:
    """Run once, without gradients, and see every module call; also the model's output."""
    watcher = _Watcher()
    with torch.no_grad():
        output = network.run(inputs.args, inputs.kwargs, watcher)
    return watcher.seen, output
