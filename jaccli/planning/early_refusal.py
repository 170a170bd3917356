"""A J that cannot fit is refused by what one sample tells, before a forward pass of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.names import MethodName
from jaccli.networks.network import Network
from jaccli.planning.decide import check_memory
from jaccli.planning.linearize import Linearization, Pair, preview


def refuse_too_large(
    network: Network,
    inputs: Inputs,
    pairs: Sequence[Pair],
    method: MethodName,
    max_memory: int | None,
    *,
    graph: bool = True,
    keep: int = 0,
    accept: Callable[[Linearization], bool] = lambda linearization: True,
) -> None:
    """Look at J of the first sample. To be called within ``computing``.

    Small inputs without a stated limit are not looked at: their pass is cheap, and few of them fill the memory. A model
    that refuses one sample is not either: what all samples show is checked in any case.

    Args:
        network: the model.
        inputs: all samples.
        pairs: source and target addresses.
        method: asked for.
        max_memory: bytes for J and the passes; by default a share of what is free.
        graph: whether the forward pass of all samples is to be recorded.
        keep: of how many samples J stays in memory.
        accept: whether a pair is wanted.

    Cost: a forward pass of one sample.

    Raises:
        TooLarge: J does not fit.
    """
    if inputs.batch < 2 or (max_memory is None and _bytes(inputs) <= defaults.PILOT_BYTES):
        return
    first = inputs.each(lambda tensor, dim: tensor.narrow(dim, 0, 1))
    ready = [linearization for linearization in preview(network, first, pairs, graph=graph) if accept(linearization)]
    for linearization in ready:
        limit = max_memory // len(ready) if max_memory is not None else None
        check_memory(linearization, method, max_memory=limit, keep=keep)


def _bytes(inputs: Inputs) -> int:
    first = inputs.args[0]
    return first.numel() * first.element_size() if isinstance(first, Tensor) else 0
