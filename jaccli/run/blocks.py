"""J of all pairs and all samples, block by block of samples, so that nothing larger than a block need be held.

    samples ─► first block ─► linearize ─► decide: method, size of a block
                  next block ─► linearize ─► execute ─► Piece, one for each pair ─► the caller
                       ▲                                                               │
                       └───────────────────────────────────────────────────────────────┘

One forward pass of a block serves all pairs. The first block is small, since nothing is known of the memory yet; where
samples influence each other through the batch, they are taken together if the memory allows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.errors import RefusedError
from jaccli.methods import METHODS
from jaccli.methods.base import Tick
from jaccli.names import MethodName
from jaccli.networks.network import Network
from jaccli.planning.batch_influence import influence, tell_influence
from jaccli.planning.decide import Decision, decide
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.agreement import compared
from jaccli.run.caveats import report_outcome
from jaccli.run.execute import Outcome, run
from jaccli.run.sample_ranges import has_row_a_sample, pilot_size, take_samples, too_few_fit
from jaccli.runtime.timed import synchronize

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Called with (linearization, decision, block, is_last_block). Returns a function that gives J of the block by a
# compiled program, or None where the method is to be used.
BlockOverride = Callable[[Linearization, Decision, Inputs, bool], Callable[[], Tensor | None] | None]


@dataclass(frozen=True)
class RunOptions:
    """What the caller asked for; see ``planning.decide``.

    Args:
        method: by name, or ``auto``.
        max_memory: bytes that J and the passes may take; by default a share of what is free.
        chunk: rows or columns that go through the network at once.
    """

    method: MethodName = "auto"
    max_memory: int | None = None
    chunk: int | None = None

    @property
    def needs_graph(self) -> bool:
        """Whether the forward pass is recorded for backward passes."""
        return METHODS[self.method].differentiates

    @contextmanager
    def session(self, network: Network) -> Iterator[None]:
        """The session in which the method computes: see ``computing`` and ``exact_attention``."""
        with computing(network), exact_attention(METHODS[self.method].needs_plain_attention):
            yield


@dataclass(frozen=True)
class Piece:
    """J of one pair for one block of samples.

    Args:
        pair: source and target.
        start: number of the first sample.
        decision: how J was to be obtained.
        outcome: J, and how it was.
        source_shape: of one sample; likewise ``target_shape``.
        trivial: source and target are the same activation.
    """

    pair: Pair
    start: int
    decision: Decision
    outcome: Outcome
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    trivial: bool = False


@dataclass
class Stopwatch:
    """Seconds spent planning (linearizing and deciding), computing, and compiling where that was asked for."""

    plan_s: float = 0.0
    compute_s: float = 0.0
    compile_s: float | None = None
    _last: float = field(default_factory=time.perf_counter)

    def restart(self) -> None:
        """Do not count the time since the last call."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last call to a field."""
        now = time.perf_counter()
        setattr(self, name, getattr(self, name) + now - self._last)
        self._last = now


def stream(
    network: Network,
    inputs: Inputs,
    pairs: Sequence[Pair],
    options: RunOptions,
    *,
    keep: bool = False,
    decisions: Sequence[Decision] | None = None,
    accept: Callable[[Linearization], bool] = lambda linearization: True,
    on_plan: Callable[[Sequence[Decision], Sequence[Linearization]], None] = lambda decisions, linearizations: None,
    tick: Tick = lambda done: None,
    watch: Stopwatch | None = None,
    override: BlockOverride | None = None,
) -> Generator[Piece, None, None]:
    """J of every pair, block of samples by block; all pairs of a block from one forward pass.

    Args:
        network: the model.
        inputs: samples and further arguments.
        pairs: addresses.
        options: method and memory.
        keep: the caller holds all results, which then count towards the memory limit.
        decisions: made before, one for each pair; else they are made on the first block.
        accept: whether to compute J of a pair, now that its shape is known.
        on_plan: called with the decisions when they are made.
        tick: called with how many rows or columns of one sample block were finished.
        watch: counts times.
        override: asked first for each block; see ``BlockOverride``.

    Raises:
        RefusedError: the model refuses the input.
        ResourceError: J does not fit the memory.
        UnsupportedError: no method can do this model.
    """
    watch = watch or Stopwatch()
    blocks = _Blocks(network, inputs, pairs, options, decisions, inputs.batch if keep else 0, accept, on_plan, watch)
    with options.session(network):
        if decisions is None:
            blocks.refuse_too_large()
        for start, size, linearizations, decided in blocks:
            watch.lap("plan_s")
            for linearization, decision in zip(linearizations, decided, strict=True):
                compute = None
                if override is not None:
                    watch.restart()
                    block, is_last = take_samples(inputs, start, size), start + size >= inputs.batch
                    compute = override(linearization, decision, block, is_last)
                    watch.lap("plan_s")
                yield _piece(linearization, decision, start, tick, watch, compute)
            # Their graphs are freed before the next block is linearized: only one block's activations fit.
            del linearizations, linearization


@dataclass
class _Blocks:
    """Blocks of samples, linearized, with one decision for each pair; see ``stream``."""

    network: Network
    inputs: Inputs
    pairs: Sequence[Pair]
    options: RunOptions
    decisions: Sequence[Decision] | None
    kept_samples: int
    accept: Callable[[Linearization], bool]
    on_plan: Callable[[Sequence[Decision], Sequence[Linearization]], None]
    watch: Stopwatch

    def __iter__(self) -> Iterator[tuple[int, int, list[Linearization], Sequence[Decision]]]:
        """The first sample of a block, its size, linearizations and decisions."""
        batch, start = self.inputs.batch, 0
        one_size = self.network.only_batch(self.inputs.dim) is not None
        size = batch if one_size else min(batch, self._fitting() if self.decisions else pilot_size(self.inputs))
        while start < batch:
            self.watch.restart()
            linearizations, size = self._linearize(start, size)
            if self.decisions is None:
                linearizations = self._decide(linearizations)
                if not linearizations:
                    return
                if one_size and self._fitting() < batch:
                    raise too_few_fit(batch, self._fitting())
                assert self.decisions is not None
                self.on_plan(self.decisions, linearizations)
                if self._fitting() < size:  # it was larger than what fits, and showed how much fits
                    size = self._fitting()
                    del linearizations
                    continue
            # Asked once, of the first block, before any J is handed over: the answer changes the size of all blocks.
            if start == 0 and size < batch and self._belongs_together(linearizations, size):
                size = batch
                del linearizations
                continue
            yield start, size, linearizations, self.decisions
            del linearizations
            start += size
            size = min(batch - start, self._fitting())

    def refuse_too_large(self) -> None:
        """Refuse, by what one sample shows, a J that does not fit the memory.

        Raises:
            TooLarge: it does not.
        """
        method, limit, graph = self.options.method, self.options.max_memory, self.options.needs_graph
        keep, accept = self.kept_samples, self.accept
        self.watch.restart()
        refuse_too_large(self.network, self.inputs, self.pairs, method, limit, graph=graph, keep=keep, accept=accept)
        self.watch.lap("plan_s")

    def _fitting(self) -> int:
        """How many samples may be taken at a time, by the decisions."""
        return min(decision.block for decision in self.decisions or ())

    def _decide(self, linearizations: Sequence[Linearization]) -> list[Linearization]:
        """Decide for the pairs that are accepted; their linearizations."""
        accepted = [p for p in linearizations if self.accept(p)]
        self.pairs = [p.pair for p in accepted]
        options = self.options
        limit = options.max_memory // max(len(accepted), 1) if options.max_memory is not None else None
        self.decisions = [
            decide(p, options.method, max_memory=limit, chunk=options.chunk, keep=self.kept_samples) for p in accepted
        ]
        return accepted

    def _belongs_together(self, linearizations: Sequence[Linearization], size: int) -> bool:
        """Whether samples influence each other through the batch, and all of them fit; with a warning if they do."""
        batch = self.inputs.batch
        effect = influence(self.network, self.inputs, linearizations, self.options.max_memory)
        if effect is None:
            return False
        together = self._fitting() >= batch
        tell_influence(effect, batch, batch if together else size)
        return together

    def _linearize(self, start: int, size: int) -> tuple[list[Linearization], int]:
        """A block, linearized, and its size: all samples where they mix, or where the model takes no other number."""
        network, inputs, pairs, graph = self.network, self.inputs, self.pairs, self.options.needs_graph
        whole = start == 0 and size == inputs.batch
        try:
            linearizations = linearize(network, take_samples(inputs, start, size), pairs, graph=graph)
        except RefusedError:
            if whole or start:
                raise
            return linearize(network, inputs, pairs, graph=graph), inputs.batch
        mix = any(p.samples_mix for p in linearizations)
        if not whole and start == 0 and (mix or not has_row_a_sample(network, inputs, pairs, size)):
            return linearize(network, inputs, pairs, graph=graph), inputs.batch
        return linearizations, size


def _piece(
    linearization: Linearization,
    decision: Decision,
    start: int,
    tick: Tick,
    watch: Stopwatch,
    compute: Callable[[], Tensor | None] | None,
) -> Piece:
    """J ``(batch, n_out, n_in)`` of a pair for a block: by ``compute`` where that is right, else as decided."""
    f = linearization.linear.f
    watch.restart()
    if decision.method is None and linearization.connected:
        # The plan was made at a point without a path (a dead ReLU), and here there is one.
        decision = decide(linearization, "auto")
    matrix = compute() if compute is not None else None
    error, unsettled = compared(linearization, matrix) if matrix is not None else (None, 0)
    if matrix is None or error is not None:
        outcome, linearization = run(linearization, decision, tick=tick)
    else:
        outcome = Outcome(matrix, "structured", unsettled=unsettled)
        tick(f.n_out)
    if outcome.matrix.device.type != "cpu":
        synchronize()
    watch.lap("compute_s")
    report_outcome(linearization, outcome)
    shapes = f.source.view.shape, f.target.view.shape
    return Piece(linearization.pair, start, decision, outcome, *shapes, linearization.trivial)


def whole_jacobian(
    network: Network, inputs: Inputs, pair: Pair, options: RunOptions, decision: Decision | None = None
) -> Shaped[Tensor, "batch n_out n_in"]:
    """J of one pair and all samples; arguments and errors as for ``stream``.

    Several blocks are copied into place one after another, so that the whole is held once.
    """
    decisions = None if decision is None else [decision]
    pieces = stream(network, inputs, [pair], options, keep=True, decisions=decisions)
    first = next(pieces).outcome.matrix
    if first.shape[0] == inputs.batch:
        pieces.close()  # leaves the session now, not when the generator is collected
        return first
    whole = first.new_empty(inputs.batch, *first.shape[1:])
    whole[: first.shape[0]] = first
    del first
    for piece in pieces:
        matrix = piece.outcome.matrix
        whole[piece.start : piece.start + matrix.shape[0]] = matrix
    return whole
