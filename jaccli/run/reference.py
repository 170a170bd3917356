"""The J that methods are compared with: reverse mode in float64, verified.

Where the model has no float64 form, J is computed row by row in the model's own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.errors import JaccliError
from jaccli.linear_maps.norms import norm
from jaccli.methods import MethodGap
from jaccli.networks.network import Network
from jaccli.planning.decide import decide
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.agreement import disagreement
from jaccli.run.execute import fill
from jaccli.text.quantities import dtype_name

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class Reference:
    """J to compare others with.

    Args:
        matrix: J, float64 where that works; None where no backward pass works.
        name: how it was obtained.
    """

    matrix: Shaped[Tensor, "batch n_out n_in"] | None
    name: str


def reference(network: Network, inputs: Inputs, pair: Pair, samples_mix: bool = False) -> Reference:
    """Reverse mode on a float64 copy of the network.

    Cost: a copy of the network, and n_out backward passes in float64.
    """
    try:
        double = network.cast(None, torch.float64)
        wide = inputs.converted(dtype=torch.float64)
        with computing(double), exact_attention(True):
            (linearization,) = linearize(double, wide, [pair])
            if linearization.linear.value.dtype == torch.float64 and not double.draws.generators:
                return Reference(_rows(replace(linearization, samples_mix=samples_mix)), "float64 reverse mode")
    except (JaccliError, MethodGap, RuntimeError, TypeError, NotImplementedError):
        pass  # the model has a dtype of its own inside
    dtype = dtype_name(next(iter(inputs.args)).dtype)
    try:
        with computing(network):
            (linearization,) = linearize(network, inputs, [pair])
            matrix = fill(replace(linearization, samples_mix=samples_mix), "loop", 1).matrix
    except (JaccliError, MethodGap):
        return Reference(None, "none: no backward pass works")
    why = "other numbers are drawn in float64" if network.draws.generators else "the model has no float64 form"
    return Reference(matrix, f"{dtype} row by row: {why}")


def _rows(linearization: Linearization) -> Tensor:
    """J ``(batch, n_out, n_in)`` in reverse mode; row by row where that fails or disagrees with a backward pass."""
    if not linearization.connected:
        return linearization.linear.value.new_zeros(linearization.linear.shape)
    try:
        chunk = decide(linearization, "reverse", keep=linearization.linear.batch).chunk
        matrix = fill(linearization, "reverse", chunk).matrix
        if disagreement(linearization, matrix) is None:
            return matrix
    except MethodGap:
        pass
    return fill(linearization, "loop", 1).matrix


def relative_error(
    matrix: Shaped[Tensor, "batch n_out n_in"], truth: Shaped[Tensor, "batch n_out n_in"] | None
) -> float | None:
    """The largest relative Frobenius error of a sample; absolute where its J is zero."""
    if truth is None:
        return None
    difference = norm((matrix.double() - truth.double()).flatten(1), (1,))
    size = norm(truth.flatten(1), (1,))
    return float((difference / torch.where(size > 0, size, torch.ones_like(size))).max())
