"""A model, layer names and samples as a caller gives them → network, addresses and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jaccli.layers.record import Inputs
from jaccli.layers.resolve import resolve
from jaccli.layers.samples import find_samples
from jaccli.models.adapt import as_network
from jaccli.models.network import Network
from jaccli.prepare import Pair, computing, readable


def bind(
    model: Any, x: Tensor, source: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Network, Pair, Inputs]:
    """The network, the addresses and the inputs of a call."""
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    network.tell_doubts()
    inputs = Inputs.of(x, args, kwargs)
    with computing(network), readable(inputs):
        inputs = find_samples(network, inputs, pair)
    return network, pair, Inputs.of(x, args, kwargs, inputs.dim)
