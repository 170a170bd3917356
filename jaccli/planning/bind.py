"""From a model, layer names and samples, as a caller gives them, to a network, addresses and inputs."""

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
    """The network, the addresses of source and target, and the inputs, in which the dimension of samples is known.

    Args:
        model: see ``jaccli.jacobian``, as for the other arguments.
        x: samples ``(batch, …)``; where the first layers show that, with the samples in another dimension.
        source: name of a layer.
        target: name of a layer.
        args: further arguments of the model.
        kwargs: further arguments by name.

    Cost: up to some forward passes without gradients, where the model is to show which dimension counts the samples.

    Raises:
        UsageError: an unknown layer, or arguments that cannot be passed on.
        RefusedError: the model refuses ``x``.
    """
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    network.report_warnings()
    inputs = Inputs.of(x, args, kwargs)
    with computing(network), readable(inputs):
        inputs = find_samples(network, inputs, pair)
    return network, pair, Inputs.of(x, args, kwargs, inputs.dim)
