"""Every value inside a model is what PyTorch makes of the file: numbers, and dtypes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.expressions import EXPRESSIONS, NUMBERS, Evaluated, lines, runs, scripted
from tests.models.intermediates import of_export, of_script
from tests.models.script_nets import SCENARIOS, scenario
from tests.random_networks import random_network

X = torch.tensor([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]])
UNSCRIPTABLE = {"torch.as_tensor(0.5) * x", "x.sum().item() * x"}
UNEXPORTABLE = {
    "float(x.sum()) * x",
    "torch.addcmul(x, x, x, value=0.5)",
}  # the latter after decompositions, of integers
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64]


def traced(expressions: list[str], x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Evaluated(expressions).eval(), x, check_trace=False)


def assert_same(values: list[Any]) -> None:
    assert values
    assert [text for value in values if (text := value.difference())] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_numbers_in_a_trace(dtype: torch.dtype, frozen: bool) -> None:
    x = X.to(dtype)
    module = traced([text for text in lines(EXPRESSIONS) if runs(text, x)], x)
    assert_same(of_script(torch.jit.freeze(module) if frozen else module, (x,)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_numbers_in_a_script(dtype: torch.dtype, frozen: bool) -> None:
    x = X.to(dtype)
    table = [text for text in lines(EXPRESSIONS) if runs(text, x) and text not in UNSCRIPTABLE]
    numbers = [text for text in lines(NUMBERS) if dtype != torch.bfloat16 or "* complex" not in text]  # few kernels
    module = scripted(table + numbers)
    assert_same(of_script(torch.jit.freeze(module) if frozen else module, (x,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_numbers_in_an_export(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    table = [text for text in lines(EXPRESSIONS) if runs(text, x) and text not in UNEXPORTABLE]
    exported = torch.export.export(Evaluated(table), (x,), strict=False)
    assert_same(of_export(exported, (x,)))
    assert_same(of_export(exported.run_decompositions(), (x,)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_networks(name: str) -> None:
    _, module, args = scenario(name)
    assert_same(of_script(module, args))


@pytest.mark.parametrize("seed", range(8))
def test_random_networks(seed: int) -> None:
    drawn = random_network(seed)
    given = (drawn.x, *drawn.args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(drawn.model, given, check_trace=False, strict=False)
    assert_same(of_script(module, given))


@pytest.mark.parametrize("expression", ["torch.tensor(0.3, dtype=x.dtype)", "x.new_full([3], 0.3)"])
def test_what_a_trace_makes_has_the_dtype_of_its_surroundings(expression: str) -> None:
    """A trace names the dtype that an activation had. torch.heaviside takes no two."""
    network = ScriptNetwork(traced([f"torch.heaviside(x, {expression})"], X)).cast(dtype=torch.float64)
    (result,) = network.run((X.double(),), {})
    assert result.dtype == torch.float64


def test_a_traced_recurrent_network_is_cast() -> None:
    """Its first states are zeros of a dtype that the trace spells out."""
    eager, module, args = scenario("recurrent traced")
    given = [arg.double() for arg in args]
    result = ScriptNetwork(module).cast(dtype=torch.float64).run(tuple(given), {})
    torch.testing.assert_close(result, eager(*args).double(), rtol=1e-4, atol=1e-5)
    assert result.dtype == torch.float64
