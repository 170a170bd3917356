"""The determinant of a square J: its sign, and the logarithm of its magnitude."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped

Matrix = npt.NDArray[np.float64]

# Matrices whose nonzero entries differ by more than this factor are balanced: elimination could overflow otherwise.
_FAR = 1e30
# Rounds of balancing: dividing rows and columns by powers of two.
_ROUNDS = 4
# Primes below 2³¹: products of two residues fit 63 bits. A determinant is a multiple of both by chance once in 10¹⁸.
_PRIMES = (2**31 - 1, 2**31 - 19)
# Larger matrices are not tested with primes: LU alone decides.
_MOST = 256


def sign_and_log(matrix: Shaped[Tensor, "n n"], sigma: Shaped[Tensor, "n"]) -> tuple[float, float]:
    """Sign 1, -1 or 0 and log|det J| of a square J in float64, by LU decomposition: 0 and -inf of a J that is singular.

    LU is exact for a matrix that differs from J by about n eps ‖J‖₂. If the smallest singular value is below that,
    arithmetic modulo two primes finds out whether det J is exactly zero; if it is not zero, its sign may come from
    rounding, which ``singular_to_precision`` reports. J is scaled by powers of two, which rounds nothing, so that
    nothing overflows.

    Args:
        matrix: J, finite.
        sigma: its singular values, descending.

    Cost: O(n³), a fraction of a singular value decomposition.
    """
    j = matrix.detach().to("cpu", torch.float64)
    may_be_singular = float(sigma[-1]) <= len(j) * torch.finfo(torch.float64).eps * float(sigma[0])
    if may_be_singular and len(j) <= _MOST and all(_vanishes(j.numpy(), prime) for prime in _PRIMES):
        return 0.0, -math.inf
    balanced, exponents = _balanced(j.numpy())
    exponent = math.frexp(float(np.abs(balanced).max()))[1] - 1  # 1 stays 1
    sign, log = np.linalg.slogdet(np.ldexp(balanced, -exponent))
    return float(sign), float(log) + (len(j) * exponent + exponents) * math.log(2.0)


def _balanced(j: Matrix) -> tuple[Matrix, int]:
    """J with rows and columns divided by powers of two if entries are far apart, and the sum of the exponents."""
    total, sizes = 0, np.abs(j[j != 0])
    if not sizes.size or sizes.max() / _FAR < sizes.min():
        return j, total
    for _ in range(_ROUNDS):
        for axis in (0, 1):
            exponents = np.frexp(np.abs(j).max(axis, keepdims=True))[1] - 1
            j = np.ldexp(j, -exponents)
            total += int(exponents.sum())
    return j, total


def _vanishes(j: Matrix, prime: int) -> bool:
    """Whether det J is a multiple of a prime, all entries being taken as integers times one power of two.

    By Gaussian elimination modulo the prime.
    """
    mantissas, exponents = np.frexp(j)
    shifts, which = np.unique(exponents - exponents.min(), return_inverse=True)
    powers = np.array([pow(2, int(shift), prime) for shift in shifts], dtype=np.int64)
    rest = np.ldexp(mantissas, 53).astype(np.int64) % prime * powers[which].reshape(j.shape) % prime
    for k in range(len(rest)):
        (below,) = rest[k:, k].nonzero()
        if not below.size:
            return True
        rest[[k, k + below[0]]] = rest[[k + below[0], k]]
        factors = rest[k + 1 :, k] * pow(int(rest[k, k]), -1, prime) % prime
        rest[k + 1 :, k:] = (rest[k + 1 :, k:] - factors[:, None] * rest[k, k:] % prime) % prime
    return False
