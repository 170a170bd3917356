"""Whether J of some samples changes with the samples that are taken together with them, though no gradient flows.

An adaptive solver takes its steps from the largest error of the batch; routing by capacity and thresholds by a
batch's mean do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.activations.record import Inputs, values
from jaccli.errors import JaccliError, warn
from jaccli.linear_maps.agreement import tolerance, value_tolerance
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.linearization.rounding import apart, norms, rounding, value_rounding
from jaccli.networks.network import Network
from jaccli.planning.linearize import Linearization, linearize, own, readable
from jaccli.planning.memory import available, footprint
from jaccli.text.wording import worded

# Of the samples that fit, one in so many is asked for products: three more graphs are held for a moment.
_SHARE = 4
# Tensors of the widest activation's size that a pass without gradients holds.
_HELD = 4


def influence(network: Network, inputs: Inputs, ready: Sequence[Linearization], limit: int | None = None) -> str | None:
    """How the first or the last samples differ alone and in company, where that is more than rounding; else None.

    Asked where samples are first cut. To be called within ``computing``, as ``linearize``. Cost: a pass without
    gradients of all samples, or of as many as fit; forward and backward passes of about as many samples as were
    prepared; where something differs, some more, which tell what rounding does.

    Args:
        network: the model.
        inputs: all samples.
        ready: the first of them, prepared alone, for each layer pair.
        limit: bytes that the pass of all samples may take; by default what is free.

    Returns:
        What differs and by how much; None also where the model does not take such numbers of samples, or draws
        or is not deterministic: another number of samples gets other numbers.
    """
    if network.draws.seen or network.draws.unsteady:
        return None
    first, batch = ready[0].linear.batch, inputs.batch
    n = max(1, min(first // _SHARE, batch - first))
    ends = [*range(n)], [*range(batch - n, batch)]
    try:
        heads, tails, both = (_prepared(network, _taken(inputs, part), ready) for part in (*ends, ends[0] + ends[1]))
        among = _values(network, _taken(inputs, _fitting(ready, batch, n, limit)), ready)
    except JaccliError:
        return None
    for whole, block, head, tail, company in zip(among, ready, heads, tails, both, strict=True):
        pairs = [(block.linear, whole[:first]), (tail.linear, whole[-n:])]
        pairs += [(head.linear, company.linear.value[:n]), (tail.linear, company.linear.value[n:])]
        off = max(_off(linear, None, values, linear.value) for linear, values in pairs)
        if off:
            return f"values differ by {off:.2g} of themselves"
        if company.linear.recorded_pass is not None:
            u = torch.randn(2 * n, block.linear.f.n_out, generator=torch.Generator().manual_seed(5)).to(whole)
            rows = company.linear.vjp(u)
            products = (head.linear, u[:n], rows[:n]), (tail.linear, u[n:], rows[n:])
            off = max(_off(linear, v, found, linear.vjp(v)) for linear, v, found in products)
            if off:
                return f"derivatives differ by {off:.2g} of themselves"
    return None


def tell_influence(found: str, batch: int, block: int) -> None:
    """Warn that J is of all samples together, or of blocks of them."""
    cut = worded(
        "blocks of {block} of the {batch} samples, as the memory allows ({max_memory})", block=block, batch=batch
    )
    taken = cut if block < batch else f"one block of all {batch} samples"
    text = (
        "samples influence each other through the batch: alone and in company their {found}; "
        "J is taken in {taken}, and changes with the samples that are given together"
    )
    warn(worded(text, found=found, taken=taken))


def _prepared(network: Network, inputs: Inputs, ready: Sequence[Linearization]) -> list[Linearization]:
    graph = ready[0].linear.recorded_pass is not None
    return linearize(network, inputs, [p.pair for p in ready], graph=graph, probe=False)


def _values(network: Network, inputs: Inputs, ready: Sequence[Linearization]) -> list[Tensor]:
    """Targets ``(batch, …)`` from one pass without gradients."""
    with readable(inputs):
        found = values(network, own(inputs), [p.pair[0] for p in ready], [p.pair[1] for p in ready])
    return [found[p.pair[1]] for p in ready]


def _fitting(ready: Sequence[Linearization], batch: int, n: int, limit: int | None) -> list[int]:
    """Numbers of all samples, or of the first block, the last ``n`` and as many between as fit, evenly."""
    linear = ready[0].linear
    room = limit if limit is not None else available(linear.value.device)
    middle = batch - n - linear.batch
    widest = max(footprint(p.linear).widest for p in ready)
    count = min(middle, max(0, room * linear.batch // (_HELD * max(widest, 1)) - n - linear.batch))
    return [*range(linear.batch), *(linear.batch + i * middle // count for i in range(count)), *range(batch - n, batch)]


def _taken(inputs: Inputs, numbers: Sequence[int]) -> Inputs:
    def rows(tensor: Tensor, dim: int) -> Tensor:
        return tensor.index_select(dim, torch.tensor(numbers, device=tensor.device))

    return inputs if len(numbers) == inputs.batch else inputs.each(rows)


def _off(linear: LinearizedFunction, u: Tensor | None, found: Tensor, alone: Tensor) -> float:
    """The largest relative difference of a sample's f(x), or Jᵀu, where it is more than rounding; else 0."""
    if found.shape != alone.shape:
        return 0.0
    difference, size = apart(found, alone), norms(alone)
    eps = torch.finfo(alone.dtype).eps
    if not bool((difference > (value_tolerance(eps) if u is None else tolerance(eps)) * size).any()):
        return 0.0
    if u is None:
        reach = value_rounding(linear)
    else:
        noise = rounding(linear, u)
        reach = noise.row if noise is not None else tolerance(linear.rounding) * size
    off = torch.where(difference > reach, difference / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)
    return float(off.max())
