"""A linearization is frozen; what costs passes is computed when asked for, and once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor, nn

from jaccli.planning.bind import bind
from jaccli.planning.linearize import Linearization, computing, linearize
from tests.scenarios import chain


@contextmanager
def linearized(model: nn.Module, x: Tensor) -> Iterator[Linearization]:
    network, pair, inputs = bind(model, x, "input", "output", (), None)
    with computing(network):
        (linearization,) = linearize(network, inputs, [pair])
        yield linearization


def test_nothing_is_assigned() -> None:
    with linearized(chain(4, 5, 3)(), torch.randn(3, 4)) as linearization:
        for name in ("samples_mix", "why_zero", "probe", "linear", "trivial"):
            with pytest.raises(FrozenInstanceError):
                setattr(linearization, name, None)
        with pytest.raises(FrozenInstanceError):
            linearization.probe.row = None  # type: ignore[misc]


def test_probe_and_checks_cost_a_backward_pass_each_and_once() -> None:
    with linearized(chain(4, 5, 3)(), torch.randn(3, 4)) as linearization:
        passes = linearization.linear.passes
        assert dict(passes) == {"forward": 1, "vjp": 1}
        assert len(linearization.known_rows) == 1
        for _ in range(2):
            assert [samples for samples, _, _ in linearization.adjoint_checks] == [slice(0, None, 2), slice(1, None, 2)]
            assert passes["vjp"] == 2
        assert sum(len(rows) for rows in linearization.known_rows) == 3
        for samples, u, row in linearization.adjoint_checks:
            assert u.shape == (3, 3)
            assert row.shape == (3, 4)
            assert not u[[b for b in range(3) if b not in range(3)[samples]]].any()


def test_rounding_is_computed_once() -> None:
    with linearized(chain(4, 5, 3)(), torch.randn(3, 4)) as linearization:
        assert linearization.known_rounding is None
        rounding = linearization.rounding
        vjps = linearization.linear.passes["vjp"]
        assert rounding is not None
        assert linearization.rounding is linearization.known_rounding is rounding
        assert linearization.linear.passes["vjp"] == vjps


def test_structure_is_searched_once() -> None:
    with linearized(chain(4, 5, 3)(), torch.randn(3, 4)) as linearization:
        assert linearization.structure is None
        assert linearization.search_structure() is None
        first = linearization.structure
        assert first is not None
        assert linearization.search_structure() is None
        assert linearization.structure is first
        assert replace(linearization).structure is None


def test_samples_that_turn_out_to_mix_make_another_linearization() -> None:
    with linearized(chain(4, 5, 3)(), torch.randn(3, 4)) as linearization:
        mixing = linearization.with_mixing_samples()
        assert (linearization.samples_mix, mixing.samples_mix) == (False, True)
        assert [samples for samples, _, _ in mixing.adjoint_checks] == [slice(0, 1)]
        assert mixing.search_structure() == "samples mix"
        assert mixing.linear is linearization.linear


def test_no_path() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x) if self.training else x.detach() * 2

    with linearized(Constant().train(), torch.randn(2, 3)) as linearization:
        assert not linearization.connected
        assert not linearization.path_is_hidden
        assert linearization.adjoint_checks == linearization.known_rows == []
    with linearized(Constant().eval(), torch.randn(2, 3)) as linearization:
        assert not linearization.connected
        assert linearization.path_is_hidden
