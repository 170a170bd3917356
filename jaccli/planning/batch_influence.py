"""Whether J of some samples changes with the samples that are computed together with them, though no gradient flows.

An adaptive solver takes its steps from the largest error of the batch; routing by capacity and thresholds by a
batch's mean do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jaccli.activations.record import Inputs, values
from jaccli.autograd.seeds import gaussian
from jaccli.errors import JaccliError, warn
from jaccli.linear_maps.agreement import tolerance, value_tolerance
from jaccli.linearization.activation_memory import footprint
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.linearization.rounding import distances, norms, rounding, value_rounding
from jaccli.networks.network import Network
from jaccli.planning.linearize import Linearization, detached_inputs, linearize, readable
from jaccli.planning.memory import available
from jaccli.text.wording import worded

# Products are compared for a quarter of a block: three more graphs (``firsts, lasts, both``) are held meanwhile.
_SHARE = 4
# Tensors of the widest activation's size that a pass without gradients holds.
_TENSORS_OF_A_PASS = 4


def influence(network: Network, inputs: Inputs, block: Sequence[Linearization], limit: int | None = None) -> str | None:
    """How the first or the last samples differ alone and among all, where that is more than rounding; else None.

    Called once, where samples are about to be cut into blocks, within ``computing``.

    Cost: a pass without gradients of all samples, or of as many as fit; forward and backward passes of about as many
    samples as the first block has; where something differs, some more, which show what rounding does.

    Args:
        network: the model.
        inputs: all samples.
        block: the first of them, linearised alone, for each layer pair.
        limit: bytes that the pass of all samples may take; by default what is free.

    Returns:
        What differs and by how much; None also where the model does not take such numbers of samples, or draws
        or is not deterministic: another number of samples gets other numbers.
    """
    if network.draws.generators or network.draws.nondeterminism:
        return None
    first, batch = block[0].linear.batch, inputs.batch
    n = max(1, min(first // _SHARE, batch - first))
    # The first and the last samples: no block holds both groups, so that what one group does to the other shows.
    ends = [*range(n)], [*range(batch - n, batch)]
    try:
        parts = [inputs.select(numbers) for numbers in (*ends, ends[0] + ends[1])]
        firsts, lasts, both = (_linearized(network, part, block) for part in parts)
        values_of_all = _values(network, inputs.select(_fitting(block, batch, n, limit)), block)
    except JaccliError:  # the model does not take such a number of samples
        return None
    for value_of_all, alone, of_first, of_last, together in zip(values_of_all, block, firsts, lasts, both, strict=True):
        first_alone, last_alone, both_together = of_first.linear, of_last.linear, together.linear
        targets = [(alone.linear, value_of_all[:first]), (last_alone, value_of_all[-n:])]
        targets += [(first_alone, both_together.value[:n]), (last_alone, both_together.value[n:])]
        difference = max(_relative_difference(linear, None, target, linear.value) for linear, target in targets)
        if difference:
            return f"values differ by {difference:.2g} of themselves"
        if both_together.recorded_pass is not None:
            u = gaussian((2 * n, both_together.f.n_out), 5, value_of_all)
            rows = both_together.vjp(u)
            products = (first_alone, u[:n], rows[:n]), (last_alone, u[n:], rows[n:])
            difference = max(_relative_difference(linear, v, row, linear.vjp(v)) for linear, v, row in products)
            if difference:
                return f"derivatives differ by {difference:.2g} of themselves"
    return None


def tell_influence(difference: str, batch: int, block: int) -> None:
    """Warn that J is that of all samples together, or of blocks of them; ``difference`` as ``influence`` returns it."""
    cut = worded(
        "blocks of {block} of the {batch} samples, as the memory allows ({max_memory})", block=block, batch=batch
    )
    blocks = cut if block < batch else f"one block of all {batch} samples"
    text = (
        "samples influence each other through the batch: alone and in company their {difference}; "
        "J is taken in {blocks}, and changes with the samples that are given together"
    )
    warn(worded(text, difference=difference, blocks=blocks))


def _linearized(network: Network, inputs: Inputs, block: Sequence[Linearization]) -> list[Linearization]:
    graph = block[0].linear.recorded_pass is not None
    return linearize(network, inputs, [p.pair for p in block], graph=graph, probe=False)


def _values(network: Network, inputs: Inputs, block: Sequence[Linearization]) -> list[Tensor]:
    """Targets ``(batch, …)`` from one pass without gradients."""
    with readable(inputs):
        targets = values(network, detached_inputs(inputs), [p.pair[0] for p in block], [p.pair[1] for p in block])
    return [targets[p.pair[1]] for p in block]


def _fitting(block: Sequence[Linearization], batch: int, n: int, limit: int | None) -> list[int]:
    """Numbers of all samples, or of the first block, the last ``n`` and as many between as fit, evenly."""
    linear = block[0].linear
    free = limit if limit is not None else available(linear.value.device)
    middle = batch - n - linear.batch
    widest = max(footprint(p.linear).widest for p in block)
    count = min(middle, max(0, free * linear.batch // (_TENSORS_OF_A_PASS * max(widest, 1)) - n - linear.batch))
    return [*range(linear.batch), *(linear.batch + i * middle // count for i in range(count)), *range(batch - n, batch)]


def _relative_difference(linear: LinearizedFunction, u: Tensor | None, among: Tensor, alone: Tensor) -> float:
    """The largest relative difference of a sample's f(x), or Jᵀu, where it is more than rounding; else 0.

    Args:
        linear: f of the samples alone.
        u: the cotangent ``(batch, n_out)``; None to compare f(x).
        among: f(x) or Jᵀu of these samples among others, ``(batch, …)``.
        alone: the same of these samples alone.
    """
    if among.shape != alone.shape:
        return 0.0
    difference, size = distances(among, alone), norms(alone)
    eps = torch.finfo(alone.dtype).eps
    if not bool((difference > (value_tolerance(eps) if u is None else tolerance(eps)) * size).any()):
        return 0.0
    if u is None:
        reach = value_rounding(linear)
    else:
        noise = rounding(linear, u)
        reach = noise.row if noise is not None else tolerance(linear.rounding) * size
    relative = torch.where(difference > reach, difference / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)
    return float(relative.max())
