"""Whether two computations of one quantity agree: the tolerances of the code, each with its reason.

    agrees, is_adjoint   one product by two derivations                   eps^0.5    ``tolerance``
    values_agree         values of one network in two batches             eps^0.75   ``value_tolerance``
    programs_agree       the same operators in another order or kernel    64 eps     ``_PROGRAM_EPS``

Two derivations (a rule and a backward pass, forward and backward mode) sum other terms in another order: in deep
networks rounding leaves three to four digits of float32, and eps^0.5 = 3e-4 allows for that. A wrong rule is off by far
more. Two batches run the same operators on the same numbers, and differ by the order of sums inside of kernels alone. A
program runs even the same kernels, or nearly, on the same batch.

Norms are Euclidean and of each sample. A sample whose truth is not finite tells nothing; a result that is not finite
where the truth is finite is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.linear_maps.norms import norm

if TYPE_CHECKING:
    from jaxtyping import Shaped

_POWER = 0.5
_VALUE_POWER = 0.75
# A program may differ from the truth by 64 eps. In bfloat16 that would be 50 %, which would hide real errors: the limit
# is 5 % there.
_PROGRAM_EPS = 64
_PROGRAM_MOST = 0.05
# An element of a product that is this much smaller than the others is judged by their size, not by its own.
_NOT_SMALLER = 1e-2


def tolerance(eps: float) -> float:
    """The relative difference up to which two derivations of a product agree, in a dtype of this machine epsilon."""
    return float(eps**_POWER)


def value_tolerance(eps: float) -> float:
    """The relative difference up to which values of one network in two batches agree."""
    return float(eps**_VALUE_POWER)


def agrees(product: Shaped[Tensor, "batch n"], truth: Shaped[Tensor, "batch n"], eps: float) -> bool:
    """Whether a product ``(batch, n)`` is the independent one, for every sample, up to ``tolerance(eps)``."""
    # Per sample: a wrong small sample would vanish in a norm of the whole batch.
    floor = torch.finfo(truth.dtype).tiny
    return _small(norm(product - truth, (1,)), norm(truth, (1,)), truth.isfinite().all(1), eps, floor)


def is_adjoint(
    image: Shaped[Tensor, "batch n_out"],
    z: Shaped[Tensor, "batch n_in"],
    w: Shaped[Tensor, "batch n_out"],
    pulled: Shaped[Tensor, "batch n_in"],
    eps: float,
    together: bool = False,
) -> bool:
    """Whether ⟨w, Jz⟩ = ⟨Jᵀw, z⟩, of each sample, or summed over the batch if ``together``.

    The gap is compared with the size of the terms of the sums, whose errors are independent: of n terms one wrong one
    is seen as long as n is below 1 / eps.

    Args:
        image: Jz, ``(batch, n_out)``.
        z: ``(batch, n_in)``.
        w: ``(batch, n_out)``.
        pulled: Jᵀw, ``(batch, n_in)``.
        eps: machine epsilon.
        together: samples mix: J is the whole batch's.
    """
    # Where a vector is 0 the other factor may be inf: the product counts as 0 and not as NaN. Summed in float64, so
    # that only the rounding of the products with J is compared.
    left, right = (torch.where(a != 0, a * b, 0).double() for a, b in ((w, image), (z, pulled)))
    typical = norm(image, (1,)) / image.shape[1] ** 0.5
    if together:
        left, right, typical = left.reshape(1, -1), right.reshape(1, -1), typical.max()[None]
    # By chance the sums may nearly vanish for a right product: the typical size of an element is a lower bound.
    size = torch.maximum(norm(left, (1,)) + norm(right, (1,)), _NOT_SMALLER * typical)
    floor = torch.finfo(image.dtype).tiny
    return _small((left.sum(1) - right.sum(1)).abs(), size, right.isfinite().all(1), eps, floor)


def _small(
    gap: Shaped[Tensor, "batch"],
    size: Shaped[Tensor, "batch"],
    finite: Shaped[Tensor, "batch"],
    eps: float,
    floor: float,
) -> bool:
    """Whether gaps ``(batch,)`` are small beside sizes ``(batch,)``, for the samples whose truth is ``finite``.

    A size far below that of the other samples has their rounding. Below ``floor``, the smallest normal number, digits
    are lost. A gap that is NaN is not small.
    """
    if not bool(finite.any()):
        return True
    gap, size = gap[finite], size[finite]
    allowed = tolerance(eps)
    return bool((gap <= allowed * torch.maximum(size, allowed * size.max()) + floor).all())


def values_agree(a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"], eps: float = 0.0) -> bool:
    """Whether two tensors of one shape are equal up to rounding, element by element, NaN being equal to NaN.

    Args:
        a: one.
        b: the other, whose largest element and dtype give the scale.
        eps: of a coarser dtype that the network met inside.
    """
    allowed = value_tolerance(max(torch.finfo(b.dtype).eps, eps))
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=allowed, atol=allowed * scale, equal_nan=True)


def programs_agree(result: Tensor, truth: Tensor) -> bool:
    """Whether tensors have one shape, are finite in the same places, and are equal there up to some eps, as a whole.

    Other shapes are an answer here, not an error: a program that was rewritten wrongly may give any shape.
    """
    if result.shape != truth.shape:
        return False
    finite = truth.isfinite()
    if not bool(finite.all()):
        if not torch.equal(result.isfinite(), finite):
            return False
        result, truth = result[finite], truth[finite]
    size = float(torch.linalg.vector_norm(truth.double()))
    gap = float(torch.linalg.vector_norm((result - truth).double()))
    return gap <= min(_PROGRAM_EPS * torch.finfo(result.dtype).eps, _PROGRAM_MOST) * max(size, 1e-30)
