"""Figures of one record that no matrix can have are a warning; those of a matrix never are."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import jaccli
from jaccli.errors import JaccliNote
from jaccli.linear_maps.linear_map import Matrices
from jaccli.statistics.consistency import check_records, contradictions
from jaccli.statistics.identity_distance import deviation
from jaccli.statistics.probing import effort_of
from jaccli.statistics.product_estimates import estimated_deviation, estimated_spectrum
from jaccli.statistics.spectral import eigenvalues, spectrum

N = 5


def random(n_out: int = N, n_in: int = N, seed: int = 0) -> Tensor:
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DEVIATION, SPECTRUM = deviation(random()), spectrum(random()) | eigenvalues(random())
ESTIMATED = {"frobenius": 4.0, "frobenius_stderr": 0.5, "relative": 4 / 5**0.5, "relative_stderr": 0.5 / 5**0.5}
WRONG: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((DEVIATION, {"frobenius": 0.0, "relative": 0.0}), (DEVIATION, {"spectral": 24.9})),
    *((DEVIATION, {"max_abs": 24.9}), (DEVIATION, {"l1": 0.1}), (DEVIATION, {"l1": 1e3}), (DEVIATION, {"trace": 99.0})),
    *((DEVIATION, {"relative": 1e3}), (DEVIATION, {"alpha": 7.0}), (DEVIATION, {"identity_share": 1.1})),
    *((DEVIATION, {"frobenius": math.nan}), (DEVIATION, {"spectral": 0.1})),
    *((SPECTRUM, {"frobenius": 0.0}), (SPECTRUM, {"spectral_norm": 24.9}), (SPECTRUM, {"spectral_norm": 0.1})),
    *((SPECTRUM, {"mean_squared_singular_value": 1e3}), (SPECTRUM, {"stable_rank": 5.5}), (SPECTRUM, {"trace": 99.0})),
    *((SPECTRUM, {"stable_rank": 0.5}), (SPECTRUM, {"effective_rank": 1.0}), (SPECTRUM, {"participation_ratio": 6.0})),
    *((SPECTRUM, {"log_volume": 99.0, "log_abs_det": 99.0}), (SPECTRUM, {"log_abs_det": 1.0})),
    *((SPECTRUM, {"singular_values": [9.0]}), (SPECTRUM, {"spectral_radius": 99.0})),
    *((SPECTRUM, {"spectral_norm": math.nan}), (ESTIMATED, {"spectral": 9.0, "spectral_stderr": 0.1})),
]


@pytest.mark.parametrize(("right", "wrong"), WRONG, ids=lambda v: ",".join(v) if len(v) < 4 else "")
def test_told(right: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert not list(contradictions(right, (N, N)))
    with pytest.warns(jaccli.JaccliWarning, match="contradict"):
        check_records([right, right | wrong], (N, N), "a -> b")


MATRICES = {
    "random": random(),
    "wide": random(3, 7),
    "tall": random(7, 3),
    "zero": torch.zeros(4, 4, dtype=torch.float64),
    "identity": torch.eye(6, dtype=torch.float64),
    "nearly": torch.eye(6, dtype=torch.float64) + 1e-14 * random(6, 6),
    "negative": -torch.eye(6, dtype=torch.float64),
    "orthogonal": torch.linalg.qr(random(6, 6)).Q,
    "one": random(6, 1) @ random(1, 6),
    "scalar": random(1, 1),
    "nilpotent": torch.triu(random(6, 6), 1),
    "graded": torch.diag(torch.tensor([1e8, 1.0, 1e-8, 1e-16], dtype=torch.float64)),
    "large": 1e250 * random(),
    "small": 1e-250 * random(),
    "many": random(90, 90),
    "low": random(90, 2) @ random(2, 90),
    "spiked": 100 * random(90, 1) @ random(1, 90) + random(90, 90),
    "nan": random() * math.nan,
}


@pytest.mark.parametrize("name", MATRICES)
def test_no_false_alarm(name: str) -> None:
    w = MATRICES[name]
    shape = (w.shape[0], w.shape[1])
    for dtype in (torch.float64, torch.float32):
        j = w.to(dtype)
        if not j.isfinite().all() and name != "nan":
            continue
        records = [spectrum(j)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for seed in range(3):
                for probes in (None, 12, 20):
                    records += estimated_spectrum(Matrices(j[None]), effort_of(probes, None, seed))
                    if w.shape[0] == w.shape[1]:
                        records += estimated_deviation(Matrices(j[None]), effort_of(probes, None, seed))
        if w.shape[0] == w.shape[1]:
            records += [deviation(j), records[0] | eigenvalues(j)]
        for record in records:
            assert not list(contradictions(record, shape)), record


class Broken(Matrices):
    """Products with J are zero where many are asked for at once, as by a rule that is not there."""

    def _matmat(self, v: Tensor) -> Tensor:
        return super()._matmat(v) * (v.shape[2] < 8)


def test_estimate_of_products_that_are_wrong() -> None:
    """Where the one product is zero the norm is 0 beside singular values that the other one gave."""
    a = Broken(torch.stack([random(90, 90, seed) for seed in range(2)]))
    with pytest.warns(jaccli.JaccliWarning, match="contradict"):
        jaccli.estimate(a)


@pytest.mark.parametrize("j", [1e170 * random(), 1e-170 * random()], ids=["large", "small"])
def test_out_of_range(j: Tensor) -> None:
    with pytest.warns(jaccli.JaccliWarning, match="mean_squared_singular_value of 1 of 2 samples"):
        check_records([spectrum(j), spectrum(random())], (N, N), "a -> b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", JaccliNote)
        check_records([deviation(j), deviation(random())], (N, N), "a -> b")
