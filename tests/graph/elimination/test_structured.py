"""The structured engine and its plans: nothing of a point is kept, structure is used, gaps are told."""

from __future__ import annotations

import pytest

import jaccli
from jaccli.graph.elimination import accumulate as accumulate_module
from jaccli.run.planned import Plan
from tests.oracle import error
from tests.structured_networks import BY_NAME, SEGMENTS, Segment


def replayed(plan: Plan) -> bool:
    """Whether a recorded program gave the last J."""
    return plan.program_cache is not None and any(r is not None for r in plan.program_cache.programs.values())


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


PARTS = {"SHARE": 0.01, "AT_LEAST": 8, "COMPRESSED_FROM": float("inf")}
COMPRESSED = {"COMPRESSED_FROM": 0.0}


@pytest.mark.parametrize("settings", [PARTS, COMPRESSED], ids=["part by part", "compressed"])
def test_all_ways_give_one_number(settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine does for large J only, done for small ones."""
    for name, value in settings.items():
        monkeypatch.setattr(accumulate_module, name, value)
    off = {}
    for segment in SEGMENTS:
        model, x, args = segment.model(), segment.x(1), segment.args()
        pair = segment.source, segment.target
        truth = jaccli.jacobian(model, x, *pair, method="loop", args=args)
        off[segment.name] = error(jaccli.jacobian(model, x, *pair, method="structured", args=args), truth)
    assert {name: e for name, e in off.items() if not e < 1e-10} == {}


@pytest.mark.parametrize("settings", [PARTS, COMPRESSED], ids=["part by part", "compressed"])
@pytest.mark.parametrize("name", ["convolution windows", "residual", "attention", "pooling"])
def test_plans_of_all_ways_hold_nothing_of_their_point(
    name: str, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in settings.items():
        monkeypatch.setattr(accumulate_module, key, value)
    test_a_plan_holds_nothing_of_its_point(BY_NAME[name])
