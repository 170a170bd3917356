"""Which dimension of an activation goes with a dimension of the model's input, entry by entry: told by values.

A network is run on some of the entries of a dimension alone. Those are samples where they have the values that they
have among all, and where they lie in an activation is the dimension of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.boundary import MODEL_INPUT, MODEL_OUTPUT, Key, as_key, elements_in, key_of, module_paths
from jaccli.activations.nested import get, locate
from jaccli.activations.record import Inputs
from jaccli.linear_maps.agreement import values_agree
from jaccli.networks.network import Network

# Neighbours part, and the first entry and the last: what looks back, or ahead, has other values then.
_PARTS = (slice(0, None, 2), slice(1, None, 2))


def sample_dims(
    network: Network, inputs: Inputs, whole: dict[Address, Tensor], dim: int
) -> dict[Address, set[int]] | None:
    """In which dimensions of activations the entries of a dimension of the input are; None where they are no samples.

    Args:
        network: the model, in a session.
        inputs: samples and further arguments.
        whole: the tensors that hold the activations, from all of the inputs.
        dim: of the input.

    Cost: two forward passes without gradients.
    """
    x, found = inputs.args[0], dict[Address, set[int]]()
    size = int(x.shape[dim])
    if size < 2:
        return None
    for chosen in _PARTS:
        picked = torch.arange(size, device=x.device)[chosen]
        some = tensors_or_none(network, _picked(inputs, dim, picked), list(whole))
        if some is None:
            return None
        for address, tensor in whole.items():
            fitting = {d for d in range(tensor.dim()) if _is_part(tensor, some[address], d, picked)}
            found[address] = found.get(address, fitting) & fitting
    return found if all(found.values()) else None


def _picked(inputs: Inputs, dim: int, picked: Tensor) -> Inputs:
    """Some of the entries; of further arguments with as many rows those that go with them."""
    by_dim = Inputs(inputs.args, inputs.kwargs, dim)
    return by_dim.each(lambda tensor, d: tensor.index_select(d, picked.to(tensor.device)))


def _is_part(whole: Tensor, some: Tensor, dim: int, picked: Tensor) -> bool:
    if whole.shape[dim] <= int(picked.max()):
        return False
    part = whole.index_select(dim, picked.to(whole.device))
    return part.shape == some.shape and values_agree(some, part)


def tensors_or_none(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> dict[Address, Tensor] | None:
    """As ``tensors_at``, of all of the addresses; None where the model does not take the inputs, or has them not."""
    try:
        found = tensors_at(network, inputs, addresses)
    except Exception:  # what the model refuses is no answer
        return None
    return found if set(found) == set(addresses) else None


def tensors_at(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> dict[Address, Tensor]:
    """The tensors that hold activations, of those that the inputs reach. Cost: a forward pass without gradients."""
    tap = _Tensors(addresses)
    with torch.no_grad():
        tap.at(MODEL_INPUT, inputs.args[0])
        output = network.run(inputs.args, inputs.kwargs, tap if tap.paths else None)
    tap.at(MODEL_OUTPUT, output)
    return tap.found


class _Tensors:
    """A tap that notes the tensors at some addresses."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.wanted = {address: key_of(address) for address in addresses}
        self.paths: frozenset[str] | None = module_paths(self.wanted.values())
        self.found: dict[Address, Tensor] = {}

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.at((path, "in", call), (args, kwargs))
        return args, kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        self.at((path, "out", call), output)
        return output

    def at(self, key: Key, value: Any) -> None:
        for address, wanted in self.wanted.items():
            if key == wanted:
                if as_key(address, value) is not address:
                    continue  # an element whose own name looks like an index or a dimension
                tensor = get(value, locate(value, elements_in(address, value), address))
                self.found[address] = tensor.detach().clone()  # an in-place operator may follow
