"""A model, layer names and samples as a caller gives them → network, addresses and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.activations.sample_dimension import find_samples
from jaccli.models.adapt import as_network
from jaccli.networks.network import Network
from jaccli.planning.linearize import Pair, computing, readable


def bind(
    model: Any, x: Tensor, source: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Network, Pair, Inputs]:
    """The network, the addresses and the inputs of a call."""
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    network.report_warnings()
    inputs = Inputs.of(x, args, kwargs)
    with computing(network), readable(inputs):
        inputs = find_samples(network, inputs, pair)
    return network, pair, Inputs.of(x, args, kwargs, inputs.dim)
