"""Whether two passes at one point give the same values: what draws behind jaccli's back does not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.record import Record, values
from jaccli.linear_maps.agreement import value_tolerance
from jaccli.linearization.rounding import apart, norms
from jaccli.networks.network import Network


def unsteady(network: Network, taken: Record) -> float:
    """The largest relative difference of a sample's target between two further passes, where it is more than
    rounding; else 0.

    Cost: a pass without gradients; another one where that differs from the pass that was ``taken``, whose kernels may
    be others for its gradients' sake.
    """
    first = {address: held.activation.detach() for address, held in taken.targets.items()}
    second = _values(network, taken)
    if second is None or not _apart(first, second):
        return 0.0
    third = _values(network, taken)
    return 0.0 if third is None else _apart(second, third)


def _values(network: Network, taken: Record) -> dict[Address, Tensor] | None:
    try:
        return values(network, taken.inputs, [*taken.sources], [*taken.targets])
    except Exception:  # what a later pass says is said of that pass
        return None


def _apart(first: Mapping[Address, Tensor], second: Mapping[Address, Tensor]) -> float:
    most = 0.0
    for address, value in first.items():
        other = second.get(address)
        if other is None or other.shape != value.shape or not value.numel():
            continue
        gap = apart(other, value) / norms(value).clamp(min=torch.finfo(torch.float64).tiny)
        gap = gap[gap > value_tolerance(torch.finfo(value.dtype).eps)]
        most = max(most, float(gap.max()) if gap.numel() else 0.0)
    return most
