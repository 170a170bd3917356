"""The goals that J is compared with, and the estimators of its distance, by name. Needs no torch: options use them."""

from __future__ import annotations

from typing import Literal

Towards = Literal["identity", "scaled-identity", "orthogonal", "zero"]
Estimator = Literal["exact", "hutchinson"]
# ``auto``: by the size of J.
EstimatorOption = Literal["auto", Estimator]
