"""Which dimension of an activation belongs to a dimension of the model's input, entry by entry.

It is found by values. The network runs on all entries of an input dimension, then on some of them alone. If an
activation has the same values for those entries both times, along one of its dimensions, then the entries are samples
and that is the activation's sample dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.boundary import Boundary, BoundaryTap, as_key, boundary_of, elements_in, module_paths
from jaccli.activations.nested import get, locate_tensor
from jaccli.activations.record import Inputs
from jaccli.linear_maps.agreement import values_agree
from jaccli.networks.network import Network

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Every second entry, and the others: neighbours are separated, and so are the first entry and the last. A layer that
# looks at earlier or later entries gives other values then.
_PARTS = (slice(0, None, 2), slice(1, None, 2))


def sample_dims(
    network: Network, inputs: Inputs, whole: dict[Address, Tensor], dim: int
) -> dict[Address, set[int]] | None:
    """The dimensions of activations in which the entries of an input dimension lie; None if those are no samples.

    Args:
        network: the model, in a session.
        inputs: samples and further arguments.
        whole: the tensors that hold the activations, of any shapes, from a run on all of the inputs.
        dim: of the samples' tensor.

    Cost: two forward passes without gradients.
    """
    x, dims = inputs.args[0], dict[Address, set[int]]()
    size = int(x.shape[dim])
    if size < 2:
        return None
    for chosen in _PARTS:
        numbers = range(size)[chosen]
        alone = tensors_or_none(network, replace(inputs, dim=dim).select(numbers), list(whole))
        if alone is None:
            return None
        for address, tensor in whole.items():
            fitting = {d for d in range(tensor.dim()) if _is_part(tensor, alone[address], d, numbers)}
            dims[address] = dims.get(address, fitting) & fitting
    return dims if all(dims.values()) else None


def _is_part(whole: Shaped[Tensor, "..."], alone: Shaped[Tensor, "..."], dim: int, numbers: range) -> bool:
    """Whether ``alone``, of a run on these entries, has the values that ``whole`` has there in dimension ``dim``."""
    if whole.shape[dim] <= numbers[-1]:
        return False
    part = whole.index_select(dim, torch.tensor(numbers, device=whole.device))
    return part.shape == alone.shape and values_agree(alone, part)


def tensors_or_none(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> dict[Address, Tensor] | None:
    """As ``tensors_at``, tensors of any shape; None if the model refuses the inputs or does not reach all addresses."""
    try:
        tensors = tensors_at(network, inputs, addresses)
    except Exception:  # of any type: the model's own code raises it
        return None
    return tensors if set(tensors) == set(addresses) else None


def tensors_at(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> dict[Address, Tensor]:
    """The whole tensors, of any shape, that hold the activations which the inputs reach.

    Cost: a forward pass without gradients.
    """
    tap = _TensorsAt(addresses)
    with torch.no_grad():
        tap.run(network, inputs.args, inputs.kwargs)
    return tap.tensors


class _TensorsAt(BoundaryTap):
    """A tap that copies the tensors at some addresses."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.boundaries = {address: boundary_of(address) for address in addresses}
        self.paths = module_paths(self.boundaries.values())
        self.tensors: dict[Address, Tensor] = {}

    def at(self, boundary: Boundary, value: Any) -> Any:
        for address, where in self.boundaries.items():
            if boundary == where:
                if as_key(address, value) is not address:
                    continue  # an element whose own name looks like an index or a dimension
                tensor = get(value, locate_tensor(value, elements_in(address, value), address))
                self.tensors[address] = tensor.detach().clone()  # an in-place operator may follow
        return value
