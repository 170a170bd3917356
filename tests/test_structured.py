"""The structured engine and its plans: nothing of a point is kept, structure is used, gaps are told."""

from __future__ import annotations

import pytest

import jaccli
from jaccli.api import Plan
from tests.oracle import error
from tests.structured_networks import SEGMENTS, Segment


def replayed(plan: Plan) -> bool:
    """Whether a recorded program gave the last J."""
    return plan.replay is not None and any(r is not None for r in plan.replay.programs.values())


@pytest.mark.parametrize("segment", SEGMENTS, ids=lambda s: s.name)
def test_a_plan_holds_nothing_of_its_point(segment: Segment) -> None:
    model, args = segment.model(), segment.args()
    first, second = segment.x(1), segment.x(2) * 1.5
    pair = segment.source, segment.target
    plan = jaccli.plan(model, first, *pair, method="structured", args=args)
    for x in (second, first):
        truth = jaccli.jacobian(model, x, *pair, method="loop", args=args)
        assert truth.any()
        assert error(plan(x, args=args), truth) < 1e-10
    assert replayed(plan)
    fresh = jaccli.jacobian(model, second, *pair, method="structured", args=args)
    assert error(fresh, jaccli.jacobian(model, second, *pair, method="loop", args=args)) < 1e-10
