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

# The copy is the same function if its values differ by no more than eps to this power: further apart, it is another.
NEAR = 0.3


@dataclass(frozen=True)
class Twin:
    """f itself, or a copy of it in float64.

    Args:
        f: the one or the other, ``(batch, *source shape)`` → ``(batch, *target shape)``.
        point: where f was linearized, in the dtype of this ``f``.
        value: ``f(point)``, float64 ``(batch, n_out)``.
        eps: machine epsilon of the shortest dtype that this ``f`` meets inside.
        own_eps: the same of the network's own f.
        dtype_error: relative difference of the two values, ``(batch,)``: what the network's own dtype loses.
        is_copy: ``f`` is the copy.
    """

    f: Callable[[Tensor], Tensor]
    point: Tensor
    value: Tensor
    eps: float
    own_eps: float
    dtype_error: Tensor
    is_copy: bool = False


def twin(linear: LinearizedFunction) -> Twin:
    """f in float64; or f itself, where no such copy has the same values or the network draws random numbers.

    Cost: a copy of the model, and two forward passes.
    """
    network = linear.f.network
    own_eps, _ = _evaluated(linear.evaluate, linear.point, network)
    value = linear.value.reshape(linear.batch, -1).double()
    itself = Twin(linear.evaluate, linear.point, value, own_eps, own_eps, torch.zeros_like(value[:, 0]))
    if linear.point.dtype == torch.float64 or network.draws.generators:  # other numbers are drawn in another dtype
        return itself
    try:
        copy = network.cast(None, torch.float64)
        f = replace(linear.f, network=copy, inputs=linear.f.inputs.converted(dtype=torch.float64))
        eps, copied = _evaluated(f, linear.point.double(), network)
        error, size = (norm(t.nan_to_num(0, 0, 0), (1,)) for t in (copied.reshape(value.shape) - value, value))
    except Exception:  # an operator has no float64 form, or there is no memory for the copy
        return itself
    error = torch.where(size > 0, error / size, 0)
    # A model may cast to a dtype of its own choice inside: then the copy is no better than f.
    if copied.dtype != torch.float64 or not bool((error <= own_eps**NEAR).all()):
        return replace(itself, dtype_error=error)
    return Twin(f, linear.point.double(), copied.reshape(value.shape), eps, own_eps, error, is_copy=True)


class _CoarsestDtype(Mode):
    """The largest machine epsilon among the floating-point and complex results of operators."""

    eps = 0.0

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex()):
                self.eps = max(self.eps, torch.finfo(item.dtype).eps)
        return result


def _evaluated(f: Callable[[Tensor], Tensor], point: Tensor, network: Network) -> tuple[float, Tensor]:
    """Machine epsilon of the shortest dtype that f meets at a point ``(batch, …)``, and its value ``(batch, …)``."""
    dtypes = _CoarsestDtype()
    with torch.no_grad(), nullcontext() if network.refuses_modes else dtypes:
        value = f(point)
    return max(dtypes.eps, torch.finfo(value.dtype).eps), value
