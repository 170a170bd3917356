"""How to bracket the chain of stretches between the values that every path passes.

J = J_m ⋯ J_1. Each stretch's J may be known as a bundle, or used as products only: rows are pulled back
through it, columns pushed forward. The best bracketing is found by dynamic programming over intervals,
each possibility dry-run on forms (A. Griewank and U. Naumann, *Accumulating Jacobians as chained sparse
matrix products*, 2003; U. Naumann, *Matrix-Free Jacobian Chaining*, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from jaccli.graph.elimination.sweep import Segment
from jaccli.graph.layout.algebra import product, transposed
from jaccli.graph.layout.block import Block, identity_block, narrowed
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value

# Places within a stretch where rows and columns are tried to meet.
MEETINGS = 4
# Seconds of a dry run through one node, about.
_NODE_S = 5e-5
EliminationMode = Literal["pull", "push", "product", "coloured"]


@dataclass(frozen=True)
class Bracketing:
    """How J between two cuts is obtained.

    Args:
        first: the earlier cut, by its number.
        last: the later one.
        way: pull ``parts[0]`` back through the first stretch, push it through the last one, or multiply
            ``parts``, later and earlier; or coloured passes from end to end.
        seconds: predicted.
        peak: the largest number of elements of one intermediate result.
        meet: where in the stretch rows and columns meet; see ``Segment.pull``.
        folded: of the whole: found for the maps of ``folding``.
    """

    first: int
    last: int
    way: EliminationMode
    parts: tuple[Bracketing, ...] = ()
    seconds: float = 0.0
    peak: int = 0
    meet: int | None = None
    folded: bool = False


@dataclass
class IntervalJacobian:
    """J of an interval as rows (ends: the later cut) or as columns (ends: the earlier one)."""

    rows: Block | None = None
    columns: Block | None = None
    zero: bool = False

    def as_rows(self, source: Value) -> Block | None:
        """Over the earlier cut."""
        if self.rows is None and self.columns is not None:
            self.rows = transposed(self.columns, source.shape)
        return self.rows

    def as_columns(self, target: Value) -> Block | None:
        """Over the later cut."""
        if self.columns is None and self.rows is not None:
            self.columns = transposed(self.rows, target.shape)
        return self.columns


@dataclass(frozen=True)
class Part:
    """A range of one dimension of the activation at a cut."""

    cut: int
    dim: int
    start: int
    size: int


class Chain:
    """The stretches from source to target."""

    def __init__(self, cuts: Sequence[Value], stretches: Sequence[Sequence[Node]], maps_of: dict[Node, list[Map]]):
        self.cuts = list(cuts)
        self.maps_of = maps_of
        self.stretches = [
            Segment(nodes, a, b, maps_of) for nodes, a, b in zip(stretches, self.cuts, self.cuts[1:], strict=False)
        ]
        self.meetings = [stretch.meetings(MEETINGS) for stretch in self.stretches]
        self.spent = 0.0  # seconds of dry runs, as predicted: a search is cut short at the same place every time
        self._within = float("inf")

    def best(self, within: float = float("inf")) -> Bracketing:
        """The cheapest bracketing by dry runs. Cost: some 50 µs for each pair of cuts and each node (``_NODE_S``).

        Args:
            within: predicted seconds after which rows and columns are no longer tried to meet within stretches.
        """
        self.spent, self._within = 0.0, within
        count = len(self.cuts)
        table: dict[tuple[int, int], tuple[Bracketing, IntervalJacobian]] = {}
        cost = self._cost_model()
        for length in range(1, count):
            for i in range(count - length):
                table[i, i + length] = self._interval(table, i, i + length, cost)
        return table[0, count - 1][0]

    def sweeps(self, within: float, other_than: Bracketing) -> list[Bracketing]:
        """All rows back, and all columns forward, where predicted to take no longer than ``within`` seconds."""
        found = []
        cost = self._cost_model()
        for way in ("pull", "push"):
            bracketing = self._sweep(way, cost)
            if bracketing.seconds <= within and _ways(bracketing) != _ways(other_than):
                found.append(bracketing)
        return found

    def _cost_model(self) -> CostModel:
        tensor = self.cuts[0].tensor
        return CostModel.of(tensor.device, tensor.dtype)

    def _sweep(self, way: Literal["pull", "push"], cost: CostModel) -> Bracketing:
        count = len(self.cuts) - 1
        bracketing, sides = None, None
        for step in range(1, count + 1):
            i, j = (count - step, count) if way == "pull" else (0, step)
            cost.reset()
            sides = self._do(way, i, j, i, [sides] if sides is not None else [], cost)
            before = bracketing.seconds if bracketing is not None else 0.0
            peak = max(cost.peak, bracketing.peak if bracketing is not None else 0)
            bracketing = Bracketing(
                i, j, way, (bracketing,) if bracketing is not None else (), before + cost.seconds, peak
            )
        assert bracketing is not None
        return bracketing

    def _interval(
        self, table: dict[tuple[int, int], tuple[Bracketing, IntervalJacobian]], i: int, j: int, cost: CostModel
    ) -> tuple[Bracketing, IntervalJacobian]:
        found: list[tuple[Bracketing, IntervalJacobian]] = []
        options: list[tuple[EliminationMode, tuple[tuple[int, int], ...], int | None]] = []
        back, forth = ((i + 1, j),), ((i, j - 1),)
        if j == i + 1:
            back = forth = ()  # type: ignore[assignment]
        options = [("pull", back, None), ("push", forth, None)]
        options += [("product", ((k, j), (i, k)), None) for k in range(i + 1, j)]
        options += [("pull", back, p) for p in self.meetings[i]]
        if j > i + 1:
            options += [("push", forth, p) for p in self.meetings[j - 1]]
        for way, keys, meet in options:
            parts = tuple(table[key][0] for key in keys)
            before = sum(p.seconds for p in parts)
            if found and before >= min(b.seconds for b, _ in found):
                continue
            if meet is not None and self.spent > self._within:
                continue
            cost.reset()
            self.spent += _NODE_S * (
                1 if way == "product" else len(self.stretches[j - 1 if way == "push" else i].nodes)
            )
            middle = keys[0][0] if way == "product" else i
            sides = self._do(way, i, j, middle, [table[key][1] for key in keys], cost, meet)
            peak = max([cost.peak, *(p.peak for p in parts)])
            if j - i == len(self.cuts) - 1 and sides.rows is None and sides.columns is not None:
                cost.strided(sides.columns.layout.numel)  # J is wanted as rows
            found.append((Bracketing(i, j, way, parts, before + cost.seconds, peak, meet), sides))
        return min(found, key=lambda item: item[0].seconds)

    def _do(
        self,
        way: EliminationMode,
        i: int,
        j: int,
        k: int,
        parts: Sequence[IntervalJacobian],
        like: Tensor | CostModel,
        meet: int | None = None,
        part: Part | None = None,
    ) -> IntervalJacobian:
        source = self.cuts[i]
        if any(p.zero for p in parts):
            return IntervalJacobian(zero=True)
        if way == "pull":
            rows = parts[0].as_rows(self.cuts[i + 1]) if parts else self._seeds(j, like, part)
            assert rows is not None
            rows = self.stretches[i].pull(rows, meet or 0)
            return IntervalJacobian(rows=rows, zero=rows is None)
        if way == "push":
            columns = parts[0].as_columns(self.cuts[j - 1]) if parts else self._seeds(i, like, part)
            assert columns is not None
            columns = self.stretches[j - 1].push(columns, source.shape, meet)
            return IntervalJacobian(columns=columns, zero=columns is None)
        middle = self.cuts[k]
        later, earlier = parts
        rows, columns = later.as_rows(middle), earlier.as_columns(middle)
        assert rows is not None
        assert columns is not None
        return IntervalJacobian(rows=product(rows, columns, source.shape))

    def _seeds(self, cut: int, like: Tensor | CostModel, part: Part | None) -> Block:
        """The identity on a cut, or the part of it that was asked for."""
        whole = identity_block(self.cuts[cut].shape, like)
        return narrowed(whole, part.dim, part.start, part.size) if part is not None and part.cut == cut else whole

    def run(self, bracketing: Bracketing, like: Tensor, part: Part | None = None) -> Block | None:
        """J as rows over the source; None where it is zero.

        Args:
            bracket: how.
            like: a tensor of the dtype and on the device wanted.
            part: the rows or columns wanted, of those that ``divisible`` gives.
        """
        return self._run(bracketing, like, part).as_rows(self.cuts[bracketing.first])

    def _run(self, bracketing: Bracketing, like: Tensor, part: Part | None) -> IntervalJacobian:
        parts = [self._run(p, like, part) for p in bracketing.parts]
        middle = bracketing.parts[0].first if bracketing.way == "product" else bracketing.first
        return self._do(bracketing.way, bracketing.first, bracketing.last, middle, parts, like, bracketing.meet, part)

    def divisible(self, bracketing: Bracketing) -> int | None:
        """The cut whose identity J grows from alone, so that J can be had part by part: target, source or neither.

        With parts, all that does not grow from that identity is computed once for each of them.
        """
        count = len(self.cuts) - 1
        for way, cut in (("pull", count), ("push", 0)):
            at: Bracketing | None = bracketing
            while at is not None and at.parts and at.way == way and at.meet is None:
                at = at.parts[0]
            # Where rows and columns meet, a product makes all rows whole.
            if at is not None and not at.parts and at.way == way and at.meet is None and cut in (at.first, at.last):
                return cut
        return None


def _ways(bracketing: Bracketing) -> object:
    return (
        bracketing.way,
        bracketing.first,
        bracketing.last,
        bracketing.meet,
        tuple(_ways(p) for p in bracketing.parts),
    )
