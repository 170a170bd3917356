"""The Jacobian of a captured graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from jaccli.graph.elimination.bracketing import Bracketing, Chain, Part
from jaccli.graph.elimination.compressed import Compressed, compressed_plan
from jaccli.graph.elimination.cuts import active_nodes, stretches
from jaccli.graph.elimination.describe import describe, describe_passes
from jaccli.graph.elimination.slice_pushdown import folded
from jaccli.graph.elimination.sweep import derivatives
from jaccli.graph.layout.algebra import matrix
from jaccli.graph.layout.block import Block, identity_block, whole, widened
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.capture import Graph
from jaccli.graph.trace.ir import CaptureGap, Node, gap_where_it_fails

# One intermediate result is this share of J at most, or this many bytes where that is more; else J is taken
# part by part, in so many parts at most: each has its own steps in a recorded program.
SHARE = 0.25
AT_LEAST = 6 * 2**20
MOST_PARTS = 32
# The rows of a part come in multiples of the first of these that fits.
GRAINS = (4, 2, 1)
# From this predicted time on, in seconds, a sparsity pattern is looked for: that takes some milliseconds.
COLOURED_FROM = 0.01
# A sweep is tried by the clock when it is predicted to take at most so many times the best bracketing.
NEAR = 2.0


@dataclass
class EliminationPlan:
    """A graph with its chain and the bracketing chosen for it.

    ``rival``: the best bracketing with slices moved before matrices, or without, whichever was predicted to lose.
    ``thorough``: the search was not cut short.
    """

    graph: Graph
    chain: Chain
    bracketing: Bracketing | None
    coloured: Compressed | None = None
    rival: Bracketing | None = None
    thorough: bool = True

    @property
    def seconds(self) -> float:
        """Predicted, forward pass not included."""
        return self.bracketing.seconds if self.bracketing is not None else 0.0

    @property
    def work_bytes(self) -> int:
        """Predicted most memory beside J: the activations, and an operand and a result of the largest step."""
        tensors = {id(s): s for s in (v.tensor.untyped_storage() for n in self.graph.nodes for v in n.outputs)}
        held = {s.data_ptr(): s.nbytes() for s in tensors.values()}
        if self.bracketing is None:
            return sum(held.values())
        largest = self.bracketing.peak
        if _parts(self):
            largest = min(largest, max(int(SHARE * _elements(self.graph)), 1))
        return sum(held.values()) + 2 * largest * self.graph.target.tensor.element_size()

    def bracketings(self) -> list[Bracketing]:
        """The best bracketing and, where they may come near it, all rows back and all columns forward."""
        if self.bracketing is None:
            return []
        within = NEAR * self.bracketing.seconds
        sweeps = self.chain.sweeps(within=within, other_than=self.bracketing)
        found = [self.bracketing, *(replace(sweep, folded=self.bracketing.folded) for sweep in sweeps)]
        if self.rival is not None and self.rival.seconds <= within:
            found.append(self.rival)
        if self.coloured is not None and self.bracketing.way != "coloured" and self.coloured.seconds <= 4 * within:
            found.append(_as_bracket(self.chain, self.coloured))
        return found

    def describe(self) -> list[str]:
        """The cuts and the steps, for people."""
        if self.bracketing is not None and self.bracketing.way == "coloured":
            assert self.coloured is not None
            return [f"step    coloured: {self.coloured.describe()}, {self.coloured.seconds * 1e3:.3g} ms"]
        return describe(self.chain, self.bracketing) if self.bracketing is not None else []

    def passes(self) -> str:
        """How many rows and columns travel, for people."""
        if self.bracketing is not None and self.bracketing.way == "coloured":
            assert self.coloured is not None
            return self.coloured.describe()
        return describe_passes(self.chain, self.bracketing) if self.bracketing is not None else "nothing to multiply"


@gap_where_it_fails()
def engine(graph: Graph, bracketing: Bracketing | None = None, within: float = float("inf")) -> EliminationPlan:
    """Plan for a graph, or take a bracketing that was found for another capture of it.

    Args:
        graph: what was captured.
        bracket: found before.
        within: predicted seconds after which the search takes the best that it has.

    Raises:
        CaptureGap: an operator is out of reach.
    """
    nodes = active_nodes(graph.nodes, graph.source, graph.target)
    maps_of = derivatives(nodes, graph.target)
    if bracketing is not None and bracketing.folded:
        maps_of = folded(nodes, maps_of, graph.target) or maps_of
    chain = _chain(graph, nodes, maps_of)
    if not chain.stretches:
        return EliminationPlan(graph, chain, None)
    if bracketing is not None and bracketing.way == "coloured":
        found = compressed_plan(graph.source, graph.target, nodes, maps_of)
        if found is not None:
            return EliminationPlan(graph, chain, bracketing, found)
    elif bracketing is not None and bracketing.last == len(chain.stretches):
        return EliminationPlan(graph, chain, bracketing)
    best, found, rival = chain.best(within), None, None
    other = folded(nodes, maps_of, graph.target) if 2 * chain.spent < within else None
    if other is not None:
        second = _chain(graph, nodes, other)
        rival = replace(second.best(within - chain.spent), folded=True)
        if rival.seconds < best.seconds:
            chain, best, rival = second, rival, best
    if best.seconds >= COLOURED_FROM and best.peak >= SHARE * _elements(graph):  # else windows and blocks are in use
        found = compressed_plan(graph.source, graph.target, nodes, maps_of)
        if found is not None and found.seconds < best.seconds:
            best = _as_bracket(chain, found)
    return EliminationPlan(graph, chain, best, found, rival, thorough=within == float("inf"))


def with_bracketing(plan: EliminationPlan, bracketing: Bracketing) -> EliminationPlan:
    """The same plan with another of its ``bracketings``."""
    if plan.bracketing is not None and plan.bracketing.folded == bracketing.folded:
        return replace(plan, bracketing=bracketing)
    return engine(plan.graph, bracketing)


def _chain(graph: Graph, nodes: Sequence[Node], maps_of: dict[Node, list[Map]]) -> Chain:
    cuts, parts = stretches(nodes, graph.source, graph.target, maps_of)
    return Chain(cuts, parts, maps_of)


def _as_bracket(chain: Chain, found: Compressed) -> Bracketing:
    return Bracketing(0, len(chain.cuts) - 1, "coloured", (), found.seconds, found.peak)


@gap_where_it_fails()
def jacobian(plan: EliminationPlan) -> Tensor:
    """J at the point of the capture, ``(batch, n_out, n_in)``.

    Raises:
        CaptureGap: samples mix, or an operator's rule fails.
    """
    with torch.no_grad():
        return accumulated(plan)


def accumulated(plan: EliminationPlan) -> Tensor:
    """As ``jacobian``, in the caller's gradient mode."""
    source, target = plan.graph.source.tensor, plan.graph.target.tensor
    batch, n_out, n_in = source.shape[0], target[0].numel(), source[0].numel()
    if plan.bracketing is None:
        same = plan.graph.source is plan.graph.target
        return _whole(identity_block(plan.graph.source.shape, source) if same else None, target, n_in)
    if plan.coloured is not None and plan.bracketing.way == "coloured":
        return plan.coloured.run().to(target.dtype).contiguous()
    parts = _parts(plan)
    if len(parts) < 2:
        return _whole(plan.chain.run(plan.bracketing, source), target, n_in)
    out = target.new_empty(batch, n_out, n_in)
    position = 0
    step = n_out // plan.chain.cuts[parts[0].cut].shape[parts[0].dim]
    for part in parts:
        rows = plan.chain.run(plan.bracketing, source, part)
        place = out.narrow(1, position * step, part.size * step)
        if rows is None:
            place.zero_()
        else:
            _put(rows, part, place)
        position += part.size
    return out


def factors(plan: EliminationPlan) -> tuple[Tensor, Tensor] | None:
    """J as a product over a bottleneck, ``(batch, n_out, m)`` and ``(batch, m, n_in)``, where m is at most half
    of each side and the bracketing multiplies there; else None.
    """
    source, target, bracketing = plan.graph.source.tensor, plan.graph.target.tensor, plan.bracketing
    if bracketing is None or bracketing.way != "product":
        return None
    middle = plan.chain.cuts[bracketing.parts[0].first].tensor
    if 2 * middle[0].numel() > min(target[0].numel(), source[0].numel()):
        return None
    later, earlier = (plan.chain.run(part, source) for part in bracketing.parts)
    return _whole(later, target, middle[0].numel()), _whole(earlier, middle, source[0].numel())


def _whole(rows: Block | None, target: Tensor, n_in: int) -> Tensor:
    """All of J."""
    if rows is None:
        return target.new_zeros(target.shape[0], target[0].numel(), n_in)
    return _matrix(whole(rows)).to(target.dtype)


def _matrix(rows: Block, out: Tensor | None = None) -> Tensor:
    try:
        return matrix(rows, out)
    except ValueError as error:
        raise CaptureGap(str(error)) from None


def _put(rows: Block, part: Part, place: Tensor) -> None:
    """The rows of one part and no others, written to their place."""
    top = next(e for e in rows.layout.seed_axes if e.key[0] == part.dim)
    step = top.key[1]
    low = min(part.start // step, top.start)
    high = max(-(-(part.start + part.size) // step), top.start + top.size)
    seed_axes = tuple(
        replace(e, start=low, size=high - low) if e is top else replace(e, start=0, size=e.full)
        for e in rows.layout.seed_axes
    )
    rows = widened(rows, seed_axes)
    if (low * step, high * step) == (part.start, part.start + part.size):
        _matrix(rows, place)
    else:
        each = place.shape[1] // part.size
        place.copy_(_matrix(rows).narrow(1, (part.start - low * step) * each, place.shape[1]))


def _elements(graph: Graph) -> int:
    """Of J, all samples together."""
    return math.prod(graph.target.shape) * math.prod(graph.source.shape[1:])


def _parts(plan: EliminationPlan) -> list[Part]:
    """Ranges of rows, so that what is held between steps stays small beside J and within the caches."""
    assert plan.bracketing is not None
    cut = plan.chain.divisible(plan.bracketing)
    limit = max(SHARE * _elements(plan.graph), AT_LEAST // plan.graph.target.tensor.element_size())
    if cut is None or cut == 0 or plan.bracketing.peak <= limit:
        return []
    shape = plan.chain.cuts[cut].shape
    dim = next((d for d in range(1, len(shape)) if shape[d] > 1), None)
    if dim is None:
        return []
    count = min(shape[dim], MOST_PARTS, -(-int(plan.bracketing.peak) // int(limit)))
    # Where operators stride, ends are split by the stride: parts should not cut across.
    grain = next(g for g in GRAINS if shape[dim] % g == 0 and 2 * shape[dim] // g >= count)
    count = min(count, shape[dim] // grain)
    edges = [round(i * (shape[dim] // grain) / count) * grain for i in range(count + 1)]
    return [Part(cut, dim, a, b - a) for a, b in pairwise(edges)]
