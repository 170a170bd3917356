"""Advice for a caller whose samples may be in another dimension than the first, or who left the batch dimension out.

It is computed only after an error, or when samples turn out to depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.entry_dimension import sample_dims, tensors_or_none
from jaccli.activations.record import Inputs
from jaccli.linear_maps.agreement import values_agree
from jaccli.networks.network import Network
from jaccli.text.wording import Worded, worded

if TYPE_CHECKING:
    from jaxtyping import Shaped

ONE_SAMPLE = "one sample has a dimension of 1 in front of it: x[None]"


def misread(network: Network, inputs: Inputs, pair: tuple[Address, Address]) -> Worded | None:
    """Names that say where the samples are, as advice; None if they are where the names say, or if no dimension fits.

    To be called in a session. Cost: two forward passes without gradients for each dimension of the input, and two.
    """
    x = inputs.args[0]
    if not isinstance(x, Tensor):
        return None
    whole = tensors_or_none(network, inputs, pair)
    # First the hypothesis that names are right, then a missing batch dimension, then each other dimension.
    dims_as_named = sample_dims(network, inputs, whole, inputs.dim) if whole is not None else None
    if dims_as_named is not None:
        right = all((address.dim or 0) in dims_as_named[address] for address in pair)
        return None if right else _advice(pair, dims_as_named, inputs.dim)
    if inputs.dim == 0 and _is_one_sample(network, inputs, pair, whole):
        return worded(ONE_SAMPLE)
    for dim in range(x.dim()) if whole is not None and _may_be_sequence(x) else ():
        dims = sample_dims(network, inputs, whole or {}, dim) if dim != inputs.dim else None
        if dims is not None:
            return _advice(pair, dims, dim)
    return None


def _is_one_sample(
    network: Network, inputs: Inputs, pair: tuple[Address, Address], whole: dict[Address, Tensor] | None
) -> bool:
    """Whether the model takes the input as a batch of one; and gives the same values, if it takes the input as it is.

    ``whole`` holds tensors of any shapes, or is None where the model refuses the input as it is. A model that gives a
    single number for a table or more is taken for a loss of a whole batch.
    """
    if whole is not None and not whole[pair[1]].dim() and inputs.args[0].dim() > 1:
        return False
    batch = Inputs((inputs.args[0][None], *inputs.args[1:]), inputs.kwargs)
    one = tensors_or_none(network, batch, pair)
    return one is not None and (whole is None or all(_same(one[address], whole[address]) for address in one))


def _same(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Whether they are equal but for dimensions of size 1."""
    return a.numel() == b.numel() and values_agree(a.reshape(b.shape), b)


def _may_be_sequence(x: Shaped[Tensor, "..."]) -> bool:
    """Whether its dimensions can be steps and samples. The columns of a table cannot be samples."""
    return x.dim() > 2 or not x.is_floating_point()


def _advice(pair: tuple[Address, Address], dims: dict[Address, set[int]], dim: int) -> Worded:
    """The pair's names with ``@DIM``, for samples in dimension ``dim`` of the input and ``dims`` of the activations."""
    old = [address.dim or 0 for address in pair]
    new = [was if was in dims[address] else min(dims[address]) for was, address in zip(old, pair, strict=True)]
    names = [address.with_dim(d) for address, d in zip(pair, new, strict=True)]
    options = [worded("{source:{name}}", name=names[0])] if new[0] != old[0] or new == old else []
    options += [worded("{target:{name}}", name=names[1])] if new[1] != old[1] else []
    text = "where the samples are in dimension {dim} of the input, say {first}" + " and {last}" * (len(options) - 1)
    return worded(text, dim=dim, first=options[0], last=options[-1])
