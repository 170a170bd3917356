"""Step 1c: which dimension of the model's input counts the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.entry_dimension import sample_dims, tensors_at
from jaccli.activations.nested import leaves
from jaccli.activations.record import Inputs, check_sample_dimension
from jaccli.linear_maps.agreement import values_agree
from jaccli.networks.network import Network

if TYPE_CHECKING:
    from jaxtyping import Shaped


def find_samples(network: Network, inputs: Inputs, addresses: Sequence[Address]) -> Inputs:
    """The inputs with ``dim`` set to the dimension of the samples: the first, unless an ``@DIM`` says otherwise.

    ``input@1`` says it of the input itself. ``lstm:out.1.0@1`` says it of another activation: then the input's samples
    are in the dimension of the same size. If several have that size, values decide (``entry_dimension``).

    Cost: a forward pass in the second case; two more for each dimension where several have that size.

    Raises:
        UsageError: the input has no such dimension.
    """
    dims = [a.dim for a in addresses if a.is_model_input and a.dim is not None]
    first = inputs.args[0]
    if dims:
        if isinstance(first, Tensor):
            check_sample_dimension(first, dims[0])
        return replace(inputs, dim=dims[0])
    others = [a for a in addresses if a.dim is not None]
    if not others or not isinstance(first, Tensor):
        return inputs
    tensors = tensors_at(network, inputs, others)
    sizes = {int(t.shape[a.dim]) for a, t in tensors.items() if a.dim is not None and a.dim < t.dim()}
    # Sizes decide where they are unambiguous: passes to compare values are needed only where they are not.
    fitting = [d for d, size in enumerate(first.shape) if size in sizes]
    if len(fitting) > 1:
        fitting = [d for d in fitting if _belongs_to(network, inputs, tensors, d)] or fitting
    return replace(inputs, dim=fitting[0]) if fitting else inputs


def _belongs_to(network: Network, inputs: Inputs, tensors: dict[Address, Tensor], dim: int) -> bool:
    """Whether the entries of an input dimension lie in the named dimensions of the tensors, of any shapes."""
    dims = sample_dims(network, inputs, tensors, dim)
    return dims is not None and all(address.dim in dims[address] for address in tensors)


def same_values(network: Network, every: Inputs, part: Inputs, numbers: Sequence[int]) -> bool:
    """Whether the samples ``numbers`` of ``every``, which alone are in ``part``, have the same outputs in both.

    Cost: two forward passes without gradients.
    """
    with torch.no_grad():
        whole = network.run(every.args, every.kwargs)
        try:
            alone = network.run(part.args, part.kwargs)
        except Exception:
            return False
    eps = max((torch.finfo(t.dtype).eps for t in network.tensors() if t.is_floating_point()), default=0.0)
    pairs = zip(leaves(whole), leaves(alone), strict=True)
    return all(_agree(a, b, every.batch, numbers, eps) for (_, a), (_, b) in pairs)


def _agree(
    whole: Shaped[Tensor, "..."], alone: Shaped[Tensor, "..."], batch: int, numbers: Sequence[int], eps: float
) -> bool:
    dims = [d for d, size in enumerate(whole.shape) if size == batch]
    if not dims or not whole.is_floating_point():
        return True
    rows = whole.index_select(dims[0], torch.tensor(numbers, device=whole.device))
    return rows.shape == alone.shape and values_agree(alone, rows, eps)
