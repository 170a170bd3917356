"""Some of the samples: cut out of the inputs, and the errors and checks where that cannot be done."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs, record
from jaccli.errors import UnsupportedError
from jaccli.linear_maps.agreement import values_agree
from jaccli.networks.network import Network
from jaccli.planning.linearize import Pair
from jaccli.text.wording import worded


def take_samples(inputs: Inputs, start: int, size: int) -> Inputs:
    """``size`` samples from ``start`` on, as views; further arguments with one row a sample are cut likewise."""
    if size >= inputs.batch:
        return inputs
    return inputs.each(lambda tensor, dim: tensor.narrow(dim, start, size))


def pilot_size(inputs: Inputs) -> int:
    """How many samples the first block has: few where samples are large."""
    x: Tensor = inputs.args[0]
    sample = x.numel() * x.element_size() // inputs.batch
    return max(defaults.PILOT_SAMPLES, defaults.PILOT_BYTES // max(sample, 1))


def one_batch_only(given: str, remedy: str) -> UnsupportedError:
    """The error for a model that takes one number of samples (``Network.only_batch``), where another is asked for."""
    return UnsupportedError(
        given,
        "it runs with no other number of samples",
        worded("{remedy}, or export the model with dynamic_shapes", remedy=remedy),
    )


def too_few_fit(batch: int, fits: int) -> UnsupportedError:
    """The same, where fewer samples than it takes fit the memory."""
    given = f"the model was exported for {batch} samples at a time, and {fits} fit the memory"
    return one_batch_only(given, worded("allow more with {max_memory}"))


def has_row_a_sample(network: Network, inputs: Inputs, pairs: Sequence[Pair], size: int) -> bool:
    """Whether the last ``size`` samples alone have the values that they have among all. To be called in a session.

    A further argument may have as many rows as there are samples, and not be one row a sample. Cost: where
    there is such an argument, two forward passes without gradients.
    """
    if not inputs.may_have_rows:
        return True
    sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
    # The last ones: of an argument that is not one row a sample, the first rows might fit by chance.
    size = min(size, inputs.batch)
    last = take_samples(inputs, inputs.batch - size, size)
    among_all = record(network, inputs, sources, targets, live=False).targets
    alone = record(network, last, sources, targets, live=False).targets
    return all(
        alone[t].activation.shape[1:] == among_all[t].activation.shape[1:]
        and values_agree(alone[t].activation, among_all[t].activation[-size:])
        for t in set(targets)
        if t in among_all
    )
