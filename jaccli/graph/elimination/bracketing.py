"""The order in which J is multiplied out: a bracketing of the chain of segments.

    J = J_m ⋯ J_2 J_1        J_k = ∂(cut k) / ∂(cut k - 1)

A *cut* is a value that every path from source to target passes; the operators between two cuts are a *segment*.
J between cuts i < j is obtained in one of three modes:

    pull      rows of J between i + 1 and j, pulled back through segment i        (reverse mode)
    push      columns of J between i and j - 1, pushed through segment j - 1      (forward mode)
    product   J between k and j times J between i and k, for some cut k between

Where j = i + 1, the rows or columns are those of the identity. The cheapest bracketing is found by dynamic programming
over intervals of cuts. Costs come from dry runs on blocks without data. Rows and columns that meet inside of a segment
(cross-country elimination) are not tried: on none of the benchmark's networks did that win (``docs/engine.md``).

Sources: A. Griewank and U. Naumann, *Accumulating Jacobians as chained sparse matrix products*, 2003;
U. Naumann, *Matrix-Free Jacobian Chaining*, 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from jaccli.graph.elimination.cuts import segments
from jaccli.graph.elimination.sweep import Segment
from jaccli.graph.layout.algebra import product, transposed
from jaccli.graph.layout.block import Block, identity_block, narrowed
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.rules.registry import Map
from jaccli.graph.trace.ir import Node, Value

if TYPE_CHECKING:
    from jaxtyping import Shaped

EliminationMode = Literal["pull", "push", "product", "compressed"]
Interval = tuple[int, int]  # of cuts: earlier, later


@dataclass(frozen=True)
class Bracketing:
    """How J between two cuts is obtained.

    Args:
        first: number of the earlier cut.
        last: number of the later one.
        mode: ``pull`` ``parts[0]`` through the first segment, ``push`` it through the last one, or the ``product`` of
            ``parts`` (the later first); or ``compressed`` passes from end to end.
        seconds: predicted.
        peak: elements of the largest intermediate result.
        pushed_down: whether it was found for the maps of ``slice_pushdown``; said of the whole only.
    """

    first: int
    last: int
    mode: EliminationMode
    parts: tuple[Bracketing, ...] = ()
    seconds: float = 0.0
    peak: int = 0
    pushed_down: bool = False

    def has_order_of(self, other: Bracketing) -> bool:
        """Whether both take the same steps, whatever they are predicted to cost."""
        step = (self.mode, self.first, self.last, len(self.parts))
        return step == (other.mode, other.first, other.last, len(other.parts)) and all(
            mine.has_order_of(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True)
        )


@dataclass
class IntervalJacobian:
    """J of an interval as rows (seeds: the later cut), as columns (seeds: the earlier one), or zero: neither.

    Invariant: where both are there, they are one J. The second is a transposed view, made when it is first wanted.
    """

    rows: Block | None = None
    columns: Block | None = None

    @property
    def is_zero(self) -> bool:
        return self.rows is None and self.columns is None

    def as_rows(self, source: Value) -> Block | None:
        """Over the earlier cut, ``source``."""
        if self.rows is None and self.columns is not None:
            self.rows = transposed(self.columns, source.shape)
        return self.rows

    def as_columns(self, target: Value) -> Block | None:
        """Over the later cut, ``target``."""
        if self.columns is None and self.rows is not None:
            self.columns = transposed(self.rows, target.shape)
        return self.columns


@dataclass(frozen=True)
class SeedRange:
    """A range of one dimension of the activation at a cut: the seeds of one part of J."""

    cut: int
    dim: int
    start: int
    size: int


class Chain:
    """The segments from source to target, with all that is needed to bracket and to run them.

    Args:
        nodes: the active nodes, in order; none where no path leads from source to target.
        source: the first cut.
        target: the last cut.
        maps_of: the derivative of every node.

    Attributes:
        cuts: values; source first, target last.
        segments: ``segments[k]`` lies between ``cuts[k]`` and ``cuts[k + 1]``.
    """

    def __init__(self, nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> None:
        self.cuts, parts = segments(nodes, source, target, maps_of)
        self.segments = [
            Segment(part, first, last, maps_of) for part, (first, last) in zip(parts, pairwise(self.cuts), strict=True)
        ]

    def best(self) -> Bracketing:
        """The cheapest bracketing by dry runs. Cost: O(cuts³) of them, some 50 µs a node each."""
        count = len(self.cuts)
        table: dict[Interval, tuple[Bracketing, IntervalJacobian]] = {}
        cost = self._cost_model()
        # Shorter intervals first: J of an interval is made of J of intervals inside it, and these are never run twice.
        for length in range(1, count):
            for i in range(count - length):
                table[i, i + length] = self._best_of_interval(table, i, i + length, cost)
        return table[0, count - 1][0]

    def sweeps(self, within: float, other_than: Bracketing) -> list[Bracketing]:
        """All rows back, and all columns forward, where predicted to take no longer than ``within`` seconds."""
        modes: tuple[Literal["pull", "push"], ...] = ("pull", "push")
        cost = self._cost_model()
        # The simplest orders. Where they are predicted to come near the best one, the clock may decide.
        sweeps = [self._sweep(mode, cost) for mode in modes]
        return [s for s in sweeps if s.seconds <= within and not s.has_order_of(other_than)]

    def _cost_model(self) -> CostModel:
        tensor = self.cuts[0].tensor
        return CostModel.of(tensor.device, tensor.dtype)

    def _sweep(self, mode: Literal["pull", "push"], cost: CostModel) -> Bracketing:
        """One mode from end to end, costs added up segment by segment."""
        count = len(self.cuts) - 1
        parts: tuple[Bracketing, ...] = ()
        jacobians: list[IntervalJacobian] = []
        for length in range(1, count + 1):
            i, j = (count - length, count) if mode == "pull" else (0, length)
            cost.reset()
            jacobians = [self._eliminate(mode, i, j, jacobians, cost)]
            seconds = sum(p.seconds for p in parts) + cost.seconds
            parts = (Bracketing(i, j, mode, parts, seconds, max([cost.peak, *(p.peak for p in parts)])),)
        return parts[0]

    def _best_of_interval(
        self,
        table: dict[Interval, tuple[Bracketing, IntervalJacobian]],
        i: int,
        j: int,
        cost: CostModel,
    ) -> tuple[Bracketing, IntervalJacobian]:
        """The cheapest way to J between cuts i and j, given all shorter intervals."""
        best: tuple[Bracketing, IntervalJacobian] | None = None
        for mode, intervals in self._options(i, j):
            parts = tuple(table[interval][0] for interval in intervals)
            seconds = sum(p.seconds for p in parts)
            # Without a dry run: the parts alone take as long as the best so far.
            if best is not None and seconds >= best[0].seconds:
                continue
            cost.reset()
            jacobians = [table[interval][1] for interval in intervals]
            jacobian = self._eliminate(mode, i, j, jacobians, cost, middle=parts[0].first if parts else 0)
            peak = max([cost.peak, *(p.peak for p in parts)])
            if j - i == len(self.cuts) - 1 and jacobian.rows is None and jacobian.columns is not None:
                cost.strided(jacobian.columns.layout.numel)  # J is to be returned as rows
            bracketing = Bracketing(i, j, mode, parts, seconds + cost.seconds, peak)
            if best is None or bracketing.seconds < best[0].seconds:
                best = bracketing, jacobian
        assert best is not None
        return best

    def _options(self, i: int, j: int) -> Iterator[tuple[EliminationMode, tuple[Interval, ...]]]:
        """Mode, and the intervals that it starts from, of everything that gives J between cuts i and j."""
        later, earlier = (((i + 1, j),), ((i, j - 1),)) if j > i + 1 else ((), ())
        yield "pull", later
        yield "push", earlier
        for k in range(i + 1, j):
            yield "product", ((k, j), (i, k))

    def _eliminate(
        self,
        mode: EliminationMode,
        i: int,
        j: int,
        parts: Sequence[IntervalJacobian],
        like: Tensor | CostModel,
        seeds: SeedRange | None = None,
        middle: int = 0,
    ) -> IntervalJacobian:
        """J between cuts i and j from J of shorter intervals; ``like`` is a tensor of any shape, or the cost model.

        Args:
            mode: as in the module's docstring; ``product`` multiplies at the cut ``middle``.
            i: the earlier cut.
            j: the later one.
            parts: none where rows or columns start from the identity.
            like: a tensor of the dtype and device of the result, or the cost model of a dry run.
            seeds: the part of the identity to start from; None for all of it.
            middle: the cut that the factors share.
        """
        if any(part.is_zero for part in parts):
            return IntervalJacobian()
        if mode == "pull":
            rows = parts[0].as_rows(self.cuts[i + 1]) if parts else self._identity(j, like, seeds)
            assert rows is not None
            return IntervalJacobian(rows=self.segments[i].pull(rows))
        if mode == "push":
            columns = parts[0].as_columns(self.cuts[j - 1]) if parts else self._identity(i, like, seeds)
            assert columns is not None
            return IntervalJacobian(columns=self.segments[j - 1].push(columns))
        rows, columns = parts[0].as_rows(self.cuts[middle]), parts[1].as_columns(self.cuts[middle])
        assert rows is not None
        assert columns is not None
        return IntervalJacobian(rows=product(rows, columns, self.cuts[i].shape))

    def _identity(self, cut: int, like: Tensor | CostModel, seeds: SeedRange | None) -> Block:
        """The identity on a cut, or the range of its rows that was asked for; ``like`` of any shape."""
        block = identity_block(self.cuts[cut].shape, like)
        return narrowed(block, seeds.dim, seeds.start, seeds.size) if seeds is not None and seeds.cut == cut else block

    def run(self, bracketing: Bracketing, like: Tensor, seeds: SeedRange | None = None) -> Block | None:
        """J as rows over the earlier cut; None where it is zero.

        The same code as in a dry run (``_eliminate``), on data: so the cost that was predicted is that of this run.

        Args:
            bracketing: how.
            like: a tensor of the dtype and device of the result, of any shape.
            seeds: the rows or columns wanted, at the cut that ``seed_cut`` names; None for all of them.
        """
        return self._run(bracketing, like, seeds).as_rows(self.cuts[bracketing.first])

    def _run(self, bracketing: Bracketing, like: Shaped[Tensor, "*shape"], seeds: SeedRange | None) -> IntervalJacobian:
        parts = [self._run(part, like, seeds) for part in bracketing.parts]
        middle = bracketing.parts[0].first if parts else 0
        return self._eliminate(bracketing.mode, bracketing.first, bracketing.last, parts, like, seeds, middle)

    def seed_cut(self, bracketing: Bracketing) -> int | None:
        """The cut whose identity alone J grows from, so that J can be had part by part: target, source or none.

        With a ``SeedRange`` at any other cut, all that does not grow from it would be computed once for each part.
        """
        # A product, at the top or further in, grows from two identities: then no range of rows can be had alone.
        for mode, cut in (("pull", len(self.cuts) - 1), ("push", 0)):
            step = bracketing
            while step.parts and step.mode == mode:
                step = step.parts[0]
            is_start = not step.parts and step.mode == mode
            if is_start and cut in (step.first, step.last):
                return cut
        return None
