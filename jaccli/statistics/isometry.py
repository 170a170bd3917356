"""Dynamical isometry: how the spectrum of J behaves from one layer to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

# Of a layer pair, as ``jaccli spectrum`` writes it; and the figures of one sample of it.
PairRecord = Mapping[str, Any]
SampleFigures = Mapping[str, Any]


def isometry(pairs: Sequence[PairRecord]) -> list[dict[str, Any]]:
    """A record for each layer, means over samples: how far J from that layer is from an isometry, whose σ are all 1.

    With m₁ = mean σ² and m₂ = mean σ⁴, ``relative_variance`` is m₂/m₁² − 1, 0 where all σ are equal (J. Pennington,
    S. Schoenholz and S. Ganguli, *Resurrecting the sigmoid in deep learning through dynamical isometry*, 2017, σ²_JJᵀ
    at m₁ = 1); ``gain`` is m₁ over that of the next layer: the factor by which the layers between the two multiply
    squared gradients on the mean (their χ), if J spans many layers.

    Args:
        pairs: records with ``samples`` of ``spectrum`` figures, in the order of the layers.

    Example:
        >>> import torch
        >>> from jaccli.statistics.spectral import spectrum
        >>> ends = {end: {"layer": end, "shape": (2,)} for end in ("source", "target")}
        >>> (line,) = isometry([{**ends, "samples": [spectrum(torch.diag(torch.tensor([3.0, 1.0])))]}])
        >>> line["mean_squared_singular_value"], round(line["relative_variance"], 3), line["smallest"]
        (5.0, 0.64, 1.0)
    """
    lines = []
    for record in pairs:
        first = _mean(record, "mean_squared_singular_value")
        rank = _rank(record)
        # (Σσ²)²/Σσ⁴ = n m₁²/m₂.
        variance = [rank / s["participation_ratio"] - 1 if s["participation_ratio"] else 0.0 for s in record["samples"]]
        lines.append(
            {
                "source": record["source"]["layer"],
                "target": record["target"]["layer"],
                "mean_squared_singular_value": first,
                "relative_variance": sum(variance) / len(variance),
                "spectral_norm": _mean(record, "spectral_norm"),
                "smallest": _mean(record, "smallest"),
                "gain": None,
                **({"trivial": True} if record.get("trivial") else {}),
            }
        )
    for line, (here, following) in zip(lines, pairwise(pairs), strict=False):
        line["gain"] = _gain(here, following)
    return lines


def _gain(record: PairRecord, following: PairRecord) -> float | None:
    """m₁ of one layer over that of the next, from norms, which are in range where their squares are not.

    None where the next layer's J is zero.
    """
    norms = [[s["frobenius"] for s in r["samples"]] for r in (record, following)]
    size = max(map(abs, norms[1]))
    if not size:
        return None
    first, after = (
        sum((value / size) * (value / size) for value in values) / (len(values) * _rank(r))
        for values, r in zip(norms, (record, following), strict=True)
    )
    return float(first / after)


def _rank(record: PairRecord) -> int:
    """The number of singular values of J."""
    shapes = (record[end]["shape"] for end in ("source", "target"))
    return min(map(math.prod, shapes))


def smallest(record: PairRecord, sample: SampleFigures) -> float | None:
    """The smallest singular value of a sample of ``record``; None if it lists only the largest, or estimates."""
    values: list[float] = sample["singular_values"]
    return values[-1] if len(values) == _rank(record) and "singular_values_stderr" not in sample else None


def _mean(record: PairRecord, name: str) -> float | None:
    """The mean of a figure over the samples that have it; None if none has."""
    values = [smallest(record, s) if name == "smallest" else s.get(name) for s in record["samples"]]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
