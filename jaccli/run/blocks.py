"""All pairs, all samples: J in pieces, so that nothing larger than a block of samples need be held."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs, record
from jaccli.errors import RefusedError, UnsupportedError
from jaccli.linear_maps.agreement import values_agree
from jaccli.names import MethodName
from jaccli.networks.network import Network
from jaccli.planning.batch_influence import influence, tell_influence
from jaccli.planning.decide import Decision, decide
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.run.execute import Outcome, disagreement, report, run
from jaccli.text.wording import worded

Tick = Callable[[int], None]
Instead = Callable[[Linearization, Decision, Inputs, bool], Callable[[], Tensor | None] | None]


@dataclass(frozen=True)
class Choice:
    """What the user asked for; see ``planning.decide``."""

    method: MethodName = "auto"
    max_memory: int | None = None
    chunk: int | None = None

    @property
    def needs_graph(self) -> bool:
        """Whether the forward pass is recorded."""
        return self.method != "finite-difference"

    @property
    def exact_attention(self) -> bool:
        """Whether attention must be made of operators that vmap and forward mode know."""
        return self.method in ("auto", "structured", "reverse", "forward")


@dataclass(frozen=True)
class Piece:
    """J of one pair for the samples from ``start`` on; ``trivial``: see ``Linearization``."""

    pair: Pair
    start: int
    decision: Decision
    outcome: Outcome
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    trivial: bool = False


@dataclass
class Progress:
    """Seconds spent preparing and deciding, computing, and compiling where that was asked for."""

    plan_s: float = 0.0
    compute_s: float = 0.0
    compile_s: float | None = None
    _last: float = field(default_factory=time.perf_counter)

    def restart(self) -> None:
        """What follows begins now."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What lay between the last call and now was this."""
        now = time.perf_counter()
        setattr(self, name, getattr(self, name) + now - self._last)
        self._last = now


def stream(
    network: Network,
    inputs: Inputs,
    pairs: Sequence[Pair],
    choice: Choice,
    *,
    keep: bool = False,
    decisions: Sequence[Decision] | None = None,
    accept: Callable[[Linearization], bool] = lambda linearization: True,
    on_plan: Callable[[Sequence[Decision], Sequence[Linearization]], None] = lambda decided, linearization: None,
    tick: Tick = lambda done: None,
    watch: Progress | None = None,
    instead: Instead | None = None,
) -> Generator[Piece, None, None]:
    """J of every pair, block of samples by block; all pairs of a block from one forward pass.

    Args:
        network: the model.
        inputs: samples and further arguments.
        pairs: addresses.
        choice: method and memory.
        keep: the caller holds all results, which then count towards the memory limit.
        decisions: made before, one for each pair; else they are made on the first block.
        accept: whether a pair is wanted, now that the shape of its J is known.
        on_plan: told the decisions when they are made.
        tick: told how many rows or columns of one sample block were finished.
        watch: filled with times.
        instead: asked first for each block: what gives its J, or None.
    """
    watch = watch or Progress()
    batch, start = inputs.batch, 0
    whole = network.only_batch(inputs.dim) is not None
    held = batch if keep else 0
    first = min(d.block for d in decisions) if decisions else pilot(inputs)
    size = batch if whole else min(batch, first)
    with computing(network), exact_attention(choice.exact_attention):
        if decisions is None:
            watch.restart()
            refuse_too_large(
                network,
                inputs,
                pairs,
                choice.method,
                choice.max_memory,
                graph=choice.needs_graph,
                keep=held,
                accept=accept,
            )
            watch.lap("plan_s")
        while start < batch:
            watch.restart()
            ready, size = _ready(network, inputs, pairs, choice, start, size)
            if decisions is None:
                ready = [p for p in ready if accept(p)]
                pairs = [p.pair for p in ready]
                if not ready:
                    return
                decisions = [_decide(p, choice, held, len(pairs)) for p in ready]
                fits = min(d.block for d in decisions)
                if whole and fits < batch:
                    raise too_few_fit(batch, fits)
                on_plan(decisions, ready)
                if fits < size:  # the first block was only to learn from
                    size = fits
                    del ready
                    continue
            if start == 0 and size < batch and (found := influence(network, inputs, ready, choice.max_memory)):
                together = min(d.block for d in decisions) >= batch
                tell_influence(found, batch, batch if together else size)
                if together:
                    size = batch
                    del ready
                    continue
            watch.lap("plan_s")
            for linearization, decision in zip(ready, decisions, strict=True):
                call = None
                if instead is not None:
                    watch.restart()
                    call = instead(linearization, decision, part(inputs, start, size), start + size >= batch)
                    watch.lap("plan_s")
                yield _piece(linearization, decision, start, tick, watch, call)
            start += size
            size = min(batch - start, min(d.block for d in decisions))
            del ready


def collect(pieces: Generator[Piece, None, None], batch: int) -> Tensor:
    """All samples' J of one pair; several blocks are copied into place, so that the whole is held once."""
    first = next(pieces).outcome.matrix
    if first.shape[0] == batch:
        pieces.close()
        return first
    whole = first.new_empty(batch, *first.shape[1:])
    whole[: first.shape[0]] = first
    del first
    for piece in pieces:
        matrix = piece.outcome.matrix
        whole[piece.start : piece.start + matrix.shape[0]] = matrix
    return whole


def pilot(inputs: Inputs) -> int:
    """Samples of the first block: few where samples are large."""
    first = inputs.args[0]
    sample = first.numel() * first.element_size() // max(inputs.batch, 1) if isinstance(first, Tensor) else 1
    return max(defaults.PILOT_SAMPLES, defaults.PILOT_BYTES // max(sample, 1))


def _decide(linearization: Linearization, choice: Choice, held: int, pairs: int) -> Decision:
    limit = choice.max_memory // pairs if choice.max_memory is not None else None
    return decide(linearization, choice.method, max_memory=limit, chunk=choice.chunk, keep=held)


def _ready(
    network: Network, inputs: Inputs, pairs: Sequence[Pair], choice: Choice, start: int, size: int
) -> tuple[list[Linearization], int]:
    """A block prepared; all samples at once where they mix, or where the model takes no other number."""
    whole = start == 0 and size == inputs.batch
    try:
        ready = linearize(network, part(inputs, start, size), pairs, graph=choice.needs_graph)
    except RefusedError:
        if whole or start:
            raise
        return linearize(network, inputs, pairs, graph=choice.needs_graph), inputs.batch
    if not whole and start == 0 and (any(p.samples_mix for p in ready) or not _separable(network, inputs, pairs, size)):
        return linearize(network, inputs, pairs, graph=choice.needs_graph), inputs.batch
    return ready, size


def _separable(network: Network, inputs: Inputs, pairs: Sequence[Pair], size: int) -> bool:
    """Whether the last samples alone have the values that they have among all.

    An argument may have as many rows as there are samples, and not be one row a sample. Cost: where
    there is such an argument, two forward passes without gradients.
    """
    extras = [*inputs.args[1:], *inputs.kwargs.values()]
    if not any(isinstance(e, Tensor) and e.dim() and e.shape[0] == inputs.batch for e in extras):
        return True
    sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
    size = min(size, inputs.batch)
    every = record(network, inputs, sources, targets, live=False).targets
    few = record(network, part(inputs, inputs.batch - size, size), sources, targets, live=False).targets
    return all(
        few[t].activation.shape[1:] == every[t].activation.shape[1:]
        and values_agree(few[t].activation, every[t].activation[-size:])
        for t in set(targets)
        if t in every
    )


def one_batch_only(given: str, remedy: str) -> UnsupportedError:
    """The error for a model that takes one number of samples (``Network.only_batch``), where another is asked for."""
    return UnsupportedError(
        given,
        "it runs with no other number of samples",
        worded("{remedy}, or export the model with dynamic_shapes", remedy=remedy),
    )


def too_few_fit(batch: int, fits: int) -> UnsupportedError:
    """The same, where fewer samples than it takes fit the memory."""
    given = f"the model was exported for {batch} samples at a time, and {fits} fit the memory"
    return one_batch_only(given, worded("allow more with {max_memory}"))


def part(inputs: Inputs, start: int, size: int) -> Inputs:
    """Some of the samples, as views."""
    if size >= inputs.batch:
        return inputs

    def narrow(tensor: Tensor, dim: int) -> Tensor:
        return tensor.narrow(dim, start, size)

    return inputs.each(narrow)


def _piece(
    linearization: Linearization,
    decision: Decision,
    start: int,
    tick: Tick,
    watch: Progress,
    call: Callable[[], Tensor | None] | None = None,
) -> Piece:
    f = linearization.linear.f
    watch.restart()
    if decision.method is None and linearization.connected:
        # A plan made where there was no path, used at a point where there is one.
        decision = decide(linearization, "auto")
    matrix = call() if call is not None else None
    if matrix is None or disagreement(linearization, matrix) is not None:
        outcome = run(linearization, decision, tick=tick)
    else:
        outcome = Outcome(matrix, "structured")
        tick(f.n_out)
    if outcome.matrix.device.type != "cpu":
        torch.accelerator.synchronize()
    watch.lap("compute_s")
    report(linearization, outcome, linearization.name)
    return Piece(
        linearization.pair,
        start,
        decision,
        outcome,
        f.source.slot.shape,
        f.target.slot.shape,
        linearization.trivial,
    )
