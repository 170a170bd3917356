"""A network, and all figures of a switch on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from costs import memory
from networks import Case
from torch import Tensor

import jaccli
from ablation.fingerprints import fingerprint, recorded_programs, steps
from ablation.switch import Switch
from ablation.timing import in_turns, least
from jaccli.activations.record import Inputs
from jaccli.graph import CaptureGap, Pool, Program, capture, jacobian, plan_elimination, programs_of
from jaccli.planning.linearize import linearize
from jaccli.run.blocks import RunOptions
from jaccli.run.planned import Plan
from jaccli.run.program_runner import ProgramRunner
from jaccli.run.sample_ranges import take_samples

Result = dict[str, Any]
# Later comparisons of J with a backward pass are far from here: they fall on calls 1, 2, 4, 8, …
_NOT_COMPARED = 3 * 2**20


class Subject:
    """A network with its baseline, against which switches are measured.

    Attributes:
        plan: the baseline; made, with its first call, in ``plan_s`` seconds.
        truth: J by it.
        runner: its program; None where it has none. The program alone is recorded in ``record_s`` seconds.
    """

    def __init__(self, case: Case, rounds: int) -> None:
        self.case, self.rounds, self.model = case, rounds, case.model()
        self.x, self.others = case.samples(0), case.samples(1)
        self.single()  # imports
        self.recorded = self._recorded()
        self.steps, self.single_truth = steps(self.single)
        self.plan_s, self.plan = least(self._planned_and_called, 5)
        self.truth, self.peak = self.plan(self.x), self._peak_bytes(self.plan)
        self.runner = _runner_of(self.plan)
        if self.runner is not None:
            self.record_s, programs = least(self._programs, 5)
            own = fingerprint(self.runner.program)
            self._kernels = next((i for i, p in enumerate(programs) if fingerprint(p) == own), 0)
            self._own = fingerprint(programs[self._kernels])

    def single(self) -> Tensor:
        """A call without a plan."""
        return jaccli.jacobian(self.model, self.x, self.case.source, self.case.target)

    def planned(self) -> Plan:
        """A plan made at other samples."""
        return jaccli.plan(self.model, self.others, self.case.source, self.case.target)

    def without(self, switch: Switch) -> Result:
        """All figures of one switch."""
        result: Result = {"network": self.case.name, "switch": switch.name}
        if switch.stage == "engine" and switch.name != "structure" and (failure := self._failure(switch)):
            return result | failure
        plan = getattr(self, f"_{switch.stage}")(switch, result)
        if plan is not None:
            self._compare(switch, plan, result)
        if switch.stage in ("engine", "single"):
            with switch.off():
                seen, matrix = steps(self.single)
            if seen != self.steps:
                result["first"] = in_turns(self.single, self.single, switch.off, self.rounds)
                result["first_differs"] = _difference(matrix, self.single_truth)
        return result

    def _failure(self, switch: Switch) -> Result | None:
        """Why the engine alone, without the methods that stand in for it, has no J without a part."""
        try:
            with switch.off(), RunOptions("structured", None, None).session(self.plan.network):
                (linearization,) = linearize(
                    self.plan.network, self._inputs, [self.plan.pair], graph=False, probe=False
                )
                jacobian(plan_elimination(capture(linearization.linear.f)))
        except CaptureGap as gap:
            mistaken = isinstance(gap.__cause__, TypeError | AttributeError | NameError)  # the stand-in is
            return {"error" if mistaken else "gap": str(gap)[:300]}
        return None

    @cached_property
    def _inputs(self) -> Inputs:
        return Inputs.of(self.others, (), {}, self.plan.dim)

    def _compare(self, switch: Switch, plan: Plan, result: Result) -> None:
        """Planned calls of the baseline and of another plan, with the part left out."""
        with switch.off():
            result["differs"] = _difference(plan(self.x), self.truth)
            peak = self._peak_bytes(plan)
        result["memory"] = {"with_bytes": self.peak, "without_bytes": peak, "ratio": peak / self.peak}
        result["planned"] = in_turns(lambda: self.plan(self.x), lambda: plan(self.x), switch.off, self.rounds)
        result["method"], result["groups"] = plan.decision.method, plan.program_cache and plan.program_cache.groups

    # What a plan is without a part, by stage; None where that changes no planned call.

    def _program(self, switch: Switch, result: Result) -> Plan | None:
        if self.runner is None:
            return None
        with switch.off():
            seconds, programs = least(self._programs, 2)
        result["planning"] = {"with_s": self.record_s, "without_s": seconds, "ratio": seconds / self.record_s}
        program = programs[min(self._kernels, len(programs) - 1)]
        result["length"] = [self.runner.program.length, program.length]
        return self._holding(program) if fingerprint(program) != self._own else None

    def _engine(self, switch: Switch, result: Result) -> Plan | None:
        with switch.off():
            recorded = self._recorded()
        return self._race(switch, result) if recorded != self.recorded else None

    def _race(self, switch: Switch, result: Result) -> Plan | None:
        with switch.off():
            seconds, plan = least(self._planned_and_called, 3)
        result["planning"] = {"with_s": self.plan_s, "without_s": seconds, "ratio": seconds / self.plan_s}
        return None if switch.name != "nothing" and self._runs_alike(plan) else plan

    def _call(self, _switch: Switch, _result: Result) -> Plan | None:
        runner = self.runner
        takes_memory = runner is not None and (runner.program.fills_output or runner.groups > 1)
        return self._holding(runner.program) if runner is not None and takes_memory else None

    def _single(self, _switch: Switch, _result: Result) -> None:
        return None

    def _recorded(self) -> list[Any]:
        """The fingerprints of all programs that a plan records."""
        with recorded_programs() as found:
            self.planned()
        return found

    def _planned_and_called(self) -> Plan:
        """A plan after its first call, which compares J with a backward pass; the others will not."""
        plan = self.planned()
        plan(self.x)
        if (runner := _runner_of(plan)) is not None:
            runner.calls = _NOT_COMPARED
        return plan

    def _programs(self) -> list[Program]:
        """Recorded again for the bracketing and the groups of the baseline."""
        assert self.runner is not None
        network, pair = self.plan.network, self.plan.pair
        group = take_samples(self._inputs, 0, self._inputs.batch // self.runner.groups)
        with self.plan.options.session(network):
            (linearization,) = linearize(network, group, [pair], graph=False, probe=False)
            graph = capture(linearization.linear.f)
            return programs_of(graph, plan_elimination(graph, self.plan.decision.bracketing), fusing=True)[0]

    def _holding(self, program: Program) -> Plan:
        """The baseline's plan with another program."""
        cache, runner = self.plan.program_cache, self.runner
        assert cache is not None
        assert runner is not None
        other = ProgramRunner(program, Pool(), runner.threads, groups=runner.groups, calls=_NOT_COMPARED)
        return replace(self.plan, program_cache=replace(cache, programs=dict.fromkeys(cache.programs, other)))

    def _runs_alike(self, plan: Plan) -> bool:
        """Whether a plan runs the baseline's program in the same way."""
        mine, other = self.runner, _runner_of(plan)
        if mine is None or other is None:
            return False
        same_way = (other.groups, other.threads) == (mine.groups, mine.threads)
        return same_way and bool(fingerprint(other.program) == fingerprint(mine.program))

    def _peak_bytes(self, plan: Plan) -> int:
        """The most memory of a planned call, with what the plan keeps."""

        def make() -> Callable[[], Tensor]:
            return lambda: plan(self.x)

        return memory(make)[0] + plan.kept_bytes


def _runner_of(plan: Plan) -> ProgramRunner | None:
    return next(iter(plan.program_cache.programs.values()), None) if plan.program_cache is not None else None


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of an entry over the largest entry."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
