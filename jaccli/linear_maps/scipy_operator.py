"""A map as a SciPy ``LinearOperator``: NumPy vectors, two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from jaccli.linear_maps.matrix_free import MatrixFree


class SciPyOperator(LinearOperator):  # type: ignore[misc]
    """The block-diagonal matrix of a map's samples, ``(batch * n_out, batch * n_in)``; of one sample its matrix.

    float32 stays float32, shorter formats become float32.
    """

    def __init__(self, of: MatrixFree) -> None:
        batch, n_out, n_in = of.shape
        self.of = of
        super().__init__(np.float64 if of.dtype == torch.float64 else np.float32, (batch * n_out, batch * n_in))

    def _matmat(self, v: Any) -> Any:
        return self._product(v, self.of._matmat)

    def _rmatmat(self, u: Any) -> Any:
        return self._product(u, self.of._rmatmat)

    def _matvec(self, v: Any) -> Any:
        return self._matmat(v.reshape(-1, 1)).reshape(-1)

    def _rmatvec(self, u: Any) -> Any:
        return self._rmatmat(u.reshape(-1, 1)).reshape(-1)

    def _product(self, vectors: Any, product: Any) -> Any:
        # SciPy stacks the samples' vectors: row b * n + i is element i of sample b.
        columns = torch.from_numpy(np.ascontiguousarray(vectors, dtype=self.dtype))
        batch, k = self.of.shape[0], columns.shape[1]
        images = product(columns.reshape(batch, -1, k).to(self.of.device, self.of.dtype))
        return images.reshape(-1, k).to("cpu", columns.dtype).numpy()
