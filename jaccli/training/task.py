"""The task loss of a training: fit targets, or keep the outputs of the original network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from jaccli.activations.nested import leaves
from jaccli.activations.record import Inputs
from jaccli.errors import UnsupportedError, UsageError
from jaccli.networks.network import Network
from jaccli.planning.linearize import computing, readable, set_aside
from jaccli.text.wording import Worded, term, worded
from jaccli.training.samples import Batch, Samples

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

# The least number of samples that the spread of outputs is taken over, where there are as many.
SPREAD_OVER = 256
# The spread of outputs that hardly differ between samples is taken as this share of their size.
LEAST_SPREAD = 1e-3


def outputs_of(network: Network, inputs: Inputs) -> list[Tensor]:
    """The floating-point tensors that the network returns, of any shapes, with a graph where gradients are on."""
    with_gradients = torch.is_grad_enabled()
    with computing(network, frozen=False), torch.set_grad_enabled(with_gradients), readable(inputs):
        # cuDNN's recurrent kernels have no backward pass in evaluation mode: then the pass runs again without them.
        values = _floats(network.run(inputs.args, inputs.kwargs))
        return _floats(network.run(inputs.args, inputs.kwargs)) if set_aside(network, values) else values


def _floats(values: object) -> list[Tensor]:
    """The floating-point tensors, of any shapes, in a nested value."""
    return [tensor for _, tensor in leaves(values) if tensor.is_floating_point()]


class Original:
    """The network as it was, in a copy of its own, and how far another has moved from it.

    Args:
        network: as it is before training.
        samples: tell how much the outputs vary from sample to sample.
        size: of a batch.
    """

    def __init__(self, network: Network, samples: Samples, size: int) -> None:
        self.network = network.cast()
        first = samples.first(max(size, SPREAD_OVER))
        self.spreads = [_spread(y, first.inputs) for y in self.outputs(first)]
        if not self.spreads:
            raise UnsupportedError(
                "the model returns no floating-point tensor", "expected one that can be held in place"
            )

    def outputs(self, batch: Batch) -> list[Tensor]:
        """What the original network gives for a batch, of any shapes; kept in the batch."""
        if batch.original_outputs is None:
            with torch.no_grad():
                batch.original_outputs = outputs_of(self.network, batch.inputs)
        return batch.original_outputs

    def moved(self, outputs: Sequence[Tensor], batch: Batch) -> Float[Tensor, ""]:
        """How far outputs, of any shapes, are from the original's.

        The mean square of the difference, in units of the outputs' variance over samples; the mean over the tensors.
        """
        shares = [
            (y - y0).square().mean() / spread
            for y, y0, spread in zip(outputs, self.outputs(batch), self.spreads, strict=True)
        ]
        return torch.stack(shares).mean()


def _spread(output: Shaped[Tensor, "..."], inputs: Inputs) -> float:
    """Variance over samples; where there is none, the mean square; never 0."""
    # MPS has no float64.
    output = output.detach().double() if output.device.type != "mps" else output.detach()
    dims = [d for d in (inputs.dim, *range(output.dim())) if d < output.dim() and output.shape[d] == inputs.batch]
    size = float(output.square().mean())
    spread = float((output - output.mean(dims[0], keepdim=True)).square().mean()) if dims else size
    return max(spread, LEAST_SPREAD * size) or 1.0


@dataclass(frozen=True)
class TrainingTask:
    """What the network is to do besides: fit the targets where there are some, else what it did before.

    Args:
        original: the network as it was.
        scale: the loss is divided by this before it is weighed against the deviation.
        classes: the dimension of the output that counts the classes, where targets are their numbers.
    """

    original: Original
    scale: float = 1.0
    classes: int | None = None

    def loss(self, outputs: Sequence[Tensor], batch: Batch) -> Float[Tensor, ""]:
        """Of outputs of any shapes: mean squared error, cross entropy, or ``Original.moved``."""
        if batch.targets is None:
            return self.original.moved(outputs, batch)
        if self.classes is None:
            return F.mse_loss(outputs[0], batch.targets.reshape(outputs[0].shape))
        return F.cross_entropy(outputs[0].movedim(self.classes, -1).flatten(0, -2), batch.targets.flatten())


def task_of(original: Original, samples: Samples, name: str = "targets") -> TrainingTask:
    """The task that the targets set; their variance, or log(classes), is what its loss is measured by.

    Raises:
        UsageError: targets that do not fit what the network returns.
    """
    targets, flag = samples.targets, term(name)
    if targets is None:
        return TrainingTask(original)
    few = samples.first(2)
    outputs = original.outputs(few)
    if len(outputs) != 1 or samples.inputs.dim or len(outputs[0]) != few.inputs.batch:
        what = f"{len(outputs)} tensors" if len(outputs) != 1 else f"a tensor of shape {tuple(outputs[0].shape)}"
        raise UsageError(
            worded("{flag}: the model returns {what}", flag=flag, what=what),
            "expected one tensor whose first dimension is the samples",
        )
    shape, each = tuple(outputs[0].shape), tuple(targets.shape[1:])
    if targets.is_floating_point():
        if math.prod(each) != math.prod(shape[1:]):
            given = worded("{flag}: a row has shape {each}", flag=flag, each=each)
            raise UsageError(given, f"expected {shape[1:]}, as the model's output")
        return TrainingTask(original, float(targets.float().var(unbiased=False)) or 1.0)
    return _classification(original, targets, shape, flag)


def _classification(
    original: Original, targets: Shaped[Tensor, "samples *each"], shape: tuple[int, ...], flag: Worded
) -> TrainingTask:
    each = tuple(size for size in targets.shape[1:] if size != 1)
    # Classes last, as of words; else second, as of pixels.
    fitting = [
        d for d in (len(shape) - 1, 1) if d > 0 and tuple(s for s in (*shape[1:d], *shape[d + 1 :]) if s != 1) == each
    ]
    if not fitting:
        raise UsageError(
            worded(
                "{flag}: integers are classes, and a row of them has shape {row}",
                flag=flag,
                row=tuple(targets.shape[1:]),
            ),
            f"expected {shape[1:-1]}: one class for each row of the model's output, {shape[1:]}",
            "save numbers to fit as floats",
        )
    least, most, count = int(targets.min()), int(targets.max()), shape[fitting[0]]
    if least < 0 or most >= count:
        given = worded("{flag}: classes from {least} to {most}", flag=flag, least=least, most=most)
        raise UsageError(given, f"expected 0 to {count - 1}, the model's")
    return TrainingTask(original, math.log(max(count, 2)), fitting[0])
