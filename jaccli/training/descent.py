"""The parameters that are trained, and the steps of Adam that change them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.models.adapt import as_network
from jaccli.networks.dtypes import is_whole
from jaccli.networks.network import Network

# Share of the steps in which the learning rate is warmed up, and how many at most. Adam's second moments are averages
# of few gradients at first: full steps by them would undo what the network has learnt.
WARM_UP = 0.1
WARM_STEPS = 100


@dataclass(frozen=True)
class Parameter:
    """A parameter that is trained, ``value``, and its counterpart of the same shape in the model to be ``written``."""

    name: str
    value: Tensor
    written: Tensor

    def settle(self) -> None:
        """The value into the model to be written, and back as it was rounded there."""
        with torch.no_grad():
            self.written.copy_(self.value)
            self.value.copy_(self.written)


def parameters_of(network: Network, model: nn.Module) -> list[Parameter]:
    """The floating-point and complex parameters of a network, set to ask for gradients.

    Args:
        network: what is trained.
        model: the same model loaded again; it tells parameters from buffers, which a network does not, and
            their names.

    Raises:
        UnsupportedError: there are none.
        RefusedError: one is not finite.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = zip(as_network(model).tensors(), network.tensors(), strict=True)
    parameters = [Parameter(names[id(w)], v, w) for w, v in tensors if id(w) in names and not is_whole(v)]
    if not parameters:
        raise UnsupportedError(
            "the model has no floating-point parameters to train",
            "expected weights that are parameters: freezing or quantising makes constants of them",
            "give the model as it was before",
        )
    for one in parameters:
        if not bool(one.value.isfinite().all()):
            raise RefusedError(f"the parameter {one.name!r} is not finite", "expected finite weights to start from")
        one.value.requires_grad_(True)
    return parameters


@dataclass
class Descent:
    """Adam (D. P. Kingma and J. Ba, 2015), with a warm-up of the learning rate and then half a cosine down to 0
    (I. Loshchilov and F. Hutter, *SGDR*, 2017).

    Args:
        values: parameters, of any shapes.
        steps: of the whole run.
        lr: the highest learning rate.
    """

    values: Sequence[Tensor]
    steps: int
    lr: float
    _adam: torch.optim.Adam = field(init=False)
    _schedule: torch.optim.lr_scheduler.LambdaLR = field(init=False)

    def __post_init__(self) -> None:
        self._adam = torch.optim.Adam(list(self.values), lr=self.lr)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adam, self._share)

    def _share(self, step: int) -> float:
        warm = min(WARM_UP * self.steps, WARM_STEPS)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(self.steps - warm, 1)))

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of a scalar loss, and the next learning rate."""
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        self._schedule.step()
