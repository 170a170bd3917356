"""Which dimension of the model's input counts the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jaccli.layers.address import INPUT, OUTPUT, Address
from jaccli.layers.boundary import Key, elements_in, key_of
from jaccli.layers.record import Inputs
from jaccli.layers.tree import get, leaves, locate
from jaccli.models.network import Network


def find_samples(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> Inputs:
    """The inputs with the dimension that holds the samples: the first, unless an ``@DIM`` says otherwise.

    ``input@1`` says it of the input itself. ``lstm:out.1.0@1`` says it of another activation: then the
    input's samples are in the first dimension of that size. Cost: a forward pass in that case only.
    """
    told = [a.dim for a in addresses if a.is_model_input and a.dim is not None]
    if told:
        return replace(inputs, dim=told[0])
    others = [a for a in addresses if a.dim is not None]
    first = inputs.args[0]
    if not others or not isinstance(first, Tensor):
        return inputs
    sizes = _Sizes(others)
    with torch.no_grad():
        output = network.run(inputs.args, inputs.kwargs, sizes if sizes.paths else None)
    sizes.at((OUTPUT, "out", 1), output)
    fitting = [d for d, size in enumerate(first.shape) if size in sizes.found]
    return replace(inputs, dim=fitting[0]) if fitting else inputs


class _Sizes:
    """A tap that notes the size of the dimension that an address names."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.wanted = {key_of(address): address for address in addresses}
        self.paths: frozenset[str] | None = frozenset(key[0] for key in self.wanted) - {INPUT, OUTPUT}
        self.found: set[int] = set()

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.at((path, "in", call), (args, kwargs))
        return args, kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        self.at((path, "out", call), output)
        return output

    def at(self, key: Key, value: Any) -> None:
        address = self.wanted.get(key)
        if address is None or address.dim is None:
            return
        tensor: Tensor = get(value, locate(value, elements_in(address, value), str(address)))
        if address.dim < tensor.dim():
            self.found.add(int(tensor.shape[address.dim]))


def same_values(network: Network, every: Inputs, part: Inputs, numbers: Sequence[int]) -> bool:
    """Whether the model gives the samples ``numbers`` in ``part`` the outputs that it gives them in ``every``."""
    with torch.no_grad():
        whole = network.run(every.args, every.kwargs)
        try:
            some = network.run(part.args, part.kwargs)
        except Exception:
            return False
    eps = max((torch.finfo(t.dtype).eps for t in network.tensors() if t.is_floating_point()), default=0.0)
    pairs = zip(leaves(whole), leaves(some), strict=True)
    return all(_agree(a, b, every.batch, numbers, eps) for (_, a), (_, b) in pairs)


def _agree(whole: Tensor, some: Tensor, batch: int, numbers: Sequence[int], eps: float) -> bool:
    dims = [d for d, size in enumerate(whole.shape) if size == batch]
    if not dims or not whole.is_floating_point():
        return True
    rows = whole.index_select(dims[0], torch.tensor(numbers, device=whole.device))
    return rows.shape == some.shape and close(some, rows, eps)


def close(a: Tensor, b: Tensor, eps: float = 0.0) -> bool:
    """Equal but for rounding, which may differ with the number of samples; ``eps`` of a coarser dtype met inside."""
    tolerance = max(torch.finfo(b.dtype).eps, eps) ** 0.75
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
