"""The goals that J is compared with, and the estimators of its distance, by name. Needs no torch: options use them."""

from __future__ import annotations

from typing import Literal

Towards = Literal["identity", "scaled-identity", "orthogonal", "zero"]
"""I; the nearest αI; J Jᵀ = I (Jᵀ J = I for a J with fewer columns than rows); 0. See ``identity.deviation_from``."""

Estimator = Literal["exact", "hutchinson"]
"""From J itself, or the mean over products with random vectors."""

EstimatorOption = Literal["auto", Estimator]
"""``auto``: by the size of J."""
