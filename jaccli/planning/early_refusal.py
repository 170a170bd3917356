"""Refuses a J that cannot fit, from a forward pass of one sample, before one of all samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """Check the memory of J as the first sample shows it. To be called within ``computing``.

    Small inputs without a stated limit are not checked here: their pass is cheap, and few of them fill the memory.
    Neither is a model that refuses one sample. ``decide`` checks again with all samples.

    Args:
        network: the model.
        inputs: all samples.
        pairs: source and target addresses.
        method: the user's choice.
        max_memory: bytes for J and the passes; by default a share of what is free.
        graph: whether the forward pass of all samples is to be recorded.
        keep: of how many samples J stays in memory.
        accept: whether a pair is wanted.

    Cost: a forward pass of one sample.

    Raises:
        TooLarge: J does not fit.
    """
    x = inputs.args[0]
    if inputs.batch < 2 or (max_memory is None and x.numel() * x.element_size() <= defaults.PILOT_BYTES):
        return
    first = inputs.each(lambda tensor, dim: tensor.narrow(dim, 0, 1))
    accepted = [p for p in preview(network, first, pairs, graph=graph) if accept(p)]
    for linearization in accepted:
        limit = max_memory // len(accepted) if max_memory is not None else None
        check_memory(linearization, method, max_memory=limit, keep=keep)
