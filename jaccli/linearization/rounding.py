"""What rounding does to f(x) and to Jᵀu: measured by running the network again with other rounding errors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jaccli.autograd.products import vjp
from jaccli.linear_maps.norms import norm
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.runtime.dispatch import Mode, passed
from jaccli.runtime.torch_errors import reraise_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Inexact, Shaped

# Results are moved by 16 units in the last place, which stands out from the rounding that happens anyway, but by at
# most this share of themselves: beyond it, the network computes something else.
UNITS = 16
MOST = 2.0**-6
# A difference counts as rounding up to 8 times the effect of one unit in the last place of every result.
ALLOWED = 8
# What moves by this share of itself has lost all digits: then the effect of one unit cannot be had by dividing.
LOST = 0.25
# Two runs at one point may differ by this share of the effect (an accelerator's order of sums) and still be the same.
STEADY = 0.25
DRAWS = 2
# A product whose rounding is this share of it is lost in rounding.
DROWNED = 0.5


@dataclass(frozen=True)
class Rounding:
    """How far rounding may move f(x) and Jᵀu: Euclidean norms of each sample, float64 ``(batch,)`` on the CPU.

    Args:
        value: of the change of f(x).
        row: of the change of Jᵀu.
        size: of Jᵀu itself.
        steady: f and its backward pass are deterministic: two runs agree up to rounding.
    """

    value: Tensor
    row: Tensor
    size: Tensor
    steady: bool

    def drowned(self) -> Bool[Tensor, "batch"]:
        """The samples whose Jᵀu is not much more than rounding: ``(batch,)`` booleans."""
        return self.row > DROWNED * self.size


def rounding(linear: LinearizedFunction, u: Inexact[Tensor, "batch n_out"]) -> Rounding | None:
    """Rounding errors by Monte Carlo arithmetic (Parker 1997): every operator's result is moved by some units in the
    last place of its own dtype, forward and backward, so that lower precision inside and sizes inside count.

    Args:
        linear: f at the point, with its graph.
        u: a cotangent ``(batch, n_out)``.

    Returns:
        None where the model does not run that way.

    Cost: three forward and five backward passes, each forward pass with a graph of its own.
    """
    if linear.f.network.refuses_modes:
        return None
    try:
        value0, row0 = _run(linear, u)
        first, second = linear.vjp(u), linear.vjp(u)
        units = _units(linear)
        moved = [_run(linear, u, units, seed) for seed in range(DRAWS)]
    except Exception as error:
        reraise_out_of_memory(error)
        return None
    values, rows = (torch.stack([distances(run[i], (value0, row0)[i]) for run in moved]).amax(0) for i in range(2))
    # Without moved results nothing should differ: the new run from the recorded one, nor two passes of one graph.
    repeated = [
        (distances(value0, linear.value), values),
        (distances(row0, first), rows),
        (distances(second, first), rows),
    ]
    steady = all(bool((d <= STEADY * most).all()) for d, most in repeated)
    size = norms(first)
    return Rounding(_reach(values, norms(value0), units), _reach(rows, size, units), size, steady)


def _units(linear: LinearizedFunction) -> float:
    """Units in the last place to move results by: fewer in short formats, where 16 of them are a large share."""
    return max(1.0, min(UNITS, MOST / linear.rounding))


def _reach(moved: Float[Tensor, "batch"], size: Float[Tensor, "batch"], units: float) -> Float[Tensor, "batch"]:
    """The largest effect that counts as rounding, from that of ``units`` units: ``(batch,)`` each."""
    return ALLOWED * torch.where(moved > LOST * size, moved, moved / units)


def value_rounding(linear: LinearizedFunction) -> Float[Tensor, "batch"]:
    """How far rounding may move f(x), ``(batch,)`` as in ``Rounding``, without gradients.

    Where the model does not run that way, some units in the last place of each sample's largest value. Cost: three
    evaluations.
    """
    roughly = ALLOWED**2 * torch.finfo(linear.value.dtype).eps * norms(linear.value)
    if linear.f.network.refuses_modes:
        return roughly
    try:
        with torch.no_grad():
            value = linear.evaluate(linear.point)
            units, moved = _units(linear), []
            for seed in range(DRAWS):
                with _rounded_otherwise(units, seed):
                    moved.append(distances(linear.evaluate(linear.point), value))
        return _reach(torch.stack(moved).amax(0), norms(value), units)
    except Exception as error:
        reraise_out_of_memory(error)
        return roughly


def distances(a: Inexact[Tensor, "batch *shape"], b: Inexact[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """‖a − b‖ of each sample, ``(batch, …)`` → float64 ``(batch,)`` on the CPU; what is not finite counts as equal."""
    return norms(torch.where(a.isfinite() & b.isfinite(), a.double() - b.double(), 0.0))


def norms(a: Inexact[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """‖a‖ of each sample, float64 ``(batch,)`` on the CPU."""
    return norm(a.detach().reshape(a.shape[0], -1), (1,)).cpu()


def _run(linear: LinearizedFunction, u: Tensor, units: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """f(x) ``(batch, *shape)`` and Jᵀu ``(batch, n_in)`` of a new forward pass; with ``units``, rounded otherwise."""
    linear.passes["forward"] += 1
    linear.passes["vjp"] += 1
    with torch.enable_grad(), _rounded_otherwise(units, seed):
        point = linear.point.detach().clone().requires_grad_()
        value = linear.f(point)
        (row,) = vjp(value, (point,), u.reshape(value.shape)) if value.requires_grad else (None,)
    row = torch.zeros_like(point) if row is None else row
    return value.detach(), row.detach().reshape(linear.batch, -1)


class _Perturbed(Mode):
    """Moves the result of every operator by ``units`` in the last place, up or down by chance."""

    def __init__(self, units: float, seed: int) -> None:
        super().__init__()
        self.units, self.generator = units, torch.Generator().manual_seed(seed)

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = passed(op, args, kwargs)
        if any(r.alias_info is not None for r in op._schema.returns):  # a view, or written in place
            return result
        return tree_map_only(Tensor, self._moved, result)

    def _moved(self, result: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        if not result.is_floating_point() or result.layout != torch.strided:
            return result
        limits = torch.finfo(result.dtype)
        # The sign is drawn on the CPU, so that all devices are moved alike.
        sign = torch.randint(0, 2, result.shape, generator=self.generator).to(result) * 2 - 1
        # A zero is most often exact: a mask, padding. What is subnormal is rounded by an absolute amount.
        amount = torch.where(result == 0, 0.0, self.units * limits.eps * result.abs().clamp(min=limits.tiny))
        return result + sign * amount.to(result)


def _rounded_otherwise(units: float, seed: int) -> AbstractContextManager[object]:
    """A context in which results are moved by ``units`` in the last place; with 0 they stay as they are."""
    return _Perturbed(units, seed) if units else nullcontext()
