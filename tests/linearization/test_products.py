"""Products, and what is made of them, where torch's forward mode or second derivative fails: against rows."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from tests import hard_rules, oracle
from tests.hard_rules import HARD
from tests.oracle import INPUT, OUTPUT, error

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def forward_mode() -> None:
    """Products may go by forward mode once a process has loaded what dual numbers need."""
    importlib.import_module("torch._dynamo")


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, samples, and J by rows."""
    build, samples = HARD[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build().double()
    x = samples()
    return model, x, oracle.jacobian(copy.deepcopy(model), x, INPUT, OUTPUT)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


PRODUCTS: dict[str, Callable[[jaccli.JacobianOperator, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "matvec": lambda a, j, v: (a.matvec(v[..., 0])[..., None], j @ v[..., :1]),
    "second matvec": lambda a, j, v: (a.matvec(v[..., 0]), a.matvec(v[..., 1])[..., None], j @ v[..., 1:2])[1:],
    "matmat": lambda a, j, v: (a.matmat(v), j @ v),
    "transposed": lambda a, j, v: (a.T.rmatmat(v), j @ v),
    "rmatmat": lambda a, j, v: (a.rmatmat(j @ v), j.mT @ (j @ v)),
    "of one sample": lambda a, j, v: (a.sample(1).matmat(v[1:2]), j[1:2] @ v[1:2]),
    "SciPy": lambda a, j, v: (torch.from_numpy(np.stack([a[b] @ v[b].numpy() for b in range(len(v))])), j @ v),
    "materialise": lambda a, j, v: (a.materialise(), j),
    "normal matrix": lambda a, j, v: ((a.T @ a).matmat(v), j.mT @ (j @ v)),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", HARD)
def test_products(name: str, product: str) -> None:
    model, x, j = made(name)
    found, right = PRODUCTS[product](jaccli.operator(model, x), j, vectors(len(x), j.shape[2], 11))
    assert error(found, right) < 1e-9


@pytest.mark.parametrize("name", HARD)
def test_j_by_every_method(name: str) -> None:
    """And a plan: no route's exception, and no wrong number, gets out."""
    model, x, j = made(name)
    for method in ("auto", "structured", "reverse", "forward", "loop"):
        assert error(jaccli.jacobian(model, x, method=method), j) < 1e-9, method
        plan = jaccli.plan(model, x, method=method)
        for _ in range(3):
            assert error(plan(x), j) < 1e-9, method


@pytest.mark.parametrize("name", HARD)
def test_singular_values_and_norms(name: str) -> None:
    model, x, j = made(name)
    a = jaccli.operator(model, x)
    assert torch.allclose(a.frobenius(), j.flatten(1).norm(dim=1), rtol=1e-9)
    assert torch.allclose(a.spectral_norm(), torch.linalg.matrix_norm(j, 2), rtol=1e-6)


@pytest.mark.parametrize("name", HARD)
def test_estimates(name: str) -> None:
    """Within six standard errors."""
    model, x, j = made(name)
    gram = j.mT @ j
    found = jaccli.estimate(jaccli.operator(model, x).T @ jaccli.operator(model, x), probes=5)
    for b in range(len(x)):
        for figure, right in (("frobenius", gram[b].norm()), ("trace", gram[b].trace())):
            value, spread = float(found[figure].value[b]), float(found[figure].stderr[b])
            assert abs(value - float(right)) <= 6 * spread + 1e-6 * float(right), figure


def test_a_right_network_sets_nothing_aside() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 4)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", jaccli.JaccliWarning)
        a = jaccli.operator(model, vectors(3, 5))
        for k in (1, 1, 9):
            a.matmat(vectors(3, 5, k))
            a.rmatmat(vectors(3, 4, k))
    assert a.routes["set aside"] == []


def test_what_is_set_aside_is_a_note() -> None:
    model, x, j = made("once differentiable")
    with pytest.warns(jaccli.JaccliNote, match="Jv is taken by rows of J; set aside: double backward"):
        jaccli.operator(model, x).matvec(vectors(len(x), j.shape[2]))


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].clamp(-1, 1)


def guided() -> nn.Module:
    """Its backward pass lets only positive numbers through."""
    relu = nn.ReLU()
    relu.register_full_backward_hook(lambda _, grads, __: (grads[0].clamp(min=0),))
    return nn.Sequential(nn.Linear(5, 8), relu, nn.Linear(8, 4))


def test_a_backward_pass_that_is_not_linear_is_told_of() -> None:
    for model in (guided().double(), hard_rules.Of(5, 6, Clipped.apply).double()):
        with pytest.warns(jaccli.JaccliWarning, match="not linear"):
            jaccli.operator(model, vectors(3, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_backward_pass_that_is_linear_is_not(dtype: torch.dtype) -> None:
    for name in ("once differentiable", "numpy", "no graph"):
        model = HARD[name][0]().to(torch.float32 if name == "numpy" else dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error", jaccli.JaccliWarning)
            jaccli.operator(model, HARD[name][1]().to(next(model.parameters()).dtype))


def test_a_j_with_nan() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.abs().sqrt()

    x = torch.tensor([[1.0, 4, 9], [1, 0, 1]]).double()
    found = jaccli.operator(Root(), x).matmat(torch.eye(3).double().expand(2, 3, 3))
    assert torch.allclose(found[0], (1.5 * x[0].sqrt()).diag())
    assert found[1, 1].isnan().any()


@pytest.mark.parametrize("name", HARD)
def test_the_jacobian_of_a_graph(name: str) -> None:
    """By rows, and by columns where there are few: a derivative of the backward pass that is wrong is noticed."""
    model, x, j = made(name)
    for build in (model, nn.Sequential(model, nn.Linear(j.shape[1], 40 * x.shape[1]).double())):
        h = x.clone().requires_grad_()
        found = jaccli.graph_jacobian(build(h), h, samples=True)
        assert error(found, oracle.jacobian(copy.deepcopy(build), x, INPUT, OUTPUT)) < 1e-9


@pytest.mark.parametrize("name", ["no graph", "numpy", "some of it without a graph", "once differentiable"])
def test_a_derivative_of_j_that_is_missing_is_told(name: str) -> None:
    model, x, _ = made(name)
    h = x.clone().requires_grad_()
    with pytest.warns(jaccli.JaccliWarning, match="derivatives of J"):
        jaccli.graph_jacobian(model(h), h, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["tiny", "max"])
def test_products_at_the_ends_of_a_dtype(dtype: torch.dtype, end: str) -> None:
    """The verifier sees a wrong product of any size, and sets nothing right aside."""
    model = nn.Linear(6, 4, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(vectors(4, 6) * getattr(torch.finfo(dtype), end) ** 0.8)
    a = jaccli.operator(model, vectors(2, 6).to(dtype))
    v = vectors(2, 6, 9).to(dtype)
    for _ in range(2):
        right = model.weight.detach().double() @ v.double()
        size = float(right.abs().max())
        room = 8 * torch.finfo(dtype).eps + 4 * torch.finfo(dtype).tiny / size
        assert float((a.matmat(v).double() - right).abs().max() / size) < room
    assert a.routes["set aside"] == []


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_a_wrong_product_of_any_size_is_seen(scale: float) -> None:
    model, x, j = made("wrong tangent")
    model = nn.Sequential(model, nn.Linear(12, 12, bias=False).double())
    with torch.no_grad():
        model[1].weight.copy_(scale * torch.eye(12).double())
    found = jaccli.operator(model, x).matmat(vectors(len(x), 6, 3))
    assert error(found / scale, j @ vectors(len(x), 6, 3)) < 1e-9
