"""What makes recorded programs quick, done everywhere: it must change nothing but the time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli import defaults
from jaccli.graph.elimination import accumulate as engines
from jaccli.graph.elimination.accumulate import jacobian
from jaccli.graph.maps import convolution
from jaccli.graph.maps import matrix as mixing
from jaccli.graph.program import call_overhead, codegen, horizontal_fusion, memory_plan, onednn, pipeline
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.memory_plan import MemoryPlan
from jaccli.graph.program.result_pool import Pool
from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, name_of
from jaccli.run import autotune
from jaccli.run.program_runner import ProgramRunner, groupings
from tests.graph.elimination.test_structured import replayed
from tests.graph.elimination.test_structured_plans import in_four_threads
from tests.graph.layout.test_windows import planned
from tests.oracle import error
from tests.structured_networks import BY_NAME, SEGMENTS, Segment

EVERYTHING: dict[str, dict[tuple[ModuleType, str], Any]] = {
    "equal steps as one": {
        (call_overhead, "AVERAGE"): math.inf,
        (call_overhead, "LARGEST"): math.inf,
        (call_overhead, "FEWEST"): 2,
        (horizontal_fusion, "FEWEST_ELEMENTWISE"): 2,
    },
    "no memory plan": {(codegen, "_OUT"): frozenset()},
    "in J's memory": {(memory_plan, "DONATED_FROM"): 0},
    "windows tap by tap": {(convolution, "NARROW"): 0, (convolution, "_TAPS"): 0},
    "products put off": {(mixing, "_OUTER"): 0},
}


@cache
def truth_of(name: str, seed: int, scale: float = 1.0) -> Tensor:
    """J of a segment at samples, row by row."""
    s = BY_NAME[name]
    return jaccli.jacobian(s.model(), s.x(seed) * scale, s.source, s.target, method="loop", args=s.args())


def later_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all programs the one tried last is taken."""
    clock = (2.0**-turn for turn in itertools.count())
    monkeypatch.setattr(ProgramRunner, "with_best_threads", lambda runner, _: replace(runner, seconds=next(clock)))
    monkeypatch.setattr(ProgramRunner, "measure", lambda runner, _: runner.seconds)


@pytest.mark.parametrize("settings", EVERYTHING.values(), ids=list(EVERYTHING))
def test_plans_done_quickly_are_right(
    settings: dict[tuple[ModuleType, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for (module, name), value in settings.items():
        monkeypatch.setattr(module, name, value)
    off: dict[str, float] = {}
    for s in SEGMENTS:
        model, pair, args = s.model(), (s.source, s.target), s.args()
        plan = jaccli.plan(model, s.x(1), *pair, method="structured", args=args)
        assert replayed(plan), s.name
        for x, truth in ((s.x(2) * 1.5, truth_of(s.name, 2, 1.5)), (s.x(1), truth_of(s.name, 1))):
            off[s.name] = max(off.get(s.name, 0.0), error(plan(x, args=args), truth))
    assert {name: e for name, e in off.items() if not e < 1e-10} == {}


def test_plans_done_group_by_group_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    later_is_faster(monkeypatch)
    monkeypatch.setattr(defaults, "GROUPED_FROM", -1)
    off: dict[str, float] = {}
    for s in SEGMENTS:
        model, pair, args = s.model(), (s.source, s.target), s.args()
        plan = jaccli.plan(model, s.x(1), *pair, method="structured", args=args)
        assert plan.program_cache is not None, s.name
        (runner,) = plan.program_cache.programs.values()
        assert runner is not None, s.name
        assert runner.groups == s.x(1).shape[plan.dim], s.name
        for x, truth in ((s.x(2) * 1.5, truth_of(s.name, 2, 1.5)), (s.x(1), truth_of(s.name, 1))):
            off[s.name] = max(off.get(s.name, 0.0), error(plan(x, args=args), truth))
    assert {name: e for name, e in off.items() if not e < 1e-10} == {}


class Steered(nn.Module):
    """Goes another way where a sample is large."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if x.amax() < 10 else x.cos()


def test_every_group_goes_the_way_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    later_is_faster(monkeypatch)
    monkeypatch.setattr(defaults, "GROUPED_FROM", -1)
    x = torch.rand(4, 3, dtype=torch.float64)
    plan = jaccli.plan(Steered(), x, method="structured")
    assert plan.program_cache is not None
    assert plan.program_cache.groups == 4
    assert "in 4 groups of 1;" in str(plan)
    assert error(plan(x), torch.diag_embed(x.cos())) < 1e-15
    x[3, 0] = 20.0
    with pytest.raises(jaccli.UsageError, match="taken branch False"):
        plan(x)


class Counted(nn.Module):
    """Takes four samples at a time and no other number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 3).sin()


class Parted(nn.Module):
    """Samples after the first steer the way, which the first alone does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if x.amax() < 10 else x.sin() * 1.0


@pytest.mark.parametrize("model", [Counted(), Parted()])
def test_samples_that_must_stay_together_do(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    later_is_faster(monkeypatch)
    monkeypatch.setattr(defaults, "GROUPED_FROM", -1)
    x = torch.rand(4, 3, dtype=torch.float64)
    x[3, 0] = 20.0
    plan = jaccli.plan(model, x, method="structured")
    assert replayed(plan)
    assert plan.program_cache is not None
    assert plan.program_cache.groups == 1
    assert error(plan(x), torch.diag_embed(x.cos())) < 1e-15


def test_groups_are_equal_and_ever_more() -> None:
    assert [groupings(n) for n in (1, 7, 10, 16, 12)] == [
        [1], [1, 7], [1, 2, 5, 10], [1, 2, 4, 8, 16], [1, 2, 4, 12],
    ]  # fmt: skip


def test_a_plan_takes_samples_in_any_strides() -> None:
    """What is recorded are views, which may not exist of the same numbers in other strides."""
    off: dict[str, float] = {}
    for s in SEGMENTS:
        model, pair, args, x = s.model(), (s.source, s.target), s.args(), s.x(2)
        turned = torch.empty(x.shape[::-1], dtype=x.dtype).permute(*range(x.dim())[::-1]).copy_(x)
        among = torch.cat([x + 1, x, x - 1])[len(x) : 2 * len(x)]
        truth = truth_of(s.name, 2)
        for first in (s.x(1), turned):
            plan = jaccli.plan(model, first, *pair, method="structured", args=args)
            off[s.name] = max(error(plan(given, args=args), truth) for given in (x, turned, among))
    assert {name: e for name, e in off.items() if not e < 1e-10} == {}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_products_by_onednn_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product in float32 goes through it, with the activation that follows."""
    monkeypatch.setattr(onednn, "SMALLEST", 0)
    monkeypatch.setattr(onednn, "SMALLEST_TANH", 0)
    later_is_faster(monkeypatch)
    activations, off = set[str](), dict[str, float]()
    for s in SEGMENTS:
        if s.args():
            continue
        model, x = s.model().float(), s.x(1).float()
        plan = jaccli.plan(model, x, s.source, s.target, method="structured")
        assert plan.program_cache is not None, s.name
        (runner,) = plan.program_cache.programs.values()
        assert runner is not None, s.name
        activations |= set(re.findall(r"_linear_pointwise_default\(.*'(\w+)', \[\]", runner.program.source))
        x = s.x(2).float()
        off[s.name] = error(plan(x), jaccli.jacobian(model, x, s.source, s.target, method="loop"))
    assert {name: e for name, e in off.items() if not e < 1e-4} == {}
    assert activations == {"none", "tanh", "sigmoid"}


@pytest.mark.parametrize("s", [s for s in SEGMENTS if s.target == "output" and not s.args()], ids=lambda s: s.name)
def test_slices_moved_before_matrices_change_nothing(s: Segment) -> None:
    plan = planned(s.model(), s.x(1))
    if plan.alternative is not None:
        other = engines.plan_elimination(plan.graph, plan.alternative)
        assert error(jacobian(other), jaccli.jacobian(s.model(), s.x(1), method="loop")) < 1e-12


@pytest.mark.parametrize("name", ["attention heads", "coupling", "GRU"])
def test_slices_are_moved(name: str) -> None:
    s = BY_NAME[name]
    assert planned(s.model(), s.x(1)).alternative is not None


@pytest.mark.parametrize("name", ["attention heads", "coupling", "residual", "pooling"])
@pytest.mark.parametrize("last", [False, True])
def test_a_plan_says_what_the_clock_chose(name: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the bracketings is the fastest, it is the one that is told and run."""
    clock = itertools.count(9.0, -1e-3) if last else itertools.count(1.0)
    monkeypatch.setattr(ProgramRunner, "with_best_threads", lambda runner, _: replace(runner, seconds=next(clock)))
    monkeypatch.setattr(ProgramRunner, "measure", lambda runner, _: runner.seconds)
    monkeypatch.setattr(engines, "NEAR", math.inf)
    s = BY_NAME[name]
    plan = jaccli.plan(s.model(), s.x(1), method="structured")
    assert plan.program_cache is not None
    assert "step" in str(plan)
    assert plan.decision.bracketing == plan.program_cache.decision.bracketing
    assert error(plan(s.x(2)), jaccli.jacobian(s.model(), s.x(2), method="loop")) < 1e-12


@pytest.mark.parametrize("name", ["attention", "attention heads", "pooling"])
def test_a_search_that_was_cut_short_goes_on_for_a_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "SOON", 0.0)
    monkeypatch.setattr(defaults, "CLEARLY", math.inf)
    monkeypatch.setattr(autotune, "_seconds_of_method", lambda *_: math.inf)
    s = BY_NAME[name]
    plan = jaccli.plan(s.model(), s.x(1))
    assert plan.decision.method == "structured"
    assert replayed(plan)
    assert error(plan(s.x(2)), jaccli.jacobian(s.model(), s.x(2), method="loop")) < 1e-12


class Elman(nn.Module):
    """A recurrence as a loop, every step read out or the last one."""

    def __init__(self, every: bool) -> None:
        super().__init__()
        self.every = every
        self.enter, self.recur, self.read = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[0], 4), []
        for step in x.unbind(1):
            h = torch.tanh(self.enter(step) + self.recur(h))
            states.append(h)
        return self.read(torch.stack(states, 1) if self.every else h)


@pytest.mark.parametrize("every", [False, True], ids=["last", "every"])
def test_a_recurrence_takes_fewer_steps(every: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, y = Elman(every).double(), torch.randn(2, 9, 3).double(), torch.randn(2, 9, 3).double()
    count = {}
    for longest in (0, 10**6):
        monkeypatch.setattr(call_overhead, "LONGEST", longest)
        plan = jaccli.plan(model, x, method="structured")
        assert plan.program_cache is not None
        (runner,) = plan.program_cache.programs.values()
        assert runner is not None
        count[longest] = runner.program.length
        assert error(plan(y), jaccli.jacobian(model, y, method="loop")) < 1e-12
    assert count[10**6] < count[0]


def variable(*shape: int, tensor: Tensor | None = None) -> Variable:
    strides = torch.empty(shape).stride()
    return Variable(AliasSet(tensor is None), tensor, shape, strides, torch.float32)


def merged(body: list[Instruction], result: Variable) -> Sequence[Instruction]:
    """After the passes that run equal operators as one."""
    (stage,) = (stage for stage in pipeline.STAGES if stage.pays is call_overhead.calls_dominate)
    instructions = Instructions(body, [], [result])
    assert stage.pays(instructions)
    for _, run in stage.passes:
        instructions = run(instructions)
    return instructions.body


def test_steps_that_need_each_other_stay_apart() -> None:
    """x W W W, and a write between two products of one operand."""
    aten = torch.ops.aten
    x, weight = variable(4, 4), variable(4, 4, tensor=torch.eye(4))
    first, second, third, changed = (variable(4, 4) for _ in range(4))
    chain = [
        Instruction(aten.mm.default, (x, weight), {}, [first], False),
        Instruction(aten.mm.default, (first, weight), {}, [second], False),
        Instruction(aten.mm.default, (second, weight), {}, [third], False),
    ]
    kept_apart = [*chain, Instruction(aten.neg.default, (third,), {}, [changed], False)]
    assert len(merged(kept_apart, changed)) == 4
    start = Instruction(aten.neg.default, (x,), {}, [first], False)
    products = [Instruction(aten.mm.default, (first, weight), {}, [out], False) for out in (second, third)]
    write = Instruction(aten.neg_.default, (first,), {}, [first], False, [first])
    total = Instruction(aten.add.Tensor, (second, third), {}, [changed], False)
    assert sum(step.op is aten.mm.default for step in merged([start, *products, total], changed)) == 1
    apart = merged([start, products[0], write, products[1], total], changed)
    assert [step.op for step in apart] == [step.op for step in (start, products[0], write, products[1], total)]


def test_a_plan_says_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    s = BY_NAME["residual"]
    plan = jaccli.plan(s.model(), s.x(1), method="structured")
    assert plan.kept_bytes > 0
    assert "kept between calls" in str(plan)
    monkeypatch.setattr(codegen, "_OUT", frozenset())
    assert jaccli.plan(s.model(), s.x(1), method="structured").kept_bytes == 0


def test_buffers_of_what_lives_together_are_apart() -> None:
    aten = torch.ops.aten
    values = [variable(8) for _ in range(6)]
    view = variable(2, 4)
    steps = [Instruction(aten.neg.default, (a,), {}, [b], False) for a, b in itertools.pairwise(values)]
    steps.insert(2, Instruction(aten.view.default, (values[1], [2, 4]), {}, [view], False))
    end = variable(2, 4)
    steps.append(Instruction(aten.neg.default, (view,), {}, [end], False))
    plan = memory_plan.plan_memory(Instructions(steps, [], [end]), lambda step: step.op is aten.neg.default, False)
    places = {values.index(steps[n].outputs[0]): buffer.start for n, buffer in plan.buffers.items()}  # type: ignore[arg-type]
    assert places.keys() == {1, 2, 3, 4, 5}
    assert all(places[1] != places[n] for n in (2, 3, 4, 5))  # seen through the view at the end
    assert places[2] != places[3] != places[4] != places[5]
    assert plan.nbytes == 3 * 64 - 32


def test_what_lies_in_the_memory_of_j_is_gone_when_j_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "DONATED_FROM", 0)
    neg = torch.ops.aten.neg.default
    values = [variable(8) for _ in range(5)]
    end, whole = variable(32), variable(16)
    steps = [Instruction(neg, (a,), {}, [b], False) for a, b in itertools.pairwise(values)]
    steps.append(Instruction(torch.ops.aten.cat.default, ([values[3], values[4]],), {}, [end], False))

    def planned(donate: bool) -> MemoryPlan:
        return memory_plan.plan_memory(Instructions(steps, [], [end]), lambda step: step.op is neg, donate)

    assert {n: buffer.start for n, buffer in planned(True).donated.items()} == {0: 64, 1: 0}
    assert planned(True).buffers.keys() == {2, 3}
    assert planned(False).buffers.keys() == {0, 1, 2, 3}
    steps[1:1] = [Instruction(torch.ops.aten.as_strided.default, (values[1], [16], [1], 0), {}, [whole], False)]
    assert planned(True).donated.keys() == {2}


@pytest.mark.parametrize("name", ["residual", "LSTM", "attention heads"])
def test_a_program_whose_buffers_overlap_is_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is what was seen to give J."""

    def overlapping(*args: Any, **options: Any) -> MemoryPlan:
        plan = memory_plan.plan_memory(*args, **options)
        return MemoryPlan({n: replace(buffer, start=0) for n, buffer in plan.buffers.items()}, plan.nbytes, {})

    monkeypatch.setattr(codegen, "plan_memory", overlapping)
    s = BY_NAME[name]
    plan = jaccli.plan(s.model(), s.x(1), s.source, s.target, method="structured", args=s.args())
    assert replayed(plan)
    assert plan.kept_bytes == 0
    truth = jaccli.jacobian(s.model(), s.x(2), s.source, s.target, method="loop", args=s.args())
    assert error(plan(s.x(2), args=s.args()), truth) < 1e-10


@pytest.mark.parametrize("inside", [True, False])
def test_plans_go_in_and_out_of_inference_mode(inside: bool) -> None:
    s = BY_NAME["residual"]
    model, here, there = s.model(), s.x(1), s.x(2)
    with torch.inference_mode(inside):
        plan = jaccli.plan(model, here, method="structured")
    truth = jaccli.jacobian(model, there, method="loop")
    for mode in (not inside, inside, not inside):
        with torch.inference_mode(mode):
            assert error(plan(there), truth) < 1e-10


def test_operators_of_others_are_not_taken_for_torchs() -> None:
    assert name_of(Instruction(torch.ops.aten.tanh.default, (), {}, [], False)) == "tanh"
    theirs = SimpleNamespace(_schema=SimpleNamespace(name="theirs::tanh"))
    assert name_of(Instruction(theirs, (), {}, [], False)) == "theirs::tanh"


class Given(nn.Module):
    """Products with what the caller gives, and a number of his."""

    def forward(self, x: Tensor, weight: Tensor, other: Tensor, scale: Tensor) -> Tensor:
        h = (x @ weight).tanh()
        return (h @ other).sin() * scale + (h @ weight[:2]) * torch.ones(())


def test_what_the_caller_gives_is_no_constant() -> None:
    def given(seed: int) -> tuple[Tensor, ...]:
        draw = torch.Generator().manual_seed(seed)
        shapes: list[tuple[int, ...]] = [(3, 2), (2, 2), ()]
        return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)

    x, model = torch.randn(4, 3, dtype=torch.float64), Given()
    plan = jaccli.plan(model, x, method="structured", args=given(0))
    assert replayed(plan)
    for seed in (1, 0, 2):
        truth = jaccli.jacobian(model, x, method="loop", args=given(seed))
        assert error(plan(x, args=given(seed)), truth) < 1e-12


def test_no_two_callers_get_one_piece_of_memory() -> None:
    pool, clashes = Pool(), []

    def work(number: int) -> None:
        for _ in range(2000):
            mine = pool.take((16,), torch.float32, torch.device("cpu"))
            mine.fill_(number)
            clashes.append(bool((mine != number).any()))

    in_four_threads(work)
    assert len(clashes) == 8000
    assert not any(clashes)


def test_a_quicker_program_that_is_not_the_same_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Instructions) -> Instructions:
        return program.with_body(step for step in program.body if not step.written)

    *others, last = pipeline.STAGES
    broken = replace(last, passes=(*last.passes, ("wrong", wrong)))
    monkeypatch.setattr(pipeline, "STAGES", (*others, broken))
    s = BY_NAME["residual"]
    plan = jaccli.plan(s.model(), s.x(1), method="structured")
    assert replayed(plan)
    assert error(plan(s.x(2)), jaccli.jacobian(s.model(), s.x(2), method="loop")) < 1e-12
