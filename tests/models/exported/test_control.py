"""Operators that run graphs; a Python function stands for a graph here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jaccli.errors import ResourceError
from jaccli.models.exported import control


def run(graph: Any, operands: Any) -> tuple[Any, ...]:
    return graph(*operands)


def test_a_loop_runs_while_its_test_holds() -> None:
    x = torch.tensor(3.0)
    assert control.while_loop(run, lambda i, x: (i < 3,), lambda i, x: (i + 1, x * 2), [0, x]) == (3, 24.0)
    bounded = control.while_loop(run, lambda i, n: (i < n,), lambda i, n: (i + 1,), [0], [4])
    assert bounded == (4,)


def test_a_loop_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MAX_STEPS", 10)
    with pytest.raises(ResourceError, match="did not end after 10 steps"):
        control.while_loop(run, lambda i: (True,), lambda i: (i,), [0])


def test_maps_and_scans_go_through_the_first_dimension() -> None:
    x, weight = torch.randn(4, 3), torch.randn(3)
    (mapped,) = control.map_impl(run, lambda row, w: (row * w,), [x], [weight])
    assert torch.equal(mapped, x * weight)
    last, sums = control.scan(run, lambda state, row: (state + row, state + row), [torch.zeros(3)], [x])
    assert torch.allclose(sums, x.cumsum(0))
    assert torch.equal(last, sums[-1])


def test_blocks_run_once_in_their_mode() -> None:
    def modes(x: torch.Tensor) -> tuple[Any, ...]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), x

    x = torch.ones(2)
    assert control.set_grad_enabled(run, False, modes, x)[:2] == (False, False)
    assert control.autocast(run, "cpu", torch.bfloat16, True, True, modes, x)[:2] == (True, True)
    assert control.autocast(run, torch.device("cpu"), None, False, False, modes, x)[:2] == (True, False)
    for result in (
        control.inline(run, modes, x),
        control.inline(run, modes, (x,)),
        control.invoke(run, modes, "id", x),
    ):
        assert result[2] is x
