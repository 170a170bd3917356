"""Maps that are known by their products: algebra, SciPy, routes; against matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator, svds
from torch import Tensor, nn

import jaccli
from jaccli.linear_maps.by_rows import ByRows
from jaccli.linear_maps.extreme_singular_values import extreme_singular_values
from jaccli.linear_maps.implementations import Implementation, Implementations
from jaccli.linear_maps.linear_map import Composed, Identity, LinearMap, Matrices
from tests.oracle import error

EYE = torch.eye(4).double()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class TwoProducts(LinearMap):
    """All that a subclass must write."""

    def __init__(self, of: LinearMap) -> None:
        super().__init__(of.shape, of.dtype, of.device)
        self.of = of

    def _matmat(self, v: Tensor) -> Tensor:
        return self.of._matmat(v)

    def _rmatmat(self, u: Tensor) -> Tensor:
        return self.of._rmatmat(u)


A, B, C = drawn(1, 3, 4, 4), drawn(2, 3, 4, 4), drawn(3, 3, 6, 4)
MAPS: dict[str, tuple[Callable[[LinearMap, LinearMap, LinearMap], LinearMap], Tensor]] = {
    "A": (lambda a, b, c: a, A),
    "A.T": (lambda a, b, c: a.T, A.mT),
    "A.T.T": (lambda a, b, c: a.T.T, A),
    "A - I": (lambda a, b, c: a - a.I, A - EYE),
    "A - torch.eye": (lambda a, b, c: a - EYE, A - EYE),
    "A + tensor": (lambda a, b, c: a + B, A + B),
    "A + B": (lambda a, b, c: a + b, A + B),
    "A - B": (lambda a, b, c: a - b, A - B),
    "-A": (lambda a, b, c: -a, -A),
    "2.5 A": (lambda a, b, c: 2.5 * a, 2.5 * A),
    "A 2.5": (lambda a, b, c: a * 2.5, 2.5 * A),
    "C A": (lambda a, b, c: c @ a, C @ A),
    "(C A).T": (lambda a, b, c: (c @ a).T, (C @ A).mT),
    "C (A - B) - C": (lambda a, b, c: c @ (a - b) - c, C @ (A - B) - C),
    "(2 A.T - I).T": (lambda a, b, c: (2 * a.T - a.I).T, 2 * A - EYE),
    "I": (lambda a, b, c: a.I, EYE.expand(3, 4, 4)),
    "two products": (lambda a, b, c: TwoProducts(c), C),
    "two products, A B": (lambda a, b, c: TwoProducts(a) @ b, A @ B),
}


@pytest.mark.parametrize("name", MAPS)
def test_algebra_is_that_of_matrices(name: str) -> None:
    build, truth = MAPS[name]
    a = build(Matrices(A), Matrices(B), Matrices(C))
    batch, n_out, n_in = truth.shape
    assert a.shape == truth.shape
    v, u = drawn(4, batch, n_in, 3), drawn(5, batch, n_out, 3)
    assert torch.allclose(a.matmat(v), truth @ v)
    assert torch.allclose(a.rmatmat(u), truth.mT @ u)
    assert torch.allclose(a.matvec(v[..., 0]), (truth @ v)[..., 0])
    assert torch.allclose(a.rmatvec(u[..., 0]), (truth.mT @ u)[..., 0])
    assert torch.allclose(a.materialise(), truth)
    assert torch.allclose(a.sample(1).materialise(), truth[1:2])
    assert torch.allclose(a.frobenius(), truth.flatten(1).norm(dim=1))
    assert torch.allclose(a.singular_values(), torch.linalg.svdvals(truth))
    assert torch.allclose(a.singular_values(2), torch.linalg.svdvals(truth)[:, :2])
    assert torch.allclose(a.singular_values(2, "smallest"), torch.linalg.svdvals(truth)[:, -2:])
    assert torch.allclose(a.spectral_norm(), torch.linalg.matrix_norm(truth, 2))
    if n_out == n_in:
        assert torch.allclose(a.trace(), truth.diagonal(dim1=1, dim2=2).sum(1))
    assert repr(a)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**20)
)
def test_laws(batch: int, n: int, m: int, q: int, k: int, seed: int) -> None:
    """⟨u, Av⟩ = ⟨Aᵀu, v⟩ and (BA)v = B(Av), empty blocks of vectors too."""
    a, b = Matrices(drawn(seed, batch, m, n)), Matrices(drawn(seed + 1, batch, q, m))
    both = b @ a
    v, u = drawn(seed + 2, batch, n, k), drawn(seed + 3, batch, q, k)
    assert torch.allclose((both.matmat(v) * u).sum(), (both.rmatmat(u) * v).sum())
    assert torch.allclose(both.matmat(v), b @ (a @ v))
    assert both.matmat(v).shape == (batch, q, k)


def test_shapes_that_do_not_meet() -> None:
    a, c = Matrices(A), Matrices(C)
    for bad in (
        lambda: a + c,
        lambda: a @ c,
        lambda: c.I,
        lambda: c.trace(),
        lambda: a + drawn(1, 5, 5),
        lambda: a - 1,  # type: ignore[operator]
        lambda: a[3],
        lambda: a.singular_values(5),
        lambda: Matrices(EYE),
        lambda: a.matvec([1.0]),  # type: ignore[arg-type]
    ):
        with pytest.raises(jaccli.UsageError):
            bad()
    with pytest.raises(jaccli.ResourceError):
        a.materialise(max_memory=10)


def test_the_identity_by_its_name() -> None:
    j = Matrices(drawn(0, 2, 5, 5))
    assert torch.equal(j.identity().materialise(), torch.eye(5, dtype=j.dtype).expand(2, 5, 5))


def test_products_by_rows_where_samples_mix() -> None:
    """J of the whole batch, ``(2 * 3, 2 * 4)``, from its transpose: every sample's rows reach every sample's source."""
    j, v = drawn(1, 6, 8), drawn(2, 2, 4, 3)

    def rmatmat(u: Tensor) -> Tensor:
        return (j.T @ u.reshape(6, -1)).reshape(2, 4, -1)

    product = ByRows(rmatmat, (2, 3, 4), mixes=True, max_bytes=0)
    torch.testing.assert_close(product(v), (j @ v.reshape(8, 3)).reshape(2, 3, 3))


def deep(width: int = 12) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(width, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, width)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("k", [1, 2, 40])
def test_every_way_gives_the_same(k: int, seen: bool) -> None:
    """Single passes, the network's own operators, and batched passes where those cannot be seen."""
    x, model = drawn(1, 3, 12), deep()
    j = jaccli.jacobian(model, x)
    if not seen:
        model.register_forward_hook(lambda _, given, out: out + 0 * torch.rand(1).double())
    a = jaccli.operator(model, x)
    for turn in range(12):
        v = drawn(turn, 3, 12, k)
        assert error(a.matmat(v), j @ v) < 1e-10
        assert error(a.rmatmat(v), j.mT @ v) < 1e-10
    used = {name for product in ("matvec", "rmatvec") for name in a.routes[product]}
    many = {"backward, batched"} if k > 1 else set()
    wanted = {"structured"} if seen else {"double backward, batched" if k > 1 else "double backward"}
    assert used - {"double backward"} == (wanted | many) - {"double backward"}


def test_the_same_calls_take_the_same_routes() -> None:
    """What is taken depends on the numbers of vectors, not on the clock: the same calls give the same digits."""
    x, model = drawn(1, 3, 12), deep()
    found = []
    for _ in range(2):
        a = jaccli.operator(model, x)
        found.append(
            [p for k in (1, 2, 1, 9, 3, 1) for p in (a.matmat(drawn(k, 3, 12, k)), a.rmatmat(drawn(k, 3, 12, k)))]
        )
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_one_forward_pass() -> None:
    """Products cost backward passes, or none; f itself is not evaluated again."""
    a = jaccli.operator(deep(), drawn(1, 3, 12))
    for turn in range(3):
        a.rmatvec(drawn(turn, 3, 12))
    assert a.passes["forward"] == 1
    assert a.passes["vjp"] == 1 + 3  # one looked for samples that mix


def test_composition_of_adjacent_pairs_is_the_chain_rule() -> None:
    model, x = deep(), drawn(1, 3, 12)
    whole = jaccli.jacobian(model, x)
    b, a = jaccli.operator(model, x, "1", "output"), jaccli.operator(model, x, "input", "1")
    assert error((b @ a).materialise(), whole) < 1e-10
    assert isinstance(b @ a, Composed)


def test_a_way_that_is_wrong_is_left_out() -> None:
    """A route is taken when it is verified, and never again when it is not, or raises, or gives NaN."""
    wrong, failing, late = [], [], []

    def lies(v: Tensor) -> Tensor:
        wrong.append(v.shape[-1])
        return A @ v + 1e-3

    def fails(v: Tensor) -> Tensor:
        failing.append(v.shape[-1])
        raise RuntimeError("no such formula")

    def overflows(v: Tensor) -> Tensor:
        late.append(v.shape[-1])
        return A @ v * torch.where(v.abs() > 10, torch.inf, 1.0).prod(1, keepdim=True)

    z = drawn(9, 3, 4)
    found = [Implementation("lies", lies), Implementation("fails", fails), Implementation("overflows", overflows)]
    routes = Implementations(
        "Jv",
        [*found, Implementation("single", lambda v: A @ v, reference=True)],
        lambda: z,
        lambda image: torch.allclose(image, (A @ z[..., None])[..., 0]),
    )
    with pytest.warns(jaccli.JaccliNote, match="disagree"):
        first = routes(drawn(1, 3, 4, 8))
    assert torch.allclose(first, A @ drawn(1, 3, 4, 8))
    for turn in range(5):
        assert torch.allclose(routes(20 * drawn(turn, 3, 4, 8)), A @ (20 * drawn(turn, 3, 4, 8)))
    assert (len(wrong), len(failing), len(late)) == (1, 1, 2)
    assert routes.set_aside == {"lies", "fails", "overflows"}


class Lie(torch.autograd.Function):
    """Its backward pass is not the derivative; the operators that it is made of are another's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 3 * u


def test_products_with_the_network_s_operators_agree_with_its_own_backward_pass() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Lie.apply(x)
            return out

    a = jaccli.operator(Net(), drawn(1, 2, 5))
    for turn in range(3):
        u = drawn(turn, 2, 5, 8)
        assert torch.equal(a.rmatmat(u), 3 * u)


def test_scipy_takes_it() -> None:
    model, x = deep(), drawn(1, 3, 12)
    a, j = jaccli.operator(model, x), jaccli.jacobian(model, x)
    one = a[1]
    assert isinstance(one, LinearOperator)
    assert aslinearoperator(one) is one
    assert one.shape == (12, 12)
    assert np.allclose(one @ np.eye(12), j[1])
    assert np.allclose(one.T @ np.eye(12), j[1].T)
    assert np.allclose(one.H.matvec(np.arange(12.0)), j[1].T @ torch.arange(12.0).double())
    values = np.sort(svds(one, k=3, return_singular_vectors=False))[::-1]
    assert np.allclose(values, torch.linalg.svdvals(j[1])[:3])
    every = a.as_scipy()
    assert every.shape == (36, 36)
    assert np.allclose(every @ np.eye(36), torch.block_diag(*j))
    small = jaccli.operator(deep().bfloat16(), x.bfloat16())[0]
    assert small.dtype == np.float32
    assert np.allclose(small @ np.eye(12, dtype="f4"), j[0], atol=0.05)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + x.mean(0, keepdim=True))


def test_one_sample_of_samples_that_mix_is_its_own_block() -> None:
    x = drawn(1, 3, 4)
    with pytest.warns(jaccli.JaccliWarning, match="samples mix"):
        a = jaccli.operator(Mixing(), x)
    with pytest.warns(jaccli.JaccliWarning, match="samples mix"):
        j = jaccli.jacobian(Mixing(), x)
    assert np.allclose(a[2] @ np.eye(4), j[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_extremes_by_lanczos(dtype: torch.dtype, which: str) -> None:
    """Of a J too large for a quick decomposition; the bounds hold."""
    n = 450
    matrices = torch.eye(n).double() + 0.1 * drawn(1, 2, n, n) / n**0.5
    found = extreme_singular_values(Matrices(matrices.to(dtype)), 3, which)  # type: ignore[arg-type]
    every = torch.linalg.svdvals(matrices)
    truth = every[:, :3] if which == "largest" else every[:, -3:]
    assert torch.all((found.values - truth).abs() <= found.bounds + 1e-12)
    assert torch.all(found.bounds < (1e-4 if dtype == torch.float32 else 1e-7))


def test_many_equal_singular_values() -> None:
    """Lanczos from one vector finds one of them; of J = 0 there is not even a direction."""
    n = 450
    q = torch.linalg.qr(drawn(1, n, n)).Q
    few = torch.cat([torch.full((3,), 5.0), torch.full((n - 3,), 2.0)]).double()
    for matrix, largest, smallest in (
        (q, [1, 1, 1, 1], [1, 1, 1, 1]),
        (torch.zeros(n, n).double(), [0, 0, 0, 0], [0, 0, 0, 0]),
        (q @ torch.diag(few) @ q, [5, 5, 5, 2], [2, 2, 2, 2]),
    ):
        for dtype in (torch.float64, torch.float32):
            a = Matrices(matrix[None].to(dtype))
            for which, truth in (("largest", largest), ("smallest", smallest)):
                found = extreme_singular_values(a, 4, which)  # type: ignore[arg-type]
                assert torch.allclose(found.values[0], torch.tensor(truth).double(), atol=1e-5), (which, truth)


def test_the_smallest_that_do_not_converge_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaccli.linear_maps.extreme_singular_values.DENSE_RATIO", 0)
    wild = drawn(1, 1, 450, 450)
    with pytest.raises(jaccli.UnsupportedError, match="did not converge"):
        extreme_singular_values(Matrices(wild), 1, "smallest")


def test_identity_has_no_matrix() -> None:
    eye = Identity((2, 10**7, 10**7), torch.float32, torch.device("cpu"))
    v = torch.ones(2, 10**7)
    assert eye.matvec(v).data_ptr() == v.data_ptr()
    assert eye.T is eye


def test_samples_are_iterated() -> None:
    a = Matrices(torch.randn(3, 2, 4, dtype=torch.float64))
    assert [one.shape for one in a] == [(2, 4)] * 3


def test_an_end_of_the_spectrum_that_is_mistyped() -> None:
    with pytest.raises(jaccli.UsageError, match=r"which 'larges' is not known(.|\n)*did you mean 'largest'"):
        Matrices(torch.randn(1, 2, 4)).singular_values(1, which="larges")  # type: ignore[arg-type]
