"""A plan without its program gives J all the same: where a program fails, is wrong, or is slower than the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli import defaults
from jaccli.run import autotune
from jaccli.run.planned import Plan
from jaccli.run.program_runner import ProgramRunner

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def with_program(network: nn.Module) -> Plan:
    plan = jaccli.plan(network, X, method="structured")
    assert plan.program_cache is not None
    return plan


def check(plan: Plan, network: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(plan(x), jaccli.jacobian(network, x, method="loop"))


def fails(self: ProgramRunner, inputs: Any) -> Any:
    raise RuntimeError("broken")


def doubles(self: ProgramRunner, inputs: Any, run: Callable[..., Any] = ProgramRunner.run) -> Any:
    matrix, values = run(self, inputs)
    return 2 * matrix, values


@pytest.mark.parametrize(("run", "said"), [(fails, "program fails.*: broken"), (doubles, "off a backward pass")])
def test_a_program_that_fails_or_is_wrong(run: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    plan = with_program(network)
    monkeypatch.setattr(ProgramRunner, "run", run)
    with pytest.warns(jaccli.JaccliNote, match=said):
        check(plan, network)
    monkeypatch.undo()
    assert plan.program_cache is not None
    assert list(plan.program_cache.programs.values()) == [None]
    check(plan, network)


def test_no_memory_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ProgramRunner, inputs: Any) -> Any:
        raise torch.OutOfMemoryError

    plan = with_program(model())
    monkeypatch.setattr(ProgramRunner, "run", full)
    with pytest.raises(jaccli.ResourceError, match="a plan of 4 samples"):
        plan(X)


def test_the_oldest_program_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "PROGRAMS_KEPT", 2)
    network = model()
    plan = with_program(network)
    for size in (4, 3, 2, 1, 4):
        check(plan, network, X[:size])
    assert plan.program_cache is not None
    assert [shapes[0][0][0] for shapes, _ in plan.program_cache.programs] == [1, 4]  # type: ignore[misc, index]


def test_a_faster_method_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_seconds_of_method", lambda *_: 0.0)
    network = model()
    plan = jaccli.plan(network, X)
    assert plan.program_cache is None
    assert "measured, the least" in str(plan)
    assert any(line.endswith("measured") and "not structured" in line for line in str(plan).splitlines())
    check(plan, network)
