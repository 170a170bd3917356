"""A structured plan at work: programs recorded once, checked at a second point, and run from then on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.errors import ResourceError, UsageError, note, warn
from jaccli.graph import Bracketing, CompileGap, Pool, Program, capture, compiled, plan_elimination
from jaccli.graph.program.trace import alike, trace
from jaccli.methods.base import perturbed
from jaccli.networks.network import Network
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.blocks import Choice, collect, part, stream
from jaccli.run.execute import disagreement, report_unchecked
from jaccli.run.program_runner import ProgramRunner, contiguous, groupings, tensors, threads
from jaccli.run.signature import Signature, signature
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.text.wording import worded

# What is this much faster is faster; else the memory decides. Other kernels cannot put results into rooms.
CLEARLY = 1.05
# Programs within this of the fastest run against each other again, in so many turns.
NEAR = 1.8
TURNS = 3


@dataclass
class ProgramCache:
    """J of further samples by programs; what cannot be replayed is computed anew each time.

    Attributes:
        programs: by the shapes, dtypes and devices of the inputs; None where replay was given up.
        stamp: of the network when they were recorded.
        pool: memory for results.
        groups: of samples, one after another, at as many samples as the plan was made with.
        compile: programs go through ``torch.compile``, which took ``compile_s`` seconds in all.
        timed: programs are raced; else the first that is right is taken, by no clock.
    """

    network: Network
    pair: Pair
    choice: Choice
    decision: Decision
    programs: dict[Signature, ProgramRunner | None] = field(default_factory=dict)
    stamp: Fingerprint | None = None
    pool: Pool = field(default_factory=Pool)
    groups: int = 1
    compile: bool = False
    compile_s: float = 0.0
    timed: bool = True

    def __call__(self, inputs: Inputs) -> Tensor:
        """J of the samples, ``(batch, n_out, n_in)``.

        Raises:
            UsageError: the model takes another branch than it took when the plan was made.
        """
        now = self.network.stamp()
        if now != self.stamp:
            self.programs.clear()
            self.stamp = now
        inputs = contiguous(inputs)
        key = signature(inputs)
        if key not in self.programs:
            matrix = self._anew(inputs)
            if len(self.programs) >= defaults.REPLAY_KEPT:
                self.programs.pop(next(iter(self.programs)))
            self.programs[key] = self.record(inputs, matrix)
            return matrix
        recorded = self.programs[key]
        found = self._ran(recorded, key, inputs) if recorded is not None else None
        if recorded is None or found is None:
            return self._anew(inputs)
        matrix, guards = found
        for value, read in zip(guards, recorded.way, strict=True):
            if value.item() != read:
                raise UsageError(
                    f"this plan does not fit: taken branch {value.item()!r}",
                    f"expected {read!r}: the model reads it out of its activations and goes another way",
                    "make a plan for these samples",
                )
        if not self._holds_here(recorded, inputs, matrix):
            self.programs[key] = None
            return self._anew(inputs)
        _warn_of_nonfinite(matrix)
        return matrix

    def _ran(self, recorded: ProgramRunner, key: Signature, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """A run of a program, which is given up where it fails."""
        try:
            return recorded.run(inputs, self.pool)
        except Exception as error:
            if is_out_of_memory(error):
                raise ResourceError(
                    f"out of memory in a plan of {inputs.batch} samples", "", "plan for fewer samples at a time"
                ) from None
            note(f"the recorded program fails, and is not used any more: {reason(error)}")
            self.programs[key] = None
            return None

    def _holds_here(self, recorded: ProgramRunner, inputs: Inputs, matrix: Tensor) -> bool:
        """Whether J agrees with a backward pass, asked at calls 1, 2, 4, 8, …: rules are wrong at some points only.

        Cost: there, a forward and two backward passes.
        """
        recorded.calls += 1
        if recorded.calls & (recorded.calls - 1):
            return True
        with computing(self.network), exact_attention(self.choice.exact_attention):
            (linearization,) = linearize(self.network, inputs, [self.pair])
            off = disagreement(linearization, matrix)
        if off is None:
            report_unchecked(linearization, linearization.name)
            return True
        truth = "a backward pass" if linearization.probe.backward_gap is None else "differences"
        note(f"the recorded program gave a J that is {off:.2g} off {truth}, and is not used any more")
        return False

    def replayed(self, recorded: ProgramRunner, inputs: Inputs) -> Tensor | None:
        """J by a program, the network unchanged since it was recorded; None where another branch is taken."""
        matrix, guards = recorded.run(contiguous(inputs), self.pool)
        return matrix if [guard.item() for guard in guards] == recorded.way else None

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that is kept between calls."""
        return sum(r.kept_bytes for r in self.programs.values() if r is not None)

    def forget(self) -> None:
        """Let go of the memory that is kept between calls; the next call takes it anew."""
        self.pool = Pool()
        for recorded in self.programs.values():
            if recorded is not None:
                recorded.furnished.clear()

    def _anew(self, inputs: Inputs) -> Tensor:
        pieces = stream(self.network, inputs, [self.pair], self.choice, keep=True, decisions=[self.decision])
        return collect(pieces, inputs.batch)

    def linearize(self, inputs: Inputs, linearization: Linearization) -> float | None:
        """Record at the samples of the plan; seconds of a call, or None where it cannot be replayed."""
        self.stamp = self.network.stamp()
        bracketings = linearization.engine.bracketings() if linearization.engine is not None else []
        recorded = self.record(inputs, bracketings=bracketings)
        self.programs[signature(inputs)] = recorded
        if recorded is None:
            return None
        self.groups = recorded.groups
        return recorded.seconds

    def record(
        self, inputs: Inputs, truth: Tensor | None = None, bracketings: Sequence[Bracketing] = ()
    ) -> ProgramRunner | None:
        """Record programs at these inputs and keep the fastest; None where the engine disagrees with it elsewhere.

        Cost: some times J; what is checked are J here, by an independent product, and J at a point nearby.
        """
        inputs = contiguous(inputs)
        try:
            truth = self._anew(inputs) if truth is None else truth
            tried: Sequence[Bracketing | None] = bracketings or [self.decision.bracketing]
            found = [(raced, bracketing) for bracketing in tried if (raced := self._raced(inputs, bracketing, truth))]
            if not found:
                return None
            recorded = self._settled([first for (first, _), _ in found], inputs)
            others, bracketing = next(
                (others, bracketing) for (first, others), bracketing in found if first is recorded
            )
            self.decision = replace(self.decision, bracketing=bracketing)
            if self.compile:
                rest = [(first, bracketing) for (first, _), bracketing in found if first is not recorded]
                return self._compiled([(recorded, bracketing), *rest], inputs)
            recorded = self._grouped(self._rivalled(recorded, others, inputs), inputs, truth)
            return recorded if self._holds(recorded, inputs) else None
        except Exception:  # whatever fails in a program, the plan does without one
            return None

    def _compiled(
        self, found: Sequence[tuple[ProgramRunner, Bracketing | None]], inputs: Inputs
    ) -> ProgramRunner | None:
        """The first program that ``torch.compile`` takes, the fastest before all; that as it is, with a note, where it
        takes none."""
        held, gaps = [], []
        for recorded, bracketing in found:
            if not self._holds(recorded, inputs):
                continue
            held.append(recorded)
            try:
                with threads(recorded.threads):
                    done = compiled(recorded.program, tensors(inputs), alike)
            except CompileGap as gap:
                gaps.append(gap)
                continue
            self.compile_s += done.seconds
            self.decision = replace(self.decision, bracketing=bracketing)
            program = replace(recorded.program, call=done.call, housed=None, plan_memory=None, seen=None)
            recorded = ProgramRunner(program, recorded.threads)
            return replace(recorded, seconds=recorded.measured(inputs, self.pool))
        if gaps:
            note(worded("{compile:True}: {gap}; the program runs uncompiled", gap=gaps[0]))
        return held[0] if held else None

    def _holds(self, recorded: ProgramRunner, inputs: Inputs) -> bool:
        """Whether the program gives J at another point too: nothing of the point may be baked in."""
        elsewhere = Inputs((perturbed(inputs.args[0]), *inputs.args[1:]), inputs.kwargs, inputs.dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            there = self._anew(elsewhere)
        got = self.replayed(recorded, elsewhere)
        return got is None or alike(got, there)

    def _raced(
        self, inputs: Inputs, bracketing: Bracketing | None, truth: Tensor, groups: int = 1
    ) -> tuple[ProgramRunner, list[Program]] | None:
        """The program of a bracketing, timed, and those with other kernels; None where it gives another J."""
        programs = self._traced(part(inputs, 0, inputs.batch // groups), bracketing)
        recorded = ProgramRunner(programs[0], torch.get_num_threads(), groups=groups)
        matrix = self.replayed(recorded, inputs)
        if matrix is None or not alike(matrix, truth):
            return None
        return recorded.raced(inputs, self.pool) if self.timed else recorded, programs[1:]

    def _rivalled(self, recorded: ProgramRunner, others: Sequence[Program], inputs: Inputs) -> ProgramRunner:
        """The program, or one with other kernels where that is clearly faster."""
        rivals = [
            ProgramRunner(other, recorded.threads, groups=recorded.groups).raced(inputs, self.pool) for other in others
        ]
        near = self._near([recorded, *rivals], inputs) if rivals else [recorded]
        return min(near, key=lambda found: found.seconds * (1 if found is recorded else CLEARLY))

    def _grouped(self, recorded: ProgramRunner, inputs: Inputs, truth: Tensor) -> ProgramRunner:
        """Group by group where that keeps less memory in no more time."""
        found = [recorded]
        for count in groupings(inputs.batch)[1:]:
            if found[-1].kept_bytes <= defaults.GROUPED_FROM:
                break
            try:
                raced = self._raced(inputs, self.decision.bracketing, truth, count)
            except Exception:  # the model takes no other number of samples
                raced = None
            if raced is None:
                break
            best = min(found, key=lambda r: r.seconds)
            found.append(self._rivalled(*raced, inputs))
            self._near([best, found[-1]], inputs)
            if found[-1].seconds > defaults.GROUPED_SLOWER * best.seconds:
                break
        return self._settled(found, inputs)

    def _settled(self, found: Sequence[ProgramRunner], inputs: Inputs) -> ProgramRunner:
        """The fastest; of those that are as fast, the one that keeps the least memory."""
        near = self._near(found, inputs)
        least = min(r.seconds for r in near)
        return min((r for r in near if r.seconds <= CLEARLY * least), key=lambda r: r.kept_bytes)

    def _near(self, found: Sequence[ProgramRunner], inputs: Inputs) -> list[ProgramRunner]:
        """Those that come near the fastest, timed again in turns: a machine may be twice as fast a second later."""
        least = min(r.seconds for r in found)
        near = [r for r in found if r.seconds <= NEAR * least]
        if len(near) > 1:
            turns = [[r.measured(inputs, self.pool) for r in near] for _ in range(TURNS)]
            for tried, times in zip(near, zip(*turns, strict=True), strict=True):
                tried.seconds = min(times)
                tried.furnished.clear()
        return near

    def _traced(self, inputs: Inputs, bracketing: Bracketing | None) -> list[Program]:
        with computing(self.network), exact_attention(self.choice.exact_attention):
            (linearization,) = linearize(self.network, inputs, [self.pair], graph=False, probe=False)
            graph = capture(linearization.linear.f)
            return trace(graph, plan_elimination(graph, bracketing), fusing=not self.compile)[0]


def _warn_of_nonfinite(matrix: Tensor) -> None:
    """Look for NaN and infinities: everywhere in a small J, in samples of a large one."""
    flat = matrix.view(-1)
    seen = flat if flat.numel() <= defaults.LOOKED_AT else flat[:: -(-flat.numel() // defaults.LOOKED_AT)]
    if not bool(torch.isfinite(seen.sum())) and not bool(torch.isfinite(seen).all()):
        warn("J has non-finite values")
