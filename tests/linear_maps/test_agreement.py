"""Which differences between two computations are rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jaccli.linear_maps.agreement import agrees, is_adjoint, programs_agree, tolerance, value_tolerance, values_agree


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("where", [0, 37, 99])
@pytest.mark.parametrize("wrong", ["element", "zero", "scaled", "NaN"])
def test_one_wrong_element_is_seen(where: int, wrong: str) -> None:
    j, z, w = vectors(2, 100, 60), vectors(3, 60)[:2], vectors(2, 100)
    image, pulled = (j @ z[..., None])[..., 0], (j.mT @ w[..., None])[..., 0]
    assert is_adjoint(image, z, w, pulled, 2.0**-52)
    assert agrees(image, image * (1 + 1e-13), 2.0**-52)
    bad = image.clone()
    bad[1, where] = {"element": bad[1, where] + 0.1, "NaN": math.nan}.get(wrong, bad[1, where])
    bad = {"zero": 0 * image, "scaled": image / 3}.get(wrong, bad)
    assert not is_adjoint(bad, z, w, pulled, 2.0**-52)
    assert not agrees(bad, image, 2.0**-52)


def test_a_j_that_is_nan_itself() -> None:
    """Of a sample whose J is NaN nothing can be said; of the others all."""
    j, z, w = vectors(2, 9, 6), vectors(2, 6), vectors(2, 9)
    j[0, 3] = math.nan
    image, pulled = (j @ z[..., None])[..., 0], (j.mT @ w[..., None])[..., 0]
    assert is_adjoint(image, z, w, pulled, 2.0**-52)
    assert not is_adjoint(torch.cat([image[:1], 2 * image[1:]]), z, w, pulled, 2.0**-52)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_tolerance_from_both_sides(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    values = vectors(3, 50).to(dtype).double()
    for check, share in (
        (lambda v: agrees(v, values, eps), tolerance(eps)),
        (lambda v: values_agree(v, values, eps), value_tolerance(eps)),
    ):
        assert check(values * (1 + 0.9 * share))
        assert not check(values * (1 + 2.5 * share))
    share = min(64 * eps, 0.05)
    moved = [(values * (1 + times * share)).to(dtype) for times in (0.5, 2)]
    assert [programs_agree(v, values.to(dtype)) for v in moved] == [True, False]


def test_programs_are_finite_in_the_same_places() -> None:
    a = torch.tensor([1.0, 2.0, math.nan])
    assert programs_agree(a, a.clone())
    assert not programs_agree(a, torch.tensor([1.0, math.nan, 2.0]))
    assert not programs_agree(a, torch.tensor([1.0, 2.0, 3.0]))
    assert not programs_agree(torch.tensor([1.0, 2.5, math.nan]), a)
    half = torch.ones(100, dtype=torch.bfloat16)
    assert programs_agree(half * 1.01, half)
    assert not programs_agree(half * 1.2, half)
    assert not programs_agree(a[:2], a)
