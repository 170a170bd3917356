"""Dry runs in several threads, and in each other, are charged to models of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from jaccli.calibration import TYPICAL
from jaccli.graph.elimination.accumulate import plan_elimination
from jaccli.graph.layout.algebra import product, total
from jaccli.graph.layout.block import Block, densify, identity_block
from jaccli.graph.layout.cost import CostModel, measured_rates
from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.maps.elementwise import Mul
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.trace.capture import Graph
from tests.graph.layout.test_windows import planned

CPU = torch.device("cpu")


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def graph_of(width: int) -> Graph:
    layers = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3 * width), nn.Tanh(), nn.Linear(3 * width, width)]
    model = nn.Sequential(*layers).eval()
    return planned(model, torch.randn(4, width, dtype=torch.float64)).graph


@pytest.mark.usefixtures("hasty")
def test_plans_in_two_threads() -> None:
    graphs = [graph_of(8), graph_of(48)]
    alone = [plan_elimination(graph).bracketing for graph in graphs]
    start = Barrier(2)

    def plan_repeatedly(graph: Graph) -> list[object]:
        start.wait()
        return [plan_elimination(graph).bracketing for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(plan_repeatedly, graphs))
    assert together == [[bracketing] * 20 for bracketing in alone]


def test_a_dry_run_within_another() -> None:
    outer, inner = CostModel.of(CPU, torch.float32), CostModel.of(CPU, torch.float64)
    block = densify(identity_block((16, 16), outer))
    before = outer.seconds
    densify(identity_block((64, 64), inner))
    assert outer.seconds == before > 0
    assert inner.peak == 64**4
    densify(densify(block))  # nothing is left to be stored in full
    assert outer.seconds == before


def test_measured_rates_of_one_thread_are_not_those_of_another() -> None:
    with ThreadPoolExecutor(1) as pool, measured_rates():
        assert pool.submit(lambda: CostModel.of(CPU, torch.float32)).result().machine is TYPICAL


def steps(like: Tensor | CostModel) -> list[Block]:
    """A few operations, for numbers and as a dry run."""
    weight = Matrix(1, LazyTensor(lambda: torch.ones(3, 3)), (3, 3))
    scale = Mul(LazyTensor(lambda: torch.full((2, 3), 2.0)), (2, 3))
    one = identity_block((2, 3), like)
    linear = weight.apply(one)
    scaled = scale.apply(linear)
    assert scaled is not None
    both = total(scaled, one)
    return [one, linear, scaled, both, product(both, both, (2, 3)), densify(both)]


def test_dry_runs_give_the_layouts_that_numbers_have() -> None:
    cost = CostModel.of(CPU, torch.float32)
    assert [b.layout for b in steps(cost)] == [b.layout for b in steps(torch.ones(1))]
    assert cost.seconds > 0
