"""One forward pass that records the activations of layer pairs, with the gradient graph where it can have one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.record import ForwardRecord, Inputs, record
from jaccli.autograd.walk import graph_nodes
from jaccli.errors import JaccliError
from jaccli.networks.network import Network
from jaccli.planning.linearize.linearization import Pair
from jaccli.runtime.kernels import LIBRARY_NODES
from jaccli.runtime.torch_errors import is_out_of_memory, reason


def recorded(network: Network, inputs: Inputs, pairs: Sequence[Pair], graph: bool) -> tuple[ForwardRecord, str | None]:
    """The activations, and why they have no gradient graph where the model runs only without gradients.

    Cost: one forward pass; a second one where the first fails with gradients.
    """
    sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
    try:
        return record_backward(network, inputs, sources, targets, live=graph), None
    except JaccliError:
        raise
    except Exception as error:
        if not graph or is_out_of_memory(error):
            raise
        try:
            return record(network, inputs, sources, targets, live=False), reason(error)
        except JaccliError:
            raise
        except Exception as second:
            # Two different errors: the first one may be the cause that the user can act on, so that both are reported.
            if is_out_of_memory(second) or reason(second) == reason(error):
                raise
            raise RuntimeError(f"{reason(second)} (with gradients: {reason(error)})") from error


def record_backward(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address], *, live: bool
) -> ForwardRecord:
    """``record``; once more, if the graph has kernels without a backward pass, which are switched off for good."""
    recording = record(network, inputs, sources, targets, live=live)
    if set_aside(network, [recorded_target.activation for recorded_target in recording.targets.values()]):
        recording = record(network, inputs, sources, targets, live=live)
    return recording


def set_aside(network: Network, values: Iterable[Tensor]) -> bool:
    """Switch off the network's fused recurrent kernels, if values ``(batch, …)`` were computed by such a kernel of an
    accelerator's library, which has no backward pass in evaluation mode; whether they were."""
    graphs = [graph_nodes(value) for value in values if value.device.type != "cpu"] if network.fused else []
    uses_library = any(node.name().startswith(LIBRARY_NODES) for nodes in graphs for node in nodes)
    network.fused = network.fused and not uses_library
    return uses_library
