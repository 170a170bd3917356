"""A structured plan at work: programs recorded once, checked at a second point, and run from then on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import JaccliError, UsageError, note, warn
from jaccli.graph.capture import capture
from jaccli.graph.chain import Bracket
from jaccli.graph.compiled import CompileGap, compiled
from jaccli.graph.emit import Program
from jaccli.graph.engine import engine
from jaccli.graph.pool import Pool
from jaccli.graph.program import alike, trace
from jaccli.graph.recorder import CaptureGap, tensors_in
from jaccli.layers.record import Inputs
from jaccli.methods.base import nudged
from jaccli.models.network import Network
from jaccli.models.stamp import Stamp
from jaccli.planning import Decision
from jaccli.prepare import Pair, Prepared, computing, exact_attention, prepare
from jaccli.stream import Choice, collect, stream

Signature = tuple[Any, ...]

# Other kernels cannot put results into rooms, and take more memory: they have to be this much faster.
CLEARLY = 1.05


@dataclass
class Recorded:
    """A program for inputs of one signature, and how many threads serve it best."""

    program: Program
    threads: int
    seconds: float
    furnished: list[tuple[Tensor, ...]] = field(default_factory=list)

    @contextmanager
    def rooms(self, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Memory for intermediate results, which one call at a time may have; kept for the next one."""
        if self.program.rooms is None:
            yield ()
            return
        try:
            places = self.furnished.pop()
        except IndexError:
            places = self.program.furnished(device)
        try:
            yield places
        finally:
            if not self.furnished:
                self.furnished.append(places)


@dataclass
class Replay:
    """J of further samples by programs; what cannot be replayed is computed anew each time.

    Attributes:
        programs: by the shapes, dtypes and devices of the inputs; None where replay was given up.
        stamp: of the network when they were recorded.
        pool: memory for results.
        compile: programs go through ``torch.compile``, which took ``compile_s`` seconds in all.
    """

    network: Network
    pair: Pair
    choice: Choice
    decision: Decision
    programs: dict[Signature, Recorded | None] = field(default_factory=dict)
    stamp: Stamp | None = None
    pool: Pool = field(default_factory=Pool)
    compile: bool = False
    compile_s: float = 0.0

    def __call__(self, inputs: Inputs) -> Tensor:
        """J of the samples, ``(batch, n_out, n_in)``.

        Raises:
            UsageError: the model takes another branch than it took when the plan was made.
        """
        now = self.network.stamp()
        if now != self.stamp:
            self.programs.clear()
            self.stamp = now
        signature = _signature(inputs)
        if signature not in self.programs:
            matrix = self._anew(inputs)
            if len(self.programs) >= defaults.REPLAY_KEPT:
                self.programs.pop(next(iter(self.programs)))
            self.programs[signature] = self.record(inputs, matrix)
            return matrix
        recorded = self.programs[signature]
        if recorded is None:
            return self._anew(inputs)
        matrix, *guards = _run(recorded, inputs, self.pool)
        for value, read in zip(guards, recorded.program.guards, strict=True):
            if value.item() != read:
                raise UsageError(
                    f"this plan does not fit: taken branch {value.item()!r}",
                    f"expected {read!r}: the model reads it out of its activations and goes another way",
                    "make a plan for these samples",
                )
        _warn_of_nonfinite(matrix)
        return matrix

    def replayed(self, recorded: Recorded, inputs: Inputs) -> Tensor | None:
        """J by a program, the network unchanged since it was recorded; None where another branch is taken."""
        matrix, *guards = _run(recorded, inputs, self.pool)
        same_way = all(v.item() == read for v, read in zip(guards, recorded.program.guards, strict=True))
        return matrix if same_way else None

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that is kept between calls."""
        rooms = [r.program.rooms for r in self.programs.values() if r is not None]
        return sum(found.nbytes for found in rooms if found is not None)

    def forget(self) -> None:
        """Let go of the memory that is kept between calls; the next call takes it anew."""
        self.pool = Pool()
        for recorded in self.programs.values():
            if recorded is not None:
                recorded.furnished.clear()

    def _anew(self, inputs: Inputs) -> Tensor:
        pieces = stream(self.network, inputs, [self.pair], self.choice, keep=True, decisions=[self.decision])
        return collect(pieces, inputs.batch)

    def prepare(self, inputs: Inputs, prepared: Prepared) -> float | None:
        """Record at the samples of the plan; seconds of a call, or None where it cannot be replayed."""
        self.stamp = self.network.stamp()
        brackets = prepared.engine.brackets() if prepared.engine is not None else []
        recorded = self.record(inputs, brackets=brackets)
        self.programs[_signature(inputs)] = recorded
        return None if recorded is None else recorded.seconds

    def record(self, inputs: Inputs, truth: Tensor | None = None, brackets: Sequence[Bracket] = ()) -> Recorded | None:
        """Record programs at these inputs and keep the fastest; None where the engine disagrees with it elsewhere.

        Cost: some times J; what is checked are J here, by an independent product, and J at a point nearby.
        """
        try:
            truth = self._anew(inputs) if truth is None else truth
            found = []
            tried: Sequence[Bracket | None] = brackets or [self.decision.bracket]
            for bracket in tried:
                programs, matrix = self._traced(inputs, bracket)
                if alike(matrix, truth):
                    found.append((self._raced(programs[0], inputs), bracket, programs[1:]))
            if not found:
                return None
            recorded, bracket, others = min(found, key=lambda item: item[0].seconds)
            self.decision = replace(self.decision, bracket=bracket)
            rivals = [] if self.compile else [self._raced(program, inputs) for program in others]
            recorded = min([recorded, *rivals], key=lambda found: found.seconds * (1 if found is recorded else CLEARLY))
            if not self._holds(recorded, inputs):
                return None
            return self._compiled(recorded, inputs) if self.compile else recorded
        except (CaptureGap, JaccliError, RuntimeError):
            return None

    def _compiled(self, recorded: Recorded, inputs: Inputs) -> Recorded:
        """The program through ``torch.compile``; as it is, with a note, where that fails."""
        tensors = [t.detach() for t in _tensors(inputs)]
        try:
            with threads(recorded.threads):
                done = compiled(recorded.program, tensors, alike)
        except CompileGap as gap:
            note(f"--compile: {gap}; the program runs uncompiled")
            return recorded
        self.compile_s += done.seconds
        program = replace(recorded.program, call=done.call, housed=None, rooms=None, seen=None)
        recorded = Recorded(program, recorded.threads, 0.0)
        return replace(recorded, seconds=_seconds(recorded, inputs, self.pool))

    def _holds(self, recorded: Recorded, inputs: Inputs) -> bool:
        """Whether the program gives J at another point too: nothing of the point may be baked in."""
        elsewhere = Inputs((nudged(inputs.args[0]), *inputs.args[1:]), inputs.kwargs, inputs.dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            there = self._anew(elsewhere)
        got = self.replayed(recorded, elsewhere)
        return got is None or alike(got, there)

    def _raced(self, program: Program, inputs: Inputs) -> Recorded:
        recorded = _fastest(Recorded(program, torch.get_num_threads(), 0.0), inputs, self.pool)
        recorded.furnished.clear()  # others race too, and one of them is kept
        return recorded

    def _traced(self, inputs: Inputs, bracket: Bracket | None) -> tuple[list[Program], Tensor]:
        with computing(self.network), exact_attention(self.choice.exact_attention):
            (prepared,) = prepare(self.network, inputs, [self.pair], graph=False, probe=False)
            graph = capture(prepared.linear.f)
            return trace(graph, engine(graph, bracket))


def _run(recorded: Recorded, inputs: Inputs, pool: Pool) -> tuple[Tensor, ...]:
    tensors = [t.detach() for t in _tensors(inputs)]
    program = recorded.program
    with torch.no_grad(), threads(recorded.threads), recorded.rooms(tensors[0].device) as places:
        if not program.placing:
            result, *guards = program.run(tensors, None, places)
            return (result.clone() if program.constant else result, *guards)
        result = pool.take(program.shape, program.dtype, tensors[0].device)
        _, *guards = program.run(tensors, result.view(-1), places)
        return (result, *guards)


def _warn_of_nonfinite(matrix: Tensor) -> None:
    """Look for NaN and infinities: everywhere in a small J, in samples of a large one."""
    flat = matrix.view(-1)
    seen = flat if flat.numel() <= defaults.LOOKED_AT else flat[:: -(-flat.numel() // defaults.LOOKED_AT)]
    if not bool(torch.isfinite(seen.sum())) and not bool(torch.isfinite(seen).all()):
        warn("J has non-finite values")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside operators; setting them costs half a microsecond."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fastest(recorded: Recorded, inputs: Inputs, pool: Pool) -> Recorded:
    """With as many threads as serve it best: small operators are faster on one."""
    most = torch.get_num_threads()
    best = dict.fromkeys((most, 1), float("inf"))
    for _ in range(2):  # in turns: what slows the machine down for a while slows both
        for count in best:
            tried = replace(recorded, threads=count)
            _run(tried, inputs, pool)  # the threads start
            best[count] = min(best[count], _seconds(tried, inputs, pool))
    found = [replace(recorded, threads=count, seconds=taken) for count, taken in best.items()]
    return min(found, key=lambda r: r.seconds)


def _seconds(recorded: Recorded, inputs: Inputs, pool: Pool) -> float:
    """The least of some calls."""
    times = []
    for _ in range(defaults.REPLAY_TRIES):
        start = time.perf_counter()
        _run(recorded, inputs, pool)
        times.append(time.perf_counter() - start)
    return min(times)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return list(tensors_in((inputs.args, dict(inputs.kwargs))))


def _signature(inputs: Inputs) -> Signature:
    """What the operators of a program rest on."""
    rest = tuple(a for a in (*inputs.args, *inputs.kwargs.items()) if not isinstance(a, Tensor))
    found = tuple((tuple(t.shape), t.dtype, t.device) for t in _tensors(inputs))
    return (found, repr(rest) if len(inputs.args) + len(inputs.kwargs) > 1 else "")
