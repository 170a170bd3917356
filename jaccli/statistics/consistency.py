"""Figures of one J compared with each other: inequalities of norms, ranks and traces that hold for every matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaccli.errors import warn

# The figures of one sample by name, and their standard errors.
SampleFigures = Mapping[str, Any]
# Allowed differences: ROUNDING × the figure, which exact figures keep to, and of estimates ERRORS standard errors too.
ROUNDING = 1e-6
ERRORS = 6.0
# Figures that may be NaN: a logarithm that an estimate cannot know, and what J = 0 has no value of.
_MAY_BE_NAN = ("log_abs_det", "log_volume", "condition", "identity_share")
# The smallest normal number of float64.
_NORMAL = 2.2250738585072014e-308


@dataclass(frozen=True)
class _Side:
    """One side of an inequality.

    Args:
        text: for people, as ``1.5 × frobenius``.
        value: of the figure, times its factor.
        error: its standard error, times the factor.
    """

    text: str
    value: float
    error: float = 0.0

    def __rmul__(self, factor: float) -> _Side:
        text = self.text if factor == 1 else f"{factor:.4g} × {self.text}"
        return _Side(text, factor * self.value, factor * self.error)

    def above(self, other: _Side) -> bool:
        """Whether it is larger by more than rounding and chance."""
        reach = ERRORS * math.hypot(self.error, other.error) + ROUNDING * max(abs(self.value), abs(other.value))
        return self.value - other.value > reach

    def __str__(self) -> str:
        return f"{self.text} {self.value:.6g}"


Read = Callable[[str], _Side]


def _of_identity(side: Read, n: int) -> list[tuple[_Side, _Side]]:
    """Pairs (smaller side, larger side) of the inequalities of ``deviation``'s figures, D = J − I being n × n."""
    frobenius, spectral, trace = side("frobenius"), side("spectral"), side("trace")
    root = math.sqrt(n)
    of_d = _Side(f"|trace - {n}|", abs(trace.value - n), trace.error + ROUNDING * n)
    return [
        (spectral, frobenius),
        (frobenius, root * spectral),
        (side("max_abs"), spectral),
        (frobenius, side("l1")),
        (side("l1"), n * frobenius),
        (of_d, root * frobenius),
        *_equal(root * side("relative"), frobenius),
        *_equal(n * side("alpha"), trace),
        (side("identity_share"), _Side("its limit", 1.0)),
    ]


def _of_spectrum(side: Read, rank: int) -> list[tuple[_Side, _Side]]:
    """Pairs (smaller side, larger side) of the inequalities of ``spectrum``'s figures of J."""
    frobenius, spectral, stable = side("frobenius"), side("spectral_norm"), side("stable_rank")
    trace, volume, squares = side("trace"), side("log_volume"), side("mean_squared_singular_value")
    most, root = _Side("the rank of J,", float(rank)), math.sqrt(rank)
    pairs = [
        (spectral, frobenius),
        (frobenius, root * spectral),
        (_Side("|trace|", abs(trace.value), trace.error), root * frobenius),
        (side("spectral_radius"), spectral),
        (stable, side("participation_ratio")),
        (stable, side("effective_rank")),
        *((side(name), most) for name in ("stable_rank", "participation_ratio", "effective_rank")),
        *_equal(side("log_abs_det"), volume),
        *_equal(side("singular_values"), spectral),
    ]
    if frobenius.value > 0:
        # The geometric mean of the σ² is at most the arithmetic one.
        bound = rank * math.log(frobenius.value / root) if math.isfinite(frobenius.value) else math.inf
        error = rank * (frobenius.error / frobenius.value + ROUNDING)
        pairs.append((volume, _Side("its bound by frobenius,", bound, error)))
    if stable.value > 0:
        by_rank = math.sqrt(stable.value)
        error = math.hypot(stable.error / (2 * by_rank) * spectral.value, by_rank * spectral.error)
        pairs += _equal(_Side("sqrt(stable_rank) × spectral_norm", by_rank * spectral.value, error), frobenius)
    if _NORMAL < squares.value < math.inf:
        mean = math.sqrt(squares.value)
        of_mean = _Side("sqrt(mean_squared_singular_value)", mean, squares.error / mean)
        pairs += _equal(root * of_mean, frobenius)
    return pairs


def _equal(a: _Side, b: _Side) -> list[tuple[_Side, _Side]]:
    return [(a, b), (b, a)]


def contradictions(record: SampleFigures, shape: tuple[int, int]) -> Iterator[str]:
    """The inequalities that do not hold for the figures of one sample, in words; missing figures are skipped.

    Args:
        record: figures by name, and their standard errors.
        shape: of J, ``(n_out, n_in)``.
    """

    def side(name: str) -> _Side:
        value, error = record.get(name, math.nan), record.get(f"{name}_stderr", 0.0)
        if isinstance(value, Sequence):
            value, error = (value[0] if value else math.nan), (error[0] if isinstance(error, Sequence) else 0.0)
        return _Side(name, float(value), float(error))

    numbers = {k: v for k, v in record.items() if isinstance(v, float) and k not in _MAY_BE_NAN}
    known = [k for k in numbers if not k.endswith("_stderr")]
    unknown = [k for k in known if math.isnan(numbers[k])]
    if unknown and len(unknown) < len(known):
        other = next(k for k in known if k not in unknown)
        yield f"{unknown[0]} is not a number beside {other} {numbers[other]:.6g}"
    sides = _of_identity(side, shape[0]) if "relative" in record else _of_spectrum(side, min(shape))
    yield from (f"{small} is above {large}" for small, large in sides if small.above(large))


def _out_of_range(record: SampleFigures) -> list[str]:
    """Names of figures that overflow to inf, or underflow to 0 though J is not zero."""
    if not (0 < record.get("frobenius", 0.0) < math.inf):
        names = ("frobenius", "spectral_norm", "spectral", "l1", "max_abs")
        return [name for name in names if record.get(name) == math.inf]
    squares = record.get("mean_squared_singular_value", 1.0)
    beyond = ["mean_squared_singular_value"] if squares == math.inf or squares < _NORMAL else []
    return beyond + [name for name in ("l1",) if record.get(name) == math.inf]


def check_records(records: Sequence[SampleFigures], shape: tuple[int, int], name: str) -> None:
    """Warn of figures that contradict each other, and of figures beyond the range of float64.

    Args:
        records: one for each sample, with its number under ``sample`` if that is not its position.
        shape: of each J, ``(n_out, n_in)``.
        name: of the layer pair.
    """
    wrong: dict[str, str] = {}
    for position, record in enumerate(records):
        for text in contradictions(record, shape):
            wrong.setdefault(str(record.get("sample", position)), text)
    if wrong:
        sample, text = next(iter(wrong.items()))
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        warn(f"{name}: figures of sample {sample}{more} contradict each other: {text}; do not rely on them")
    beyond = [names for record in records if (names := _out_of_range(record))]
    if beyond:
        which = ", ".join(dict.fromkeys(name for names in beyond for name in names))
        warn(f"{name}: {which} of {len(beyond)} of {len(records)} samples: beyond the range of float64")
