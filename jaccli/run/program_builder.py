"""Programs of a plan: recorded, verified, and raced against each other by the clock.

For one shape of inputs:

    bracketings ─► a program each ─► the fastest ─► against oneDNN's kernels ─► group by group ─► a second point
                                          └─► torch.compile, if asked for ─────────────────────────┘

No program is kept that gives another J than the engine, at the samples and at a second point.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.errors import note
from jaccli.graph import Bracketing, CompileGap, Pool, Program, capture, compiled, plan_elimination, programs_of
from jaccli.linear_maps.agreement import programs_agree
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Pair, linearize
from jaccli.planning.linearize.nearby import perturbed
from jaccli.run.blocks import RunOptions, whole_jacobian
from jaccli.run.program_runner import ProgramRunner, contiguous, groupings, tensors, threads
from jaccli.run.sample_ranges import take_samples
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


# A program is faster than another if that takes this many times as long; else the one that keeps less memory is taken.
FASTER = 1.05
# Programs that take up to NEAR times as long as the fastest are timed again in turns, TURNS times.
NEAR = 1.8
TURNS = 3


@dataclass
class _Candidate:
    """A program of one bracketing, and programs that do the same with other kernels."""

    runner: ProgramRunner
    rivals: list[Program]
    bracketing: Bracketing | None


@dataclass
class ProgramBuilder:
    """Makes programs for one layer pair.

    Attributes:
        options: what the caller asked for.
        compile: programs go through ``torch.compile``, which took ``compile_s`` seconds in all.
        timed: programs are raced; else the first that is right is taken, by no clock.
        pool: memory for J.
    """

    network: Network
    pair: Pair
    options: RunOptions
    compile: bool = False
    timed: bool = True
    compile_s: float = 0.0
    pool: Pool = field(default_factory=Pool)

    def without_program(self, inputs: Inputs, decision: Decision) -> Tensor:
        """J ``(batch, n_out, n_in)`` by the decision's method, computed anew."""
        return whole_jacobian(self.network, inputs, self.pair, self.options, decision)

    def build(
        self, inputs: Inputs, decision: Decision, truth: Tensor | None = None, bracketings: Sequence[Bracketing] = ()
    ) -> tuple[ProgramRunner, Bracketing | None] | None:
        """The fastest program at inputs like these, and its bracketing; None where no program is right.

        Args:
            inputs: the samples and further arguments.
            decision: gives J where there is no program, and the bracketing where there are no others.
            truth: J ``(batch, n_out, n_in)`` at these inputs, where it is known.
            bracketings: to try.

        Cost: J some times over.
        """
        inputs = contiguous(inputs)
        try:
            truth = self.without_program(inputs, decision) if truth is None else truth
            tried: Sequence[Bracketing | None] = bracketings or [decision.bracketing]
            candidates = [c for b in tried if (c := self._record(inputs, b, truth)) is not None]
            if not candidates:
                return None
            fastest = _fastest([candidate.runner for candidate in candidates], inputs)
            candidates.sort(key=lambda candidate: candidate.runner is not fastest)
            if self.compile:
                return self._compile(candidates, inputs, decision)
            best, bracketing = candidates[0], candidates[0].bracketing
            runner = self._in_groups(self._against_rivals(best, inputs), bracketing, inputs, truth)
            decision = replace(decision, bracketing=bracketing)
            return (runner, bracketing) if self._is_right_elsewhere(runner, inputs, decision) else None
        except Exception:  # a program is a faster way to J that is there without it: no error of it may reach the user
            return None

    def _record(
        self, inputs: Inputs, bracketing: Bracketing | None, truth: Shaped[Tensor, "batch n_out n_in"], groups: int = 1
    ) -> _Candidate | None:
        """The program of a bracketing, timed; None where it gives another J."""
        samples = take_samples(inputs, 0, inputs.batch // groups)
        with self.options.session(self.network):
            (linearization,) = linearize(self.network, samples, [self.pair], graph=False, probe=False)
            graph = capture(linearization.linear.f)
            (program, *rivals), _ = programs_of(graph, plan_elimination(graph, bracketing))
        runner = ProgramRunner(program, self.pool, groups=groups)
        matrix = runner.jacobian(inputs)
        if matrix is None or not programs_agree(matrix, truth):
            return None
        return _Candidate(runner.with_best_threads(inputs) if self.timed else runner, rivals, bracketing)

    def _compile(
        self, candidates: Sequence[_Candidate], inputs: Inputs, decision: Decision
    ) -> tuple[ProgramRunner, Bracketing | None] | None:
        """The first program that ``torch.compile`` takes; the first as it is, with a note, where it takes none."""
        uncompiled, gaps = [], []
        for candidate in candidates:
            runner, bracketing = candidate.runner, candidate.bracketing
            if not self._is_right_elsewhere(runner, inputs, replace(decision, bracketing=bracketing)):
                continue
            uncompiled.append((runner, bracketing))
            try:
                with threads(runner.threads):
                    program, seconds = compiled(runner.program, tensors(inputs))
            except CompileGap as gap:
                gaps.append(gap)
                continue
            self.compile_s += seconds
            runner = ProgramRunner(program, self.pool, runner.threads)
            return replace(runner, seconds=runner.measure(inputs)), bracketing
        if gaps:
            note(worded("{compile:True}: {gap}; the program runs uncompiled", gap=gaps[0]))
        return uncompiled[0] if uncompiled else None

    def _is_right_elsewhere(self, runner: ProgramRunner, inputs: Inputs, decision: Decision) -> bool:
        """Whether a program gives J at another point too: nothing of the point may be baked in."""
        elsewhere = Inputs((perturbed(inputs.args[0]), *inputs.args[1:]), inputs.kwargs, inputs.dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = self.without_program(elsewhere, decision)
        matrix = runner.jacobian(elsewhere)
        return matrix is None or programs_agree(matrix, truth)

    def _against_rivals(self, candidate: _Candidate, inputs: Inputs) -> ProgramRunner:
        """The program, or one with other kernels where that is clearly faster: those cannot use the memory plan."""
        runner = candidate.runner
        rivals = [
            ProgramRunner(program, self.pool, runner.threads, groups=runner.groups).with_best_threads(inputs)
            for program in candidate.rivals
        ]
        near = _near_the_fastest([runner, *rivals], inputs) if rivals else [runner]
        return min(near, key=lambda other: other.seconds * (1 if other is runner else FASTER))

    def _in_groups(
        self,
        runner: ProgramRunner,
        bracketing: Bracketing | None,
        inputs: Inputs,
        truth: Shaped[Tensor, "batch n_out n_in"],
    ) -> ProgramRunner:
        """Group by group of samples, where that keeps less memory in no more time."""
        runners = [runner]
        for count in groupings(inputs.batch)[1:]:
            if runners[-1].kept_bytes <= defaults.GROUPED_FROM:
                break
            try:
                candidate = self._record(inputs, bracketing, truth, count)
            except Exception:  # the model takes no other number of samples
                candidate = None
            if candidate is None:
                break
            best = min(runners, key=lambda r: r.seconds)
            runners.append(self._against_rivals(candidate, inputs))
            _near_the_fastest([best, runners[-1]], inputs)
            if runners[-1].seconds > defaults.GROUPED_SLOWER * best.seconds:
                break
        return _fastest(runners, inputs)


def _fastest(runners: Sequence[ProgramRunner], inputs: Inputs) -> ProgramRunner:
    """The fastest; of those that are within ``FASTER`` of it, the one that keeps the least memory."""
    near = _near_the_fastest(runners, inputs)
    least = min(r.seconds for r in near)
    return min((r for r in near if r.seconds <= FASTER * least), key=lambda r: r.kept_bytes)


def _near_the_fastest(runners: Sequence[ProgramRunner], inputs: Inputs) -> list[ProgramRunner]:
    """Those that come near the fastest, timed again in turns: a machine may be twice as fast a second later."""
    least = min(r.seconds for r in runners)
    near = [r for r in runners if r.seconds <= NEAR * least]
    if len(near) > 1:
        turns = [[r.measure(inputs) for r in near] for _ in range(TURNS)]
        for runner, times in zip(near, zip(*turns, strict=True), strict=True):
            runner.seconds = min(times)
            runner.buffers.clear()
    return near
