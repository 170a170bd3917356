"""Sign and logarithm of det J, against exact rational arithmetic and closed forms."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from jaccli.statistics.spectral import FIELDS, spectrum


def exact(matrix: np.ndarray[Any, Any]) -> tuple[int, float]:
    """By elimination over the rationals: what the entries, as they stand, have."""
    rows = [[Fraction(float(v)) for v in row] for row in matrix]
    sign, product = 1, Fraction(1)
    for k in range(len(rows)):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if pivot is None:
            return 0, -math.inf
        if pivot != k:
            rows[k], rows[pivot], sign = rows[pivot], rows[k], -sign
        product *= rows[k][k]
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    log = math.log(abs(product.numerator)) - math.log(product.denominator)
    return sign * (1 if product > 0 else -1), log


def check(matrix: np.ndarray[Any, Any]) -> None:
    found, (sign, log) = spectrum(torch.from_numpy(matrix)), exact(matrix)
    assert (found["sign_det"], type(found["sign_det"])) == (sign, int)
    assert found["log_abs_det"] == found["log_volume"] == pytest.approx(log, rel=1e-9, abs=1e-9)
    assert (found["sign_det"] == 0) == (found["log_abs_det"] == -math.inf)


@pytest.mark.parametrize("exponent", [-1000, -320, 0, 300, 960])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_of_any_size(n: int, exponent: int) -> None:
    """Products of the pivots would leave float64."""
    for seed in range(6):
        check(np.ldexp(np.random.default_rng(seed).standard_normal((n, n)), exponent))


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0]])
def test_of_permutations(order: list[int]) -> None:
    check(np.eye(3)[order] * [[2.0], [1.0], [0.5]])
    found = spectrum(torch.eye(3)[order])
    assert found["log_abs_det"] == 0.0
    assert found["sign_det"] == round(float(np.linalg.det(np.eye(3)[order])))


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0], [0.0, 0.0]],
        [[1.0, 2.0], [2.0, 4.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[0.0]],
        [[1.0, 2.0, 1.0], [3.0, 4.0, 3.0], [5.0, 7.0, 5.0]],
        [[1.0, 1e-200], [1e-200, 0.0]],
        [[0.0, 1e-300], [1e300, 0.0]],
        [[1e-320, 0.0], [0.0, -1.0]],
        [[1e308, 1e308], [1e308, -1e308]],
        [[1e-320, 1e-321], [1e-321, -1e-320]],
        [[1e200, 1.0, 0.0], [1.0, 1e-200, 1e-250], [0.0, 1e-250, -1e-300]],
    ],
)
def test_of_singular_and_graded_matrices(rows: list[list[float]]) -> None:
    check(np.array(rows))


def test_of_what_has_none() -> None:
    assert math.isnan(spectrum(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))["sign_det"])
    assert "sign_det" not in spectrum(torch.ones(2, 3))
    assert "sign_det" in FIELDS
