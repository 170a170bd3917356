"""Figures of J from products alone, for all pairs and samples, block by block: J is never built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.errors import ResourceError, UnsupportedError
from jaccli.linearization.activation_memory import footprint
from jaccli.networks.network import Network
from jaccli.planning.batch_influence import influence, tell_influence
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize, readable
from jaccli.planning.memory import available
from jaccli.planning.mixing_message import where_samples_are
from jaccli.run.blocks import Stopwatch
from jaccli.run.jacobian_operator import JacobianOperator
from jaccli.run.linear_operator import build_operator
from jaccli.run.sample_ranges import take_samples, too_few_fit
from jaccli.text.quantities import human
from jaccli.text.wording import worded

# Vectors over both activations that an estimate holds for each of its probes.
HELD = 6
# A J that must be taken row by row may have 1/HOLD_SHARE of a stated memory.
HOLD_SHARE = 4
# Fewer vectors say little about their own spread.
FEWEST = 8


@dataclass(frozen=True)
class Estimates:
    """Records of some samples of one pair.

    Args:
        pair: source and target.
        start: number of the first sample.
        records: one a sample.
        source_shape: of one sample; likewise ``target_shape``.
        trivial: source and target are the same activation.
    """

    pair: Pair
    start: int
    records: list[dict[str, Any]]
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    trivial: bool = False


def stream_estimates(
    network: Network,
    inputs: Inputs,
    pairs: Sequence[Pair],
    figures: Callable[[JacobianOperator, int], list[dict[str, Any]]],
    *,
    probes: int,
    fixed: bool,
    max_memory: int | None = None,
    accept: Callable[[Linearization], bool] = lambda linearization: True,
    watch: Stopwatch | None = None,
    on_plan: Callable[[Linearization, int, int], None] = lambda linearization, samples, vectors: None,
) -> Iterator[Estimates]:
    """Figures of every pair, samples block by block.

    Args:
        network: the model.
        inputs: samples and further arguments.
        pairs: addresses.
        figures: from the operator of a block of samples, and a number of vectors that fit, to one record a sample.
        probes: vectors that are held at once.
        fixed: whether all ``probes`` must fit; else as many are taken as do.
        max_memory: bytes that activations and vectors may take.
        accept: whether to estimate a pair, now that the shape of its J is known.
        watch: counts times.
        on_plan: called for each pair with how many samples go at a time, and how many vectors of each.

    Raises:
        ResourceError: one sample does not fit.
        UnsupportedError: samples mix, so that products are not of each sample's own block.
    """
    watch = watch or Stopwatch()
    watch.restart()
    sizes = _sizes_of_pairs(network, inputs, pairs, probes, fixed, max_memory, accept, on_plan)
    watch.lap("plan_s")
    hold = defaults.WORKING_SET if max_memory is None else min(defaults.WORKING_SET, max_memory // HOLD_SHARE)
    for pair, trivial, size, vectors in sizes:
        for start in range(0, inputs.batch, size):
            watch.restart()
            block = take_samples(inputs, start, min(size, inputs.batch - start))
            if start == 0 and size < inputs.batch:
                _warn_of_influence(network, inputs, pair, block, max_memory)
            a = build_operator(network, pair, block, quiet=start > 0, hold=hold)
            _check_independent(a)
            records = figures(a, vectors)
            watch.lap("compute_s")
            f = a.function
            yield Estimates(pair, start, records, f.source.view.shape, f.target.view.shape, trivial)


def _sizes_of_pairs(
    network: Network,
    inputs: Inputs,
    pairs: Sequence[Pair],
    probes: int,
    fixed: bool,
    max_memory: int | None,
    accept: Callable[[Linearization], bool],
    on_plan: Callable[[Linearization, int, int], None],
) -> list[tuple[Pair, bool, int, int]]:
    """Of each accepted pair: whether it is trivial, how many samples go at a time, how many vectors of each fit."""
    with computing(network), exact_attention(True):
        one_size = network.only_batch(inputs.dim) is not None
        first = take_samples(inputs, 0, inputs.batch if one_size else min(2, inputs.batch))
        linearizations = [p for p in linearize(network, first, pairs) if accept(p)]
    sizes = [_sizes(p, probes, fixed, max_memory, inputs.batch) for p in linearizations]
    for linearization, (size, vectors) in zip(linearizations, sizes, strict=True):
        if one_size and size < inputs.batch:
            raise too_few_fit(inputs.batch, size)
        on_plan(linearization, size, min(vectors, probes))
    return [(p.pair, p.trivial, *size) for p, size in zip(linearizations, sizes, strict=True)]


def _sizes(
    linearization: Linearization, probes: int, fixed: bool, max_memory: int | None, batch: int
) -> tuple[int, int]:
    """How many samples fit at a time, and how many vectors of one."""
    linear = linearization.linear
    with readable(linear.f.inputs):
        activations = footprint(linear).total // linear.batch
    vector = HELD * (linear.f.n_in + linear.f.n_out) * linear.value.element_size()
    limit = max_memory if max_memory is not None else available(linear.value.device)
    fitting = max((limit - activations) // vector, FEWEST if not fixed else probes)
    need = activations + min(fitting, probes) * vector
    if activations + (probes if fixed else FEWEST) * vector > limit:
        raise ResourceError(
            f"{linearization.name}: the activations of one sample and {min(fitting, probes)} vectors "
            f"need {human(need)}",
            f"expected at most {human(limit)}",
            worded("allow more with {max_memory}, or take fewer {probes}" if fixed else "allow more with {max_memory}"),
        )
    return max(1, min(batch, limit // need)), fitting


def _warn_of_influence(network: Network, inputs: Inputs, pair: Pair, block: Inputs, max_memory: int | None) -> None:
    """Warn where samples influence each other through the batch, which is cut. Cost: see ``influence``."""
    with computing(network), exact_attention(True):
        effect = influence(network, inputs, linearize(network, block, [pair], probe=False), max_memory)
    if effect:
        tell_influence(effect, inputs.batch, block.batch)


def _check_independent(a: JacobianOperator) -> None:
    """Refuse an operator whose samples mix."""
    if a.mixes:
        elsewhere = where_samples_are(a.function)
        raise UnsupportedError(
            "samples mix: a sample's target depends on the other samples, so that products are of the whole batch",
            "expected independent samples",
            elsewhere or worded("take one sample ({samples:0:1}), or J itself ({exact})"),
        )
