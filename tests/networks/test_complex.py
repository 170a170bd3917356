"""A dtype for complex tensors: ``--dtype``, twins in float64, checkpoints, scripts and exports keep them complex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.errors import RefusedError
from jaccli.models.adapt import as_network
from jaccli.models.weights.load_state_dict import load_into
from jaccli.networks.dtypes import counterpart
from jaccli.networks.network import Network
from jaccli.planning.linearize import Pair
from jaccli.run.reference import reference, relative_error
from tests.complex_nets import (
    JACOBIAN,
    N_IN,
    A,
    Argument,
    Attributes,
    B,
    Buffers,
    Container,
    Factors,
    Hidden,
    OnlyComplex,
    Parameters,
    Spelled,
    Tied,
)

X = torch.randn(2, N_IN, generator=torch.Generator().manual_seed(0))
CONTAINERS = ("list", "tuple", "named", "dict", "deque", "nested", "parameters")
EAGER: dict[str, Callable[[], nn.Module]] = {
    "parameters": Parameters,
    "buffers": Buffers,
    "attributes": Attributes,
    "hidden": Hidden,
    "only": OnlyComplex,
    **{kind: lambda kind=kind: Container(kind) for kind in CONTAINERS},  # type: ignore[misc]
}


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, X)


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))


COMPILED: dict[str, Callable[[], Any]] = {
    "script": lambda: scripted(Factors()),
    "frozen": lambda: torch.jit.freeze(scripted(Factors()).eval()),
    "trace": lambda: traced(Parameters()),
    "trace-constants": lambda: traced(Attributes()),
    "trace-dtypes": lambda: traced(Spelled()),
    "export": lambda: exported(Parameters()),
    "export-buffers": lambda: exported(Buffers()),
    "export-constants": lambda: exported(Attributes()),
    "export-dtypes": lambda: exported(Spelled()),
}


def held(network: Network, dtype: torch.dtype, tolerance: float, truth: np.ndarray[Any, Any] = JACOBIAN) -> None:
    J = jaccli.jacobian(network, X.to(dtype))
    assert J.dtype == dtype
    np.testing.assert_allclose(J[0].numpy(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*EAGER, *COMPILED])
def test_both_ways(name: str) -> None:
    """To float64 J is exact; from there to float32 it is good to float32."""
    network = as_network((EAGER | COMPILED)[name]())
    double = network.cast(dtype=torch.float64)
    held(double, torch.float64, 1e-12)
    held(double.cast(dtype=torch.float32), torch.float32, 1e-5)
    held(network, torch.float32, 1e-5)  # nothing was done to the model


@pytest.mark.parametrize("name", [*EAGER, *COMPILED])
def test_reference(name: str) -> None:
    network = as_network((EAGER | COMPILED)[name]())
    pair: Pair = (resolve(network, "input"), resolve(network, "output"))
    truth = reference(network, Inputs((X,)), pair)
    assert relative_error(torch.from_numpy(JACOBIAN).expand(2, -1, -1), truth.matrix) == pytest.approx(0, abs=1e-6)


def test_argument() -> None:
    """A complex further argument goes with the model: in a reference, and from a file."""
    network = as_network(Argument())
    pair: Pair = (resolve(network, "input"), resolve(network, "output"))
    for given in (Inputs((X, A)), Inputs((X,), {"a": A})):
        truth = reference(network, given, pair)
        assert relative_error(torch.from_numpy(JACOBIAN).expand(2, -1, -1), truth.matrix) == pytest.approx(0, abs=1e-6)
        assert truth.name.startswith("float64")


@pytest.mark.parametrize("container", [list, tuple, dict])
def test_inputs_in_containers(container: Any) -> None:
    pair = {"a": A, "b": X}
    value = pair if container is dict else container(pair.values())
    twin = Inputs((X, value), {"more": value, "n": 3}).converted(dtype=torch.float64)
    for found in (twin.args[1], twin.kwargs["more"]):
        a, b = found.values() if container is dict else found
        assert (a.dtype, b.dtype) == (torch.complex128, torch.float64)
    assert twin.args[0].dtype == torch.float64
    assert twin.kwargs["n"] == 3


def test_tied_stay_tied() -> None:
    model = Tied()
    model.a.grad = A.clone()
    twin = as_network(model).cast(dtype=torch.float64).module  # type: ignore[attr-defined]
    assert twin.a is twin.inner.b is twin.listed[0]
    assert twin.a.dtype == torch.complex128
    assert isinstance(twin.a, nn.Parameter)
    assert twin.a.requires_grad
    assert model.a.dtype == torch.complex64
    assert model.a.grad is not None
    again = as_network(Parameters()).cast(dtype=torch.float64).module  # type: ignore[attr-defined]
    assert again.a.requires_grad
    assert not again.b.requires_grad
    J = A.to(torch.complex128)
    held(as_network(model).cast(dtype=torch.float64), torch.float64, 1e-12, (J @ J.mT).real.numpy())


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        (torch.complex64, torch.float64, torch.complex128),
        (torch.complex128, torch.float32, torch.complex64),
        (torch.complex64, torch.float16, torch.complex32),
        (torch.complex32, torch.float32, torch.complex64),
        (torch.complex128, torch.bfloat16, torch.complex64),
        (torch.float16, torch.float64, torch.float64),
        (torch.int32, torch.float64, torch.int32),
        (torch.bool, torch.float16, torch.bool),
        (torch.complex64, None, torch.complex64),
    ],
    ids=str,
)
def test_counterpart(kind: torch.dtype, dtype: torch.dtype | None, expected: torch.dtype) -> None:
    assert counterpart(kind, dtype) == expected


def test_kinds_that_do_not_fit() -> None:
    """Complex numbers are never made real on the quiet, and real ones that are made complex are a warning."""
    with pytest.raises(RefusedError, match="complex64"):
        load_into(nn.Linear(N_IN, 3, bias=False), {"weight": A.mT})
    with pytest.warns(jaccli.JaccliWarning, match="imaginary"):
        load_into(Parameters(), {"gain": torch.ones(()), "a": A.real.clone(), "b": B})
