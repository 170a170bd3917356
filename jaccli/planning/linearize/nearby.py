"""Points near the samples, where f is asked once more."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.torch_errors import reraise_out_of_memory


def perturbed(point: Tensor) -> Tensor:
    """A point nearby, of the same shape ``(batch, …)`` and dtype.

    Every value is some percent smaller, which stays in a range that a model may insist on. Samples of zeros are moved
    away from zero.
    """
    generator = torch.Generator().manual_seed(1)
    share = 0.02 + 0.08 * torch.rand(point.shape, generator=generator).to(point)
    zero = (point == 0).reshape(point.shape[0], -1).all(1).reshape(-1, *[1] * (point.dim() - 1))
    return torch.where(zero, share, point * (1 - share))


def value_at(linear: LinearizedFunction, point: Tensor) -> Tensor | None:
    """f at another point ``(batch, *source shape)``: ``(batch, *target shape)``. Cost: one evaluation.

    None where the model does not accept it, or returns another shape there.
    """
    try:
        with torch.no_grad():
            value = linear.evaluate(point)
    except Exception as error:
        reraise_out_of_memory(error)
        return None
    return value if value.shape == linear.value.shape else None
