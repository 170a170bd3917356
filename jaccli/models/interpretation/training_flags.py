"""Which operators change with the mode of the model, and which draw random numbers, by PyTorch's own schemas."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch._ops import OpOverload

# ``train`` of dropout and recurrent layers, ``training`` of batch normalisation and rrelu; ``dropout_p`` of attention
# is a probability, with no switch beside it.
_FLAGS: Final = ("train", "training", "dropout_p")


def training_flag(schema: Any) -> int | None:
    """The position of the argument that turns an operator's training mode on; None if it has no such mode."""
    return next((i for i, argument in enumerate(schema.arguments) if argument.name in _FLAGS), None)


def has_running_statistics(schema: Any) -> bool:
    """Whether it is a normalisation with running statistics: in training mode samples of a batch mix."""
    return any(argument.name == "running_mean" for argument in schema.arguments)


def draws_numbers(operator: Any) -> bool:
    """Whether PyTorch itself marks an operator as one that draws random numbers (``rand``, ``bernoulli``)."""
    return isinstance(operator, OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags
