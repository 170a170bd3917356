"""Whether samples are independent: whether one's target depends on another sample, by gradients and by values."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.autograd.seeds import gaussian
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.linearization.rounding import distances, norms, value_rounding
from jaccli.planning.linearize.nearby import perturbed, value_at


def gradient_at_silent_samples(linear: LinearizedFunction, u: Tensor, row: Tensor) -> bool:
    """Whether samples whose cotangent in ``u`` is zero have a gradient in ``row`` = Jᵀu, but not in Jᵀ0.

    Zeros stay zeros whatever the rounding, unless a backward pass adds numbers of its own: then Jᵀ0 has them too.

    Args:
        linear: f.
        u: cotangent ``(batch, n_out)``, zero at some samples.
        row: ``(batch, n_in)``.

    Cost: a backward pass, of zeros, where there is such a gradient.
    """
    sent, size = u.any(1).cpu(), norms(row.nan_to_num(0.0, 0.0, 0.0))
    reach = torch.finfo(row.dtype).eps * max(float(size[sent].sum()), torch.finfo(row.dtype).tiny)
    return bool((size[~sent] > reach).any()) and not bool((norms(linear.vjp(torch.zeros_like(u))) > reach).any())


def samples_mix_by_gradients(linear: LinearizedFunction) -> bool:
    """Whether any sample's target depends on any other sample, by gradients.

    Cost: 2 log2(batch) backward passes. In one of them, of any two samples one has a cotangent and the other does not.
    """
    numbers = torch.arange(linear.batch)
    u = gaussian((linear.batch, linear.f.n_out), 0, linear.value)
    for bit in range((linear.batch - 1).bit_length()):
        for side in (0, 1):
            # Two different numbers differ in some bit: one of the pair is on this side of it.
            masked_u = u * ((numbers >> bit) % 2 == side).to(u)[:, None]
            if gradient_at_silent_samples(linear, masked_u, linear.vjp(masked_u)):
                return True
    return False


def moves_others(linear: LinearizedFunction) -> bool:
    """Whether the targets of some samples change when the other samples change: the question without gradients.

    Cost: four evaluations, in which every other sample is moved, then one half of them, each way round; where that
    changes a digit, three more, which show what rounding does.
    """
    halves = [slice(0, None, 2), slice(1, None, 2), slice(0, linear.batch // 2), slice(linear.batch // 2, None)]
    noise: Tensor | None = None
    # Halves of both kinds: a model may mix neighbours alone, or samples that are far apart.
    for still in halves if linear.batch > 1 else ():
        # Values of another sample are certainly in the domain of f; where they are refused beside this one, perturbed
        # ones may not be.
        for away in (_exchanged(linear.point), perturbed(linear.point)):
            away[still] = linear.point[still]
            moved = value_at(linear, away)
            if moved is not None:
                break
        else:
            return False
        change = distances(moved, linear.value)[still]
        if bool(change.any()):
            noise = value_rounding(linear) if noise is None else noise
            if bool((change > noise[still]).any()):
                return True
    return False


def _exchanged(point: Tensor) -> Tensor:
    """Each sample of ``(batch, …)`` in the place of the next one, perturbed where they are equal."""
    rolled = point.roll(1, 0)
    same = (rolled == point).reshape(len(point), -1).all(1).reshape(-1, *[1] * (point.dim() - 1))
    return torch.where(same, perturbed(point), rolled)
