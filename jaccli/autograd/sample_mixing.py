"""Do samples mix? Of independent samples, those with a cotangent of zero have a gradient of zero."""

from __future__ import annotations

import math
from itertools import combinations, count, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped


def separating_sets(batch: int, most: int) -> Bool[Tensor, "k batch"]:
    """Sets of samples ``(k, batch)``: for any two samples one of the sets holds the first and not the second.

    As few as there can be (Sperner); where those are more than ``most``, every other sample and the rest.
    """
    if batch == 1:
        return torch.ones(1, 1, dtype=torch.bool, device="cpu")
    # Each sample is in another half of the k sets. No half contains another, and no family of subsets with that
    # property is larger (E. Sperner, 1928), so that k is the least.
    k = next(k for k in count(2) if math.comb(k, k // 2) >= batch)
    if k > max(most, 2):
        return torch.arange(batch, device="cpu") % 2 == torch.arange(2, device="cpu")[:, None]
    members = torch.tensor([*islice(combinations(range(k), k // 2), batch)], device="cpu")
    return torch.zeros(k, batch, dtype=torch.bool, device="cpu").scatter_(0, members.T, True)


def reaches_silent_samples(u: Shaped[Tensor, "k batch n_out"], rows: Shaped[Tensor, "k batch n_in"]) -> bool:
    """Whether samples with a cotangent of zero in ``u`` have more than rounding in ``rows`` = Jᵀu."""
    if not rows.numel():
        return False
    # NaN and infinities prove no dependence: 0 * inf is NaN in a sample that received the cotangent 0.
    sizes, received = rows.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1), u.any(-1).to(rows.device)
    rounding = torch.finfo(rows.dtype).eps * max(float(sizes.max()), torch.finfo(rows.dtype).tiny)
    return float((sizes * ~received).max()) > rounding
