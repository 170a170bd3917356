"""f on a copy of the model in float64: the same function with more digits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jaccli.linear_maps.norms import norm
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.networks.network import Network
from jaccli.runtime.dispatch import Mode, passed

# The copy is the same function where its values are near in this power of eps.
NEAR = 0.3


@dataclass(frozen=True)
class Twin:
    """f itself, or a copy of it in float64.

    Args:
        f: it.
        point: in its dtype.
        value: there, float64 ``(batch, n_out)``.
        eps: of the shortest dtype that it meets.
        inside: of the shortest dtype that f itself meets.
        lost: ``(batch,)`` relative difference of their values.
        wide: it is the copy.
    """

    f: Callable[[Tensor], Tensor]
    point: Tensor
    value: Tensor
    eps: float
    inside: float
    lost: Tensor
    wide: bool = False


def twin(linear: LinearizedFunction) -> Twin:
    """f in float64, or as it is where there is no such form of it that has the same values, or numbers are drawn.

    Cost: a copy of the model, and two forward passes.
    """
    network = linear.f.network
    inside, _ = _met(linear.evaluate, linear.point, network)
    value = linear.value.reshape(linear.batch, -1).double()
    own = Twin(linear.evaluate, linear.point, value, inside, inside, torch.zeros_like(value[:, 0]))
    if linear.point.dtype == torch.float64 or network.draws.seen:  # other numbers are drawn in another dtype
        return own
    try:
        copy = network.cast(None, torch.float64)
        f = replace(linear.f, network=copy, inputs=linear.f.inputs.converted(dtype=torch.float64))
        eps, there = _met(f, linear.point.double(), network)
        lost, size = (norm(t.nan_to_num(0, 0, 0), (1,)) for t in (there.reshape(value.shape) - value, value))
    except Exception:  # there is no such form of it, or no memory for one
        return own
    lost = torch.where(size > 0, lost / size, 0)
    wide = there.dtype == torch.float64 and bool((lost <= inside**NEAR).all())
    copied = Twin(f, linear.point.double(), there.reshape(value.shape), eps, inside, lost, wide=True)
    return copied if wide else replace(own, lost=lost)


class _Met(Mode):
    """The largest eps of the dtypes of real and complex numbers that operators give."""

    eps = 0.0

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex()):
                self.eps = max(self.eps, torch.finfo(item.dtype).eps)
        return result


def _met(f: Callable[[Tensor], Tensor], point: Tensor, network: Network) -> tuple[float, Tensor]:
    """Eps of the shortest dtype that f meets, and its value."""
    met = _Met()
    with torch.no_grad(), nullcontext() if network.unwatchable else met:
        value = f(point)
    return max(met.eps, torch.finfo(value.dtype).eps), value
