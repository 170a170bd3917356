"""Step 4, two locations → function: the part of a network between two of its activations.

This is the only place where a network is cut: a run starts at its own beginning, has its value at the source replaced
by ``h``, and is stopped at the target.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli.activations.boundary import ActivationLocation, Boundary, BoundaryTap, module_paths
from jaccli.activations.record import Inputs
from jaccli.autograd.walk import mend_batch_norm
from jaccli.errors import UnsupportedError
from jaccli.networks.network import Network, StopRun

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class LayerFunction:
    """f: h_source ↦ h_target, with everything that does not depend on the source held constant.

    ``h_source`` is ``(batch, *source.view.shape)`` and ``h_target`` ``(batch, *target.view.shape)``, in the dtypes
    that the model has there.

    Cost of a call: a forward pass up to the target.
    """

    network: Network
    inputs: Inputs
    source: ActivationLocation
    target: ActivationLocation

    @property
    def n_in(self) -> int:
        """Size of the source, of one sample."""
        return self.source.view.size

    @property
    def n_out(self) -> int:
        """Size of the target, of one sample."""
        return self.target.view.size

    def __call__(self, h: Shaped[Tensor, "batch *source"]) -> Shaped[Tensor, "batch *target"]:
        """``h_target`` for ``h_source``.

        Raises:
            UnsupportedError: with this ``h`` the model does not reach the target.
        """
        tap = _Substitute(self.source, self.target, h)
        with suppress(StopRun):  # raised at the target: nothing behind it is computed
            tap.run(self.network, self.inputs.args, self.inputs.kwargs)
        if tap.reached is None:
            raise UnsupportedError(
                f"layer {str(self.target.address)!r} was reached at the sample and is not near it",
                "the model takes another branch there",
            )
        if tap.reached.grad_fn is not None:
            mend_batch_norm(tap.reached)
        return tap.reached

    def tiled(self, copies: int) -> LayerFunction:
        """The same function on ``copies`` copies of the batch, one after another in dimension 0."""

        def repeat(tensor: Tensor, dim: int) -> Tensor:
            return torch.cat([tensor] * copies, dim)

        return replace(self, inputs=self.inputs.each(repeat))


class _Substitute(BoundaryTap):
    """The tap of one call: puts ``h`` in at the source, keeps the target's activation and stops the run there."""

    gives_copies = True

    def __init__(
        self, source: ActivationLocation, target: ActivationLocation, h: Shaped[Tensor, "batch *source"]
    ) -> None:
        self.source, self.target, self.h = source, target, h
        self.paths = module_paths((source.boundary, target.boundary))
        self.reached: Tensor | None = None

    def at(self, boundary: Boundary, value: Any) -> Any:
        if boundary == self.source.boundary:
            # A copy: an in-place operator of the model must not change the caller's point.
            value = self.source.put(value, self.h.clone())
        if boundary == self.target.boundary:
            self.reached = self.target.get(value)
            raise StopRun
        return value
