"""Samples to train on: batches of them, and noisy copies around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.activations.sample_dimension import same_values
from jaccli.networks.network import Network

# Copies around the samples, at least: a handful a step is a noisy picture of what lies around.
COPIES = 64


@dataclass
class Batch:
    """Some samples.

    Attributes:
        inputs: of the model.
        targets: one row a sample, ``(batch, …)``.
        original_outputs: what the network gave before training, of any shapes; kept when it is first computed.
    """

    inputs: Inputs
    targets: Tensor | None = None
    original_outputs: list[Tensor] | None = None


@dataclass(frozen=True)
class Samples:
    """Samples to draw batches from.

    Args:
        inputs: all of them, with the further arguments.
        targets: ``(samples, …)``: numbers to fit, or classes; None to keep what the network does.
        together: further arguments with as many rows as there are samples have one row a sample.
        whole: the model takes no other number of samples, so that they are never cut.
    """

    inputs: Inputs
    targets: Tensor | None = None
    together: bool = False
    whole: bool = False

    def __len__(self) -> int:
        return self.inputs.batch

    def select(self, numbers: Sequence[int]) -> Batch:
        """The samples of these numbers, which may repeat."""
        targets = None if self.targets is None else Inputs((self.targets,)).select(numbers).args[0]
        return Batch(self.inputs.select(numbers, self.together), targets)

    def first(self, count: int) -> Batch:
        """The first ``count`` samples, or all where there are fewer or a model takes no other number."""
        return self.select(range(len(self) if self.whole else min(len(self), count)))

    def subset(self, numbers: Sequence[int]) -> Samples:
        """Some of them, as samples to draw from."""
        part = self.select(numbers)
        return replace(self, inputs=part.inputs, targets=part.targets)

    def evenly_spaced(self, most: int) -> Samples:
        """At most ``most`` of them, evenly spaced."""
        count = len(self)
        return self if count <= most or self.whole else self.subset([i * count // most for i in range(most)])

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.select(range(start, min(start + size, len(self))))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without end, in a new order in each epoch; samples that fill no batch are left out of that epoch."""
        if size >= len(self):
            # The same batch each time, so that its ``original_outputs`` are computed once.
            every = self.select(range(len(self)))
            while True:
                yield every
        while True:
            order = torch.randperm(len(self), generator=generator).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield self.select(order[start : start + size])


def has_rows_of_arguments(network: Network, inputs: Inputs) -> bool:
    """Whether further arguments hold one row a sample. Cost: where one might, some forward passes."""
    if inputs.batch < 2 or not inputs.may_have_rows:
        return False
    numbers = range(0, inputs.batch, 2)
    return same_values(network, inputs, inputs.select(numbers), numbers)


class NoisyCopies:
    """Copies of samples with noise, at which the function is held too: between few samples it would drift.

    Args:
        samples: those trained on.
        scale: standard deviation of the noise, in units of each feature's own over the samples.
    """

    def __init__(self, samples: Samples, scale: float) -> None:
        x = samples.inputs.args[0]
        self.samples, self.scale = samples, scale
        many = len(samples) > 1  # one sample has no spread over samples: that over its features takes its place
        self.spread = x.std(samples.inputs.dim, keepdim=True, unbiased=False) if many else x.std(unbiased=False)

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """``size`` samples, at least ``COPIES``, each moved; they are drawn anew."""
        count = len(self.samples) if self.samples.whole else max(size, COPIES)
        numbers = torch.randint(len(self.samples), (count,), generator=generator).tolist()
        inputs = self.samples.select(numbers).inputs
        x = inputs.args[0]
        noise = torch.randn(x.shape, generator=generator).to(x)
        return Batch(replace(inputs, args=(x + self.scale * self.spread * noise, *inputs.args[1:])))
