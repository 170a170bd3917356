"""Whether two passes at one point give the same values. Random numbers that jaccli cannot fix change them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.record import ForwardRecord, values
from jaccli.linear_maps.agreement import value_tolerance
from jaccli.linearization.rounding import distances, norms
from jaccli.networks.network import Network


def unsteady(network: Network, recording: ForwardRecord) -> float:
    """The largest relative difference of a sample's target between two passes, where it is more than rounding; else 0.

    Cost: a pass without gradients. Where that differs from the recorded pass, another one: the recorded pass may use
    other kernels, since it has gradients.
    """
    first = {address: held.activation.detach() for address, held in recording.targets.items()}
    second = _values(network, recording)
    if second is None or not _largest_difference(first, second):
        return 0.0
    third = _values(network, recording)
    return 0.0 if third is None else _largest_difference(second, third)


def _values(network: Network, recording: ForwardRecord) -> dict[Address, Tensor] | None:
    """The targets' activations ``(batch, …)`` from another pass; None where it fails."""
    try:
        return values(network, recording.inputs, [*recording.sources], [*recording.targets])
    except Exception:  # the error of a later pass is reported with that pass
        return None


def _largest_difference(first: Mapping[Address, Tensor], second: Mapping[Address, Tensor]) -> float:
    """The largest relative difference of a sample of activations ``(batch, …)``, where it is more than rounding."""
    largest = 0.0
    for address, value in first.items():
        other = second.get(address)
        if other is None or other.shape != value.shape or not value.numel():
            continue
        gap = distances(other, value) / norms(value).clamp(min=torch.finfo(torch.float64).tiny)
        gap = gap[gap > value_tolerance(torch.finfo(value.dtype).eps)]
        largest = max(largest, float(gap.max()) if gap.numel() else 0.0)
    return largest
