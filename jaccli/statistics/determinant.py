"""The determinant of a square J: its sign, and the logarithm of its magnitude."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Matrix = npt.NDArray[np.float64]

# Entries further apart than this are brought nearer: what elimination makes of them may leave float64.
_FAR = 1e30
# Rounds of dividing rows and columns by powers of two.
_ROUNDS = 4
# Primes below 2³¹: products of two residues fit 63 bits. That a determinant is a multiple of both by chance: 1 in 10¹⁸.
_PRIMES = (2**31 - 1, 2**31 - 19)
# Larger matrices are left to LU alone.
_MOST = 256


def sign_and_log(matrix: Tensor, sigma: Tensor) -> tuple[float, float]:
    """Sign 1, -1 or 0 and log|det J| of a square J in float64, by LU decomposition: 0 and -inf of a J that is singular.

    Both are of the entries as they stand, and exact for a J that differs from this one by about n eps ‖J‖₂. Where the
    smallest singular value is below that, whole numbers tell whether det J is zero; where it is not, the sign may be
    one of rounding, and ``singular_to_precision`` tells. Nothing leaves float64 on the way: J is scaled by powers of
    two, which rounds nothing.

    Args:
        matrix: ``(n, n)``, finite.
        sigma: its singular values, descending.

    Cost: O(n³), a part of that of a singular value decomposition.
    """
    j = matrix.detach().to("cpu", torch.float64)
    warnings = float(sigma[-1]) <= len(j) * torch.finfo(torch.float64).eps * float(sigma[0])
    if warnings and len(j) <= _MOST and all(_vanishes(j.numpy(), prime) for prime in _PRIMES):
        return 0.0, -math.inf
    balanced, exponents = _balanced(j.numpy())
    exponent = math.frexp(float(np.abs(balanced).max()))[1] - 1  # 1 stays 1
    sign, log = np.linalg.slogdet(np.ldexp(balanced, -exponent))
    return float(sign), float(log) + (len(j) * exponent + exponents) * math.log(2.0)


def _balanced(j: Matrix) -> tuple[Matrix, int]:
    """Rows and columns divided by powers of two where entries are far apart, and the sum of the exponents."""
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
    """Whether the determinant of the entries, as whole numbers times a power of two, is a multiple of a prime."""
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
