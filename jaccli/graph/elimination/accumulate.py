"""The Jacobian of a captured graph: planned once, then run.

graph ─→ maps of its operators ─→ segments between cuts ─→ bracketing ─┐
                                                                       ├─→ EliminationPlan ─→ jacobian
         pattern of J ─→ colours ─→ compressed passes ─────────────────┘
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from jaccli.graph.elimination.bracketing import Bracketing, Chain, SeedRange
from jaccli.graph.elimination.compressed import Compressed, compressed_plan
from jaccli.graph.elimination.cuts import active_nodes
from jaccli.graph.elimination.describe import describe, describe_passes
from jaccli.graph.elimination.slice_pushdown import pushed_down
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block, identity_block, whole, widened
from jaccli.graph.rules.derivatives import derivatives
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import CaptureGap, Node, gap_where_it_fails

# An intermediate result larger than this share of J, and than this many bytes, makes J be computed part by part, in at
# most MOST_PARTS parts: each has its own instructions in a recorded program.
SHARE = 0.25
AT_LEAST = 6 * 2**20
MOST_PARTS = 32
# The rows of a part come in multiples of the first of these that fits.
GRAINS = (4, 2, 1)
# From this predicted time on, in seconds, the sparsity pattern of J is computed: that takes some milliseconds.
COMPRESSED_FROM = 0.01
# An alternative is raced when it is predicted to take at most twice what the best bracketing takes.
NEAR = 2.0


@dataclass
class EliminationPlan:
    """A graph, its chain, and the bracketing chosen for it.

    Args:
        graph: what was captured.
        chain: its segments.
        bracketing: None where J is zero or the identity.
        compressed: coloured passes from end to end, where they may pay; used if ``bracketing.mode`` says so.
        alternative: the best bracketing with slices pushed down, or without, whichever is predicted to lose.
    """

    graph: Graph
    chain: Chain
    bracketing: Bracketing | None
    compressed: Compressed | None = None
    alternative: Bracketing | None = None

    @property
    def seconds(self) -> float:
        """Predicted, forward pass not included."""
        return self.bracketing.seconds if self.bracketing is not None else 0.0

    @property
    def work_bytes(self) -> int:
        """Predicted peak memory beside J: the activations, and an operand and a result of the largest step."""
        # By storage: views share theirs.
        storages = (v.tensor.untyped_storage() for n in self.graph.nodes for v in n.outputs)
        activations = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
        if self.bracketing is None:
            return activations
        largest = self.bracketing.peak
        if _seed_ranges(self):
            largest = min(largest, max(int(SHARE * _elements(self.graph)), 1))
        return activations + 2 * largest * self.graph.target.tensor.element_size()

    @property
    def passes_in_use(self) -> Compressed | None:
        """The compressed passes, where they are what this plan runs."""
        return self.compressed if self.bracketing is not None and self.bracketing.mode == "compressed" else None

    def bracketings(self) -> list[Bracketing]:
        """The best bracketing, then those predicted to come near it: sweeps, the alternative, compressed passes."""
        if self.bracketing is None:
            return []
        within = NEAR * self.bracketing.seconds
        # Predictions are off by up to that factor, so that a caller may let the clock decide among these.
        sweeps = self.chain.sweeps(within=within, other_than=self.bracketing)
        options = [self.bracketing, *(replace(s, pushed_down=self.bracketing.pushed_down) for s in sweeps)]
        if self.alternative is not None and self.alternative.seconds <= within:
            options.append(self.alternative)
        if self.compressed is not None and not self.passes_in_use and self.compressed.seconds <= 4 * within:
            options.append(_bracketing_of(self.chain, self.compressed))
        return options

    def describe(self) -> list[str]:
        """The cuts and the steps as lines of text."""
        if (passes := self.passes_in_use) is not None:
            return [f"step    coloured: {passes.describe()}, {passes.seconds * 1e3:.3g} ms"]
        return describe(self.chain, self.bracketing) if self.bracketing is not None else []

    def passes(self) -> str:
        """``32 rows and 32 columns, 1 product``: how many vectors travel."""
        if (passes := self.passes_in_use) is not None:
            return passes.describe()
        return describe_passes(self.chain, self.bracketing) if self.bracketing is not None else "nothing to multiply"


@gap_where_it_fails()
def plan_elimination(graph: Graph, bracketing: Bracketing | None = None) -> EliminationPlan:
    """Find the cheapest bracketing for a graph, or use one that was found for another capture of the same network.

    Args:
        graph: what was captured.
        bracketing: found before; ignored where it does not fit this graph.

    Cost: some 50 µs for each interval of cuts and each node; nothing of the point is computed.

    Raises:
        CaptureGap: an operator has no rule.
    """
    nodes = active_nodes(graph.nodes, graph.source, graph.target)
    maps_of = derivatives(nodes, graph.target)
    plan = None if bracketing is None else _planned_as(bracketing, graph, nodes, maps_of)
    return plan or _searched(graph, nodes, maps_of)


def _planned_as(
    bracketing: Bracketing, graph: Graph, nodes: Sequence[Node], maps_of: dict[Node, list[Map]]
) -> EliminationPlan | None:
    """A plan with a given bracketing; None where it does not fit the graph."""
    if bracketing.pushed_down:
        maps_of = pushed_down(nodes, maps_of, graph.target) or maps_of
    chain = Chain(nodes, graph.source, graph.target, maps_of)
    if bracketing.mode == "compressed":
        passes = compressed_plan(graph.source, graph.target, nodes, maps_of) if chain.segments else None
        return None if passes is None else EliminationPlan(graph, chain, bracketing, passes)
    fits = bool(chain.segments) and bracketing.last == len(chain.segments)
    return EliminationPlan(graph, chain, bracketing) if fits else None


def _searched(graph: Graph, nodes: Sequence[Node], maps_of: dict[Node, list[Map]]) -> EliminationPlan:
    """The cheapest of: bracketings, bracketings with slices pushed down, compressed passes."""
    chain = Chain(nodes, graph.source, graph.target, maps_of)
    if not chain.segments:
        return EliminationPlan(graph, chain, None)
    best, alternative, passes = chain.best(), None, None
    other_maps = pushed_down(nodes, maps_of, graph.target)
    if other_maps is not None:
        other_chain = Chain(nodes, graph.source, graph.target, other_maps)
        alternative = replace(other_chain.best(), pushed_down=True)
        if alternative.seconds < best.seconds:
            chain, best, alternative = other_chain, alternative, best
    # With smaller results than this, bands and blocks of J are in use already.
    if best.seconds >= COMPRESSED_FROM and best.peak >= SHARE * _elements(graph):
        passes = compressed_plan(graph.source, graph.target, nodes, maps_of)
        if passes is not None and passes.seconds < best.seconds:
            best = _bracketing_of(chain, passes)
    return EliminationPlan(graph, chain, best, passes, alternative)


def with_bracketing(plan: EliminationPlan, bracketing: Bracketing) -> EliminationPlan:
    """The same plan with another of its ``bracketings``."""
    # A bracketing numbers the cuts of its own chain, and with slices pushed down the chain is another one.
    if plan.bracketing is not None and plan.bracketing.pushed_down == bracketing.pushed_down:
        return replace(plan, bracketing=bracketing)
    return plan_elimination(plan.graph, bracketing)


def _bracketing_of(chain: Chain, passes: Compressed) -> Bracketing:
    return Bracketing(0, len(chain.cuts) - 1, "compressed", (), passes.seconds, passes.peak)


@gap_where_it_fails()
def jacobian(plan: EliminationPlan) -> Tensor:
    """J at the point of the capture, ``(batch, n_out, n_in)``, in the target's dtype, without gradients.

    Raises:
        CaptureGap: samples mix, or an operator's rule fails.
    """
    with torch.no_grad():
        return accumulated(plan)


def accumulated(plan: EliminationPlan) -> Tensor:
    """J ``(batch, n_out, n_in)`` as by ``jacobian``, in the caller's gradient mode: gradients may flow through it."""
    if plan.bracketing is None:
        return _constant(plan)
    if (passes := plan.passes_in_use) is not None:
        return passes.run().to(plan.graph.target.tensor.dtype).contiguous()
    ranges = _seed_ranges(plan)
    return _part_by_part(plan, ranges) if len(ranges) > 1 else _at_once(plan)


def _constant(plan: EliminationPlan) -> Tensor:
    """J ``(batch, n_out, n_in)`` where there is nothing to multiply: the identity, or zero where no path leads."""
    source, target = plan.graph.source, plan.graph.target
    identity = identity_block(source.shape, source.tensor) if source is target else None
    return _dense(identity, target.tensor, source.tensor[0].numel())


def _at_once(plan: EliminationPlan) -> Tensor:
    """J ``(batch, n_out, n_in)`` as one block, written out at the end."""
    assert plan.bracketing is not None
    source = plan.graph.source.tensor
    return _dense(plan.chain.run(plan.bracketing, source), plan.graph.target.tensor, source[0].numel())


def _part_by_part(plan: EliminationPlan, ranges: Sequence[SeedRange]) -> Tensor:
    """J ``(batch, n_out, n_in)``, each range of rows straight to its place.

    An intermediate result of all of J at once would take more memory than J.
    """
    assert plan.bracketing is not None
    source, target = plan.graph.source.tensor, plan.graph.target.tensor
    n_out = target[0].numel()
    out = target.new_empty(source.shape[0], n_out, source[0].numel())
    rows_per_seed = n_out // plan.chain.cuts[ranges[0].cut].shape[ranges[0].dim]
    for seeds in ranges:
        block = plan.chain.run(plan.bracketing, source, seeds)
        rows = out.narrow(1, seeds.start * rows_per_seed, seeds.size * rows_per_seed)
        if block is None:
            rows.zero_()
        else:
            _write_rows(block, seeds, rows)
    return out


def factors(plan: EliminationPlan) -> tuple[Tensor, Tensor] | None:
    """J as a product over a bottleneck of m elements: L ``(batch, n_out, m)``, R ``(batch, m, n_in)``, J = L R.

    None unless the bracketing multiplies at a cut that has at most half as many elements as source and target each.
    """
    source, target, bracketing = plan.graph.source.tensor, plan.graph.target.tensor, plan.bracketing
    # Only the outermost product: the factors of one further in would still have to be swept through other segments.
    if bracketing is None or bracketing.mode != "product":
        return None
    middle = plan.chain.cuts[bracketing.parts[0].first].tensor
    if 2 * middle[0].numel() > min(target[0].numel(), source[0].numel()):
        return None
    later, earlier = (plan.chain.run(part, source) for part in bracketing.parts)
    return _dense(later, target, middle[0].numel()), _dense(earlier, middle, source[0].numel())


def _dense(rows: Block | None, target: Tensor, n_in: int) -> Tensor:
    """Rows of all seeds as a tensor ``(batch, n_out, n_in)``; None is zero."""
    if rows is None:
        return target.new_zeros(target.shape[0], target[0].numel(), n_in)
    return _matrix(whole(rows)).to(target.dtype)


def _matrix(rows: Block, out: Tensor | None = None) -> Tensor:
    """A block as ``(batch, rows, n_in)``, in ``out`` of that shape if given.

    Raises:
        CaptureGap: samples mix.
    """
    try:
        return matrix(rows, out)
    except ValueError as error:
        raise CaptureGap(str(error)) from None


def _write_rows(rows: Block, seeds: SeedRange, out: Tensor) -> None:
    """The rows of one range of seeds and no others, written to ``out``, ``(batch, rows, n_in)``.

    Seed axes may be split by the stride of an operator, so that ``rows`` hold some more than were asked for.
    """
    # Key (dim, stride): the seed axis of that dimension which counts in strides, where it was split by one.
    top = next(axis for axis in rows.layout.seed_axes if axis.key[0] == seeds.dim)
    step = top.key[1]
    low = min(seeds.start // step, top.start)
    high = max(-(-(seeds.start + seeds.size) // step), top.start + top.size)
    axes = tuple(
        replace(axis, start=low, size=high - low) if axis is top else replace(axis, start=0, size=axis.full)
        for axis in rows.layout.seed_axes
    )
    rows = widened(rows, axes)
    # Written straight to its place where the widened block holds these rows alone; else cut out of a copy.
    if (low * step, high * step) == (seeds.start, seeds.start + seeds.size):
        _matrix(rows, out)
    else:
        rows_per_seed = out.shape[1] // seeds.size
        out.copy_(_matrix(rows).narrow(1, (seeds.start - low * step) * rows_per_seed, out.shape[1]))


def _elements(graph: Graph) -> int:
    """Of J, all samples together."""
    return math.prod(graph.target.shape) * math.prod(graph.source.shape[1:])


def _seed_ranges(plan: EliminationPlan) -> list[SeedRange]:
    """Ranges of rows of J, so that intermediate results stay small beside J and fit the caches; none for one range."""
    assert plan.bracketing is not None
    cut = plan.chain.seed_cut(plan.bracketing)
    limit = max(SHARE * _elements(plan.graph), AT_LEAST // plan.graph.target.tensor.element_size())
    if not cut or plan.bracketing.peak <= limit:  # columns (cut 0) would be written with gaps
        return []
    # The first dimension of a sample: then the rows of a range are neighbours in J, which is flattened in C order.
    shape = plan.chain.cuts[cut].shape
    dim = next((d for d in range(1, len(shape)) if shape[d] > 1), None)
    if dim is None:
        return []
    count = min(shape[dim], MOST_PARTS, -(-int(plan.bracketing.peak) // int(limit)))
    # Operators that stride split seed axes by the stride: a range should not end between two such seeds.
    grain = next(g for g in GRAINS if shape[dim] % g == 0 and 2 * shape[dim] // g >= count)
    count = min(count, shape[dim] // grain)
    edges = [round(i * (shape[dim] // grain) / count) * grain for i in range(count + 1)]
    return [SeedRange(cut, dim, a, b - a) for a, b in pairwise(edges)]
