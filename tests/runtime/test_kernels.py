"""Which kernels a network runs by: recurrent layers whose backward pass refuses, float32 that is computed in less."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.names import METHOD_NAMES
from jaccli.runtime import kernels
from tests import oracle, standin
from tests.oracle import INPUT, OUTPUT, error

EVERY = [(backend, part) for backend in ("cuda", "mkldnn") for part in ("matmul", "conv", "rnn")]
GET: Any = torch._C._get_fp32_precision_getter
SET: Any = torch._C._set_fp32_precision_setter


class CudnnRnn(torch.autograd.Function):
    """As cuDNN's: no backward pass in evaluation mode, no forward mode, no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


class Layer(nn.Module):
    """Torch's choice: the library's kernel, unless it is switched off."""

    def forward(self, x: Tensor) -> Tensor:
        return CudnnRnn.apply(x) if torch.backends.cudnn.enabled else x.tanh()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), Layer(), nn.Linear(5, 4)).double().eval()


def truth(x: Tensor) -> Tensor:
    model = network()
    model[1] = nn.Tanh()
    return oracle.jacobian(model, x, INPUT, OUTPUT)


def by_method(method: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: jaccli.jacobian(model, x, method=method)


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    **{name: by_method(name) for name in METHOD_NAMES},
    "plan": lambda model, x: jaccli.plan(model, x)(x),
    "operator": lambda model, x: jaccli.operator(model, x).materialise(),
    "products": lambda model, x: jaccli.operator(model, x).matmat(torch.eye(4).double().expand(len(x), 4, 4)),
}


@pytest.fixture
def device() -> Any:
    if torch.accelerator.is_available():
        yield torch.accelerator.current_accelerator()
        return
    with standin.present() as there:
        yield there


@pytest.mark.parametrize("way", WAYS)
def test_a_recurrent_kernel_that_refuses_is_set_aside(way: str, device: torch.device) -> None:
    x = torch.randn(3, 4).double()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = WAYS[way](network().to(device), x.to(device))
    rough = 1e-6 if way == "finite-difference" else 1e-10
    assert error(found.cpu(), truth(x)) <= rough
    assert not [text for text in (str(w.message) for w in said) if "taken with" in text]
    assert torch.backends.cudnn.enabled


def test_a_second_derivative_where_a_recurrent_kernel_refuses(device: torch.device) -> None:
    x = torch.randn(3, 4).double()
    model = network().to(device)
    found = jaccli.identity_deviation(model, x.to(device))
    (grad,) = torch.autograd.grad(found.sum(), model[0].weight)
    assert torch.allclose(found.cpu(), (truth(x) - torch.eye(4)).square().sum((1, 2)), rtol=1e-9)
    assert grad.isfinite().all()
    assert grad.any()


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_a_gradient_that_passes_the_refusing_kernel_on_its_way(estimator: Any, device: torch.device) -> None:
    """J is behind the layer, the parameters are in front of it."""
    grads = []
    for layer, where in ((Layer(), device), (nn.Tanh(), torch.device("cpu"))):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), layer, nn.Sequential(nn.Linear(5, 5), nn.Tanh())).double().eval().to(where)
        x = torch.linspace(-1, 1, 12).double().reshape(3, 4).to(where)
        found = jaccli.identity_deviation(net, x, "1", "output", estimator=estimator, probes=1)
        grads.append(torch.autograd.grad(found.sum(), net[0].weight)[0].cpu())
    assert grads[0].any()
    if estimator == "exact":
        assert torch.allclose(*grads, rtol=1e-9)


class Asking(nn.Module):
    """Looks at the settings from inside, as a model may."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += [GET(*part) for part in EVERY]
        return self.fc(x).tanh()


def state() -> list[Any]:
    return [GET(*part) for part in EVERY] + [_or_refused(read) for read, _, _ in kernels._OLDER]


def _or_refused(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return "mixed"


SETTINGS: dict[str, Callable[[], Any]] = {
    "torch's own": lambda: None,
    "older, products": lambda: torch.set_float32_matmul_precision("medium"),
    "older, convolutions": lambda: torch._C._set_cudnn_allow_tf32(False),  # type: ignore[attr-defined]
    "newer, products": lambda: SET("cuda", "matmul", "tf32"),
    "newer, convolutions": lambda: SET("cuda", "conv", "ieee"),
    "newer, everything": lambda: SET("generic", "all", "tf32"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_is_float32_and_settings_are_put_back(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "REDUCIBLE", EVERY)
    model, x = Asking(), torch.randn(2, 3)
    whole, older = (
        {part: GET(*part) for part in [*EVERY, ("generic", "all")]},
        [read() for read, _, _ in kernels._OLDER],
    )
    try:
        SETTINGS[setting]()
        before = state()
        jaccli.jacobian(model, x)
        jaccli.operator(model, x).matvec(x)
        jaccli.identity_deviation(model, x)
        assert state() == before
        assert not {"tf32", "bf16"} & set(model.seen)
        with kernels.full_precision():
            inside = state()
        assert not any(b == "mixed" and a != "mixed" for a, b in zip(before, inside, strict=True))
    finally:
        for (_, write, _), value in zip(kernels._OLDER, older, strict=True):
            write(value)
        for part, kind in whole.items():
            SET(*part, kind)
