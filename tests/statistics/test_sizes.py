"""J of any size that its dtype has: norms, spectra, estimates and summaries are those of size 1, scaled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.linear_maps.extreme_singular_values import block_krylov, extreme_singular_values, spectral_norm
from jaccli.linear_maps.linear_map import Matrices
from jaccli.linear_maps.norms import norm, power_of_two, singular_values
from jaccli.linear_maps.rescaled import rescaled
from jaccli.penalty.choices import Towards
from jaccli.penalty.identity import deviation_from
from jaccli.run.reference import relative_error
from jaccli.statistics.identity_distance import deviation, summary
from jaccli.statistics.isometry import isometry
from jaccli.statistics.probing import effort_of
from jaccli.statistics.product_estimates import estimated_deviation, estimated_spectrum
from jaccli.statistics.spectral import eigenvalues, lyapunov, singular_to_precision, spectrum

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Powers of two, so that nothing is rounded: from where float64 ends to where it begins, and where squares and fourth
# powers leave it; of shorter formats the ends of their range, subnormal numbers as well.
SIZES = [
    *((F64, e) for e in (-1000, -800, -500, -260, -130, -40, -12, -3, 0, 5, 60, 130, 260, 500, 800, 1000)),
    *((F32, e) for e in (-130, -120, -64, -20, 0, 20, 64, 120)),
    *((BF16, e) for e in (-120, -20, 0, 20, 120)),
    *((F16, e) for e in (-14, -7, 0, 7, 11)),
]
ALL = pytest.mark.parametrize(("dtype", "exponent"), SIZES, ids=lambda v: str(v).removeprefix("torch."))
N = 6


def matrix(n_out: int = N, n_in: int = N, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Small whole numbers over 4: exact in every format, and so are their sums."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-9, 10, (n_out, n_in)) / 4.0).to(dtype)


def scaled(w: Tensor, exponent: int) -> Tensor:
    half = exponent // 2
    return w * 2.0**half * 2.0 ** (exponent - half)


@pytest.mark.parametrize(("dtype", "exponent"), [(F64, -1040), (F32, -134), (BF16, -130), (F16, -17)])
def test_subnormal_matrices_are_told(dtype: torch.dtype, exponent: int) -> None:
    """Their entries have fewer digits than the dtype has; of larger ones nothing is said."""
    for e, said in ((exponent, True), (exponent + 20, False)):
        model = nn.Linear(4, 4, bias=False, dtype=dtype)
        model.weight.data = scaled(matrix(4, 4).clamp(-1, 1) + torch.eye(4), e).to(dtype)
        for entry in (jaccli.jacobian, jaccli.operator):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", jaccli.JaccliWarning)
                entry(model, torch.ones(3, 4, dtype=dtype))
            assert any("lost digits" in str(w.message) for w in caught) == said, (entry, e)


def close(found: Any, right: float, rel: float = 1e-10) -> None:
    assert float(found) == pytest.approx(right, rel=rel, abs=0)


def times(value: float, exponent: int) -> float:
    """Inf and 0 beyond float64, as IEEE has it."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def of_one(w: Tensor) -> dict[str, float]:
    """Of a matrix near 1: NumPy's, from singular values."""
    sigma = np.linalg.svd(w.numpy(), compute_uv=False)
    share = sigma / sigma.sum()
    return {
        "condition": sigma[0] / sigma[-1],
        "log_volume": np.log(sigma).sum(),
        "mean_squared_singular_value": (sigma**2).mean(),
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
        "spectral_norm": sigma[0],
        "frobenius": np.sqrt((sigma**2).sum()),
    }


POWERS = {"mean_squared_singular_value": 2, "spectral_norm": 1, "frobenius": 1, "trace": 1}


def right_spectrum(w: Tensor, exponent: int) -> dict[str, float]:
    right = {name: times(value, POWERS.get(name, 0) * exponent) for name, value in of_one(w).items()}
    right["log_volume"] += min(w.shape) * exponent * math.log(2)
    return right


@ALL
@pytest.mark.parametrize("shape", [(N, N), (3, 5), (5, 3)], ids=str)
def test_spectrum(dtype: torch.dtype, exponent: int, shape: tuple[int, int]) -> None:
    w = matrix(*shape)
    found = spectrum(scaled(w, exponent).to(dtype))
    for name, value in right_spectrum(w, exponent).items():
        close(found[name], value)
    np.testing.assert_allclose(
        found["singular_values"], np.ldexp(np.linalg.svd(w.numpy(), compute_uv=False), exponent), rtol=1e-10
    )
    if dtype == F64:
        assert not singular_to_precision(scaled(w, exponent), found)


@ALL
def test_deviation(dtype: torch.dtype, exponent: int) -> None:
    w = matrix()
    found = deviation(scaled(w, exponent).to(dtype))
    d = scaled(w, exponent) - torch.eye(N, dtype=F64)
    down = max(exponent, 0)  # D is near 2^down
    unit = scaled(d, -down).numpy()
    trace = float(w.trace())
    right = {
        "frobenius": times(np.linalg.norm(unit), down),
        "relative": times(np.linalg.norm(unit) / math.sqrt(N), down),
        "spectral": times(np.linalg.norm(unit, 2), down),
        "l1": times(np.abs(unit).sum(), down),
        "max_abs": times(np.abs(unit).max(), down),
        "trace": times(trace, exponent),
        "alpha": times(trace / N, exponent),
        "identity_share": trace**2 / N / float(w.square().sum()),
    }
    for name, value in right.items():
        close(found[name], value)


@ALL
def test_eigenvalues(dtype: torch.dtype, exponent: int) -> None:
    w = matrix()
    once, found = eigenvalues(w), eigenvalues(scaled(w, exponent).to(dtype))
    for name in ("spectral_radius", "spectral_abscissa"):
        close(found[name], times(once[name], exponent))
    close(found["non_normality"], once["non_normality"])
    flat = np.array(once["eigenvalues"])
    np.testing.assert_allclose(found["eigenvalues"], np.ldexp(flat, exponent), rtol=1e-10)


def test_lyapunov() -> None:
    chain = [matrix(seed=s) for s in range(3)]
    right = lyapunov(chain)
    moved = lyapunov([scaled(m, e) for m, e in zip(chain, (900, -700, 990), strict=True)])
    torch.testing.assert_close(moved, right + (900 - 700 + 990) / 3 * math.log(2), rtol=1e-12, atol=1e-12)


@ALL
@pytest.mark.parametrize("n", [N, 80], ids=["exact", "probes"])
def test_estimates_of_a_spectrum(dtype: torch.dtype, exponent: int, n: int) -> None:
    """The same vectors are drawn, so that estimates are those of size 1, scaled."""
    w = torch.stack([matrix(n, n, seed) for seed in range(2)])
    once = estimated_spectrum(Matrices(w.to(dtype)), effort_of(None, None, 0))
    moved = estimated_spectrum(Matrices(scaled(w, exponent).to(dtype)), effort_of(None, None, 0))
    reach = 1e-9 if dtype == F64 else 0.2 if dtype in (BF16, F16) else 1e-3
    for first, found in zip(once, moved, strict=True):
        for name in ("spectral_norm", "frobenius", "trace", "mean_squared_singular_value"):
            close(found[name], times(first[name], POWERS[name] * exponent), reach)
            if dtype == F64:
                close(found[f"{name}_stderr"], times(first[f"{name}_stderr"], POWERS[name] * exponent), 1e-6)
        for name in ("stable_rank", "effective_rank", "participation_ratio"):
            close(found[name], first[name], reach)
        if dtype == F64:
            shift = n * exponent * math.log(2)
            assert found["log_abs_det"] == pytest.approx(first["log_abs_det"] + shift, rel=1e-9, abs=1e-6, nan_ok=True)


@ALL
@pytest.mark.parametrize("n", [N, 80], ids=["exact", "probes"])
def test_estimates_of_a_deviation(dtype: torch.dtype, exponent: int, n: int) -> None:
    w = matrix(n, n)
    j = scaled(w, exponent).to(dtype)
    (found,) = estimated_deviation(Matrices(j[None]), effort_of(None if n == N else n, None, 0))
    right = deviation(j)
    reach = 1e-9 if dtype == F64 else 1e-4 if dtype == F32 else 0.05
    for name in ("frobenius", "relative", "spectral", "trace", "alpha", "identity_share"):
        assert found[name] == pytest.approx(right[name], rel=reach, abs=6 * found[f"{name}_stderr"]), name
        if name in ("trace", "alpha") and dtype in (
            F64,
            F32,
        ):  # the error itself is small
            assert found[f"{name}_stderr"] <= 0.2 * abs(right[name])


@pytest.mark.parametrize("exponent", [-1000, -500, -100, 0, 100, 500, 1000])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_products_alone(exponent: int, which: Any) -> None:
    """Beyond the size up to which J itself is decomposed: Lanczos, and a block Krylov space."""
    n = 420
    w = torch.diag(torch.cat([torch.tensor([9.0, 8, 7]), torch.linspace(1, 2, n - 6), torch.tensor([0.3, 0.2, 0.1])]))
    a = Matrices(scaled(w.double(), exponent)[None])
    found = extreme_singular_values(a, 3, which)
    right = torch.tensor([9.0, 8, 7] if which == "largest" else [0.3, 0.2, 0.1], dtype=F64)
    torch.testing.assert_close(scaled(found.values[0], -exponent), right, rtol=1e-7, atol=0)
    close(spectral_norm(scaled(w.double(), exponent)), times(9, exponent))
    close(a.frobenius()[0], times(float(w.double().norm()), exponent))
    if which == "largest" and abs(exponent) < 300:
        values, _ = block_krylov(Matrices(w.double()[None]), 3, which)
        torch.testing.assert_close(values, right, rtol=1e-6, atol=0)


@ALL
def test_maps(dtype: torch.dtype, exponent: int) -> None:
    w = torch.stack([matrix(seed=1), matrix(seed=2)])
    a = Matrices(scaled(w, exponent).to(dtype))
    for b, one in enumerate(w):
        close(a.frobenius()[b], times(float(one.norm()), exponent))
        close(a.trace()[b], times(float(one.trace()), exponent))
        sigma = np.ldexp(np.linalg.svd(one.numpy(), compute_uv=False), exponent)
        np.testing.assert_allclose(a.singular_values()[b], sigma, rtol=1e-10)
        np.testing.assert_allclose(a.singular_values(2)[b], sigma[:2], rtol=1e-10)


def test_samples_of_different_size() -> None:
    """Each is as it would be alone."""
    w = torch.stack([scaled(matrix(80, 80, seed), e) for seed, e in enumerate((-900, 0, 900))])
    for record, j in zip(estimated_spectrum(Matrices(w), effort_of(80, None, 0)), w, strict=True):
        right = spectrum(j)
        close(record["spectral_norm"], right["spectral_norm"], 1e-9)
        close(record["frobenius"], right["frobenius"], 1e-9)


def of_estimate(a: Matrices) -> list[dict[str, Any]]:
    found = jaccli.estimate(a)
    return [{name: float(e.value[b]) for name, e in found.items()} for b in range(a.shape[0])]


ESTIMATES: dict[str, Callable[[Matrices], list[dict[str, Any]]]] = {
    "spectrum": lambda a: estimated_spectrum(a, effort_of(None, None, 0)),
    "tolerance": lambda a: estimated_spectrum(a, effort_of(None, 0.1, 0)),
    "deviation": lambda a: estimated_deviation(a, effort_of(None, None, 0)),
    "probes": lambda a: estimated_deviation(a, effort_of(8, None, 0)),
    "estimate": of_estimate,
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("n", [N, 80, 410])
@pytest.mark.parametrize("how", ESTIMATES)
def test_not_finite(bad: float, n: int, how: str) -> None:
    """One sample's figures are NaN, with a warning that says so and no other; the others' are what they are."""
    w = torch.stack([matrix(n, n, seed) for seed in range(2)])
    w[1, 2, 3] = bad
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        whole, broken = ESTIMATES[how](Matrices(w))
    texts = [str(one.message) for one in said if not issubclass(one.category, jaccli.errors.JaccliNote)]
    assert any("not finite" in text for text in texts)
    assert all("not finite" in text or "log|det J|" in text for text in texts)
    right = deviation(w[0]) if "relative" in whole else spectrum(w[0])
    for name in ("frobenius", "spectral", "spectral_norm"):
        if name in whole:
            assert whole[name] == pytest.approx(right[name], rel=0.3)
    values = [v for v in broken.values() if isinstance(v, float)]
    assert values
    assert all(math.isnan(v) for v in values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_exactly(bad: float) -> None:
    w = matrix()
    w[2, 3] = bad
    for found in (deviation(w), {k: v for k, v in spectrum(w).items() if k != "singular_values"}):
        assert all(math.isnan(v) for v in found.values())
    a = Matrices(torch.stack([w, matrix()]))
    assert a.singular_values().isnan().all(1).tolist() == [True, False]
    assert a.singular_values(1).isnan().all(1).tolist() == [True, False]


def test_zero() -> None:
    """Its norms and ranks are 0; what has no value is NaN, and nothing fails."""
    for n in (N, 80):
        (found,) = estimated_spectrum(Matrices(torch.zeros(1, n, n, dtype=F64)), effort_of(None, None, 0))
        exact = spectrum(torch.zeros(n, n))
        for name in ("spectral_norm", "frobenius", "stable_rank", "effective_rank", "participation_ratio"):
            assert found[name] == exact[name] == 0
        (away,) = estimated_deviation(Matrices(torch.zeros(1, n, n, dtype=F64)), effort_of(None, None, 0))
        assert away["frobenius"] == pytest.approx(math.sqrt(n))


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_summary(size: float) -> None:
    values = np.array([1.0, 2.0, 4.0])
    (found,) = summary([{"x": float(v * size)} for v in values], ["x"]).values()
    for name, right in (("mean", values.mean()), ("std", values.std()), ("min", 1.0), ("max", 4.0)):
        close(found[name], right * size)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_isometry(size: float) -> None:
    def record(w: Tensor) -> dict[str, Any]:
        end = {"layer": "a", "shape": [N]}
        return {"source": end, "target": end, "samples": [spectrum(w)]}

    pair = [matrix(seed=1), matrix(seed=2)]
    once, found = (isometry([record(w * s) for w in pair]) for s in (1.0, size))
    assert found[0]["gain"] == pytest.approx(once[0]["gain"], rel=1e-10)
    assert found[0]["relative_variance"] == pytest.approx(once[0]["relative_variance"], rel=1e-9)
    assert once[0]["gain"] == pytest.approx(float((pair[0].norm() / pair[1].norm()) ** 2))


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_error_of_a_method(size: float) -> None:
    truth = matrix()[None] * size
    assert relative_error(truth * 1.25, truth) == pytest.approx(0.25)


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-250, 0.75, 1.0, 3.0, 1e250, 1.7e308])
def test_power_of_two(value: float) -> None:
    x = torch.tensor([[value, -value / 2, 0.0]], dtype=F64)
    size = float(power_of_two(x))
    assert math.frexp(size)[0] == 0.5
    assert size <= value < 2 * size or value / size < 2
    assert float(norm(x * 0)) == 0
    assert norm(torch.zeros(2, 0), (1,)).tolist() == [0, 0]
    assert singular_values(x[:, :1]).tolist() == [value]


class Linear(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


class Bottleneck(nn.Module):
    """J = LR, which is not multiplied out."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.right, self.left = Linear(right), Linear(left)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
@pytest.mark.parametrize("model", ["linear", "bottleneck"])
@pytest.mark.parametrize(
    ("towards", "size", "right"),
    [
        ("identity", 1e170, math.inf),
        ("identity", 1e-170, float(N)),
        ("scaled-identity", 1e170, math.inf),
        ("orthogonal", 1e90, math.inf),
        ("zero", 1e170, math.inf),
        ("zero", 1e-170, 0.0),
        ("scaled-identity", 1e-170, 0.0),
    ],
)
def test_squares(towards: Towards, size: float, right: float, model: str, estimator: Any) -> None:
    """They are inf or 0 where they must be, never NaN, and a warning says so."""
    w = matrix() * size if model == "linear" else (matrix(N, 2) * size, matrix(2, N, 1))
    network = Linear(w) if isinstance(w, Tensor) else Bottleneck(*w)
    x = matrix(3, N, 5)
    for wanted in (True, False):
        with torch.set_grad_enabled(wanted), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = deviation_from(towards, network, x, estimator=estimator, probes=2)
        assert found.tolist() == pytest.approx([right] * 3, abs=1e-300)
        assert any("beyond the range" in str(one.message) for one in said) == (right != N)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("exponent", [-8, 0, 8])
def test_few_directions(dtype: torch.dtype, exponent: int) -> None:
    """What makes up most of J is found by a QR decomposition, in formats that have none, too."""
    w = scaled(matrix(80, 1) @ matrix(1, 80, 1) / 16, exponent).to(dtype)
    right = spectrum(w)
    for probes in (None, 40):
        (found,) = estimated_spectrum(Matrices(w[None]), effort_of(probes, None, 0))
        assert found["frobenius"] == pytest.approx(right["frobenius"], rel=0.02)
        assert found["spectral_norm"] == pytest.approx(right["spectral_norm"], rel=0.02)
    near_one = rescaled(Matrices(w[None]))
    values, _ = block_krylov(near_one, 2, "largest")
    assert float(values[0] * near_one.size) == pytest.approx(right["spectral_norm"], rel=0.02)
