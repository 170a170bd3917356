"""Bundles through stretches of the graph: cotangents pulled back, tangents pushed forward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from jaccli.graph.elimination.cuts import MIXING, mixes
from jaccli.graph.layout.algebra import product, total, transposed
from jaccli.graph.layout.block import Block, identity_block, materialized, without_ones
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import BandedAxis
from jaccli.graph.maps.base import Primitive
from jaccli.graph.maps.elementwise import Mul, Scale, multiplied
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.maps.reshape import Permute, Reshape
from jaccli.graph.maps.slice import Embed, assembled
from jaccli.graph.rules import dense_fallback as rules_opaque
from jaccli.graph.rules import elementwise as rules_elementwise
from jaccli.graph.rules import indexing as rules_index
from jaccli.graph.rules import linear as rules_linear
from jaccli.graph.rules import reductions as rules_reduce
from jaccli.graph.rules import shape as rules_shape
from jaccli.graph.rules.registry import Map, maps
from jaccli.graph.trace.ir import CaptureGap, Node, Value

_TOLD = {
    "matrix": ("matrix", "matrices"),
    "conv": ("convolution", "convolutions"),
    "projection": ("normalisation or softmax", "normalisations or softmaxes"),
    "gather": ("pooling", "poolings"),
    "pick": ("index", "indices"),
}
_REGISTERED = (rules_elementwise, rules_index, rules_linear, rules_opaque, rules_reduce, rules_shape)


class Segment:
    """The active nodes between two values that every path passes, with their derivatives."""

    def __init__(self, nodes: Sequence[Node], source: Value, target: Value, maps_of: dict[Node, list[Map]]) -> None:
        self.nodes, self.source, self.target, self.maps_of = list(nodes), source, target, maps_of

    def contents(self) -> str:
        """The operators that mix elements, by name and number."""
        names = Counter(
            type(step).__name__.lower()
            for node in self.nodes
            for m in self.maps_of[node]
            for step in m.steps
            if isinstance(step, MIXING)
        )
        told = (f"{n} {_TOLD.get(k, (k, k))[n > 1]}" for k, n in names.items())
        return ", ".join(told) or "diagonals and views"

    def pull(self, rows: Block, meet: int = 0) -> Block | None:
        """∂target/∂v by ∂target/∂(this target) given: ``rows`` over the target in, over the source out.

        With ``meet`` rows are pulled back to the values that are alive before that node only, and multiplied
        with the columns pushed forward to them: where many rows meet few columns, as in attention.
        """
        found = self._pulled(rows, meet)
        if not meet:
            return found.get(self.source)
        columns = self._pushed(identity_block(self.source.shape, _like(rows, self.source)), meet)
        return self._met(found, columns, self.source.shape)

    def push(self, columns: Block, seed_axes: tuple[int, ...] = (), meet: int | None = None) -> Block | None:
        """``columns`` over the source in, over the target out; ``meet`` as for ``pull``, the other way round.

        ``seed_axes``: the shape of the activation that the columns belong to; needed with ``meet``.
        """
        if meet is None:
            return self._pushed(columns, len(self.nodes)).get(self.target)
        found = self._pushed(columns, meet)
        rows = self._pulled(identity_block(self.target.shape, _like(columns, self.target)), meet)
        met = self._met(rows, found, seed_axes)
        return None if met is None else transposed(met, self.target.shape)

    @staticmethod
    def _met(rows: dict[Value, Block], columns: dict[Value, Block], shape: tuple[int, ...]) -> Block | None:
        terms = [product(rows[v], columns[v], shape) for v in rows if v in columns]
        return reduce(total, terms) if terms else None

    def meetings(self, most: int) -> list[int]:
        """Places where several values are alive after an operator that mixes elements: the narrowest ones."""
        last: dict[Value, int] = {self.target: len(self.nodes)}
        for position, node in enumerate(self.nodes):
            for m in self.maps_of[node]:
                last[m.source] = position
        widths: dict[int, int] = {}
        alive = {self.source}
        for position, node in enumerate(self.nodes[:-1]):
            alive |= {v for v in node.outputs if v in last}
            alive = {v for v in alive if last[v] > position}
            if len(alive) > 1 and mixes([node], self.maps_of):
                widths[position + 1] = sum(math.prod(v.shape) for v in alive if v is not self.source)
        return sorted(sorted(widths, key=lambda p: widths[p])[:most])

    def _pulled(self, rows: Block, stop: int) -> dict[Value, Block]:
        """Rows over every value that is alive before node ``stop``."""
        waiting: dict[Value, list[_Contribution]] = {self.target: [_Contribution(rows)]}
        for node in reversed(self.nodes[stop:]):
            done: dict[Value, _Contribution | None] = {}
            for out in node.outputs:
                if out in waiting:
                    done[out] = _sum(waiting.pop(out))
            found = self.maps_of[node]
            for out, given in done.items():
                mine = [m for m in found if m.target is out]
                if given is not None and len(mine) > 1:
                    given = given.lent()
                for m in mine:
                    part = _through(given, [step.T for step in reversed(m.steps)])
                    if part is not None:
                        waiting.setdefault(m.source, []).append(part)
        return _finished(waiting)

    def _pushed(self, columns: Block, stop: int) -> dict[Value, Block]:
        """Columns over every value that is alive before node ``stop``."""
        waiting: dict[Value, list[_Contribution]] = {self.source: [_Contribution(columns)]}
        known: dict[Value, _Contribution | None] = {}
        uses = Counter(m.source for node in self.nodes for m in self.maps_of[node])
        left = uses.copy()
        for m in (m for node in self.nodes[:stop] for m in self.maps_of[node]):
            if m.source not in known:
                given = _sum(waiting.pop(m.source)) if m.source in waiting else None
                known[m.source] = given if given is None or uses[m.source] == 1 else given.lent()
            given = known[m.source]
            left[m.source] -= 1
            if not left[m.source]:
                known.pop(m.source)
            part = _through(given, m.steps)
            if part is not None:
                waiting.setdefault(m.target, []).append(part)
        return {**{v: p.scaled() for v, p in known.items() if p is not None}, **_finished(waiting)}


def _finished(waiting: dict[Value, list[_Contribution]]) -> dict[Value, Block]:
    summed = {value: _sum(parts) for value, parts in waiting.items()}
    return {value: part.scaled() for value, part in summed.items() if part is not None}


def _like(bundle: Block, value: Value) -> Tensor | CostModel:
    """The tensor whose dtype and device an identity takes; in a dry run the cost model."""
    return bundle.data if isinstance(bundle.data, CostModel) else value.tensor


@dataclass(frozen=True)
class _Contribution:
    """One contribution to a value, with what is still to be done to it.

    Args:
        bundle: the vectors.
        factors: scalings held back: several become one, on the activation, before they touch the vectors.
        embed: held back, so that parts side by side become one tensor.
    """

    bundle: Block
    factors: tuple[Mul | Scale, ...] = ()
    embed: Embed | None = None

    def scaled(self) -> Block:
        """The vectors with the scalings applied."""
        return multiplied(materialized(self.bundle), self.factors)

    def lent(self) -> _Contribution:
        """The same vectors, not to be written into."""
        bundle = self.scaled()
        return _Contribution(Block(bundle.layout, bundle.data, False))


def _through(part: _Contribution | None, steps: Sequence[Primitive]) -> _Contribution | None:
    if part is None:
        return None
    bundle: Block | None = part.bundle
    factors = part.factors
    for position, step in enumerate(steps):
        assert bundle is not None
        if isinstance(step, Mul | Scale):
            factors = (*factors, step)
            continue
        bundle, factors = multiplied(bundle, factors), ()
        if not isinstance(step, Matrix | Permute | Reshape):
            bundle = materialized(bundle)
        if position == len(steps) - 1 and isinstance(step, Embed) and not _linked(bundle, step.dim):
            return _Contribution(bundle, (), step)
        bundle = step.apply(bundle)
        if bundle is None:
            return None
        bundle = without_ones(bundle)
    return None if bundle is None else _Contribution(bundle, factors)


def _linked(bundle: Block, dim: int) -> bool:
    return any(isinstance(axis_factor, BandedAxis) for axis_factor in bundle.layout.primal_axes[dim])


def _sum(parts: list[_Contribution]) -> _Contribution | None:
    """The sum of contributions; embedded ones in one dimension that do not overlap are put side by side."""
    if len(parts) == 1 and parts[0].embed is None:
        return parts[0]
    groups: dict[object, list[tuple[Block, Embed]]] = {}
    bundles = []
    for part in parts:
        if part.embed is None:
            bundles.append(part.scaled())
            continue
        form, dim = part.bundle.layout, part.embed.dim
        rest = (*form.primal_axes[:dim], *form.primal_axes[dim + 1 :])
        key = (dim, tuple(e.key for e in form.seed_axes), rest, part.embed.step)
        groups.setdefault(key, []).append((part.bundle, part.embed))
    for group in groups.values():
        bundles.extend(assembled(layer) for layer in _layers(group))
    # Those of one range first: a wider range costs zeros, and every sum there costs more.
    alike: dict[object, list[Block]] = {}
    for bundle in bundles:
        alike.setdefault(bundle.layout.seed_axes, []).append(bundle)
    return _Contribution(reduce(total, [reduce(total, group) for group in alike.values()])) if bundles else None


def _layers(group: list[tuple[Block, Embed]]) -> list[list[tuple[Block, Embed]]]:
    """Split into lists whose members do not overlap."""
    layers: list[list[tuple[Block, Embed]]] = []
    taken: list[set[int]] = []
    for bundle, e in group:
        places = set(range(e.start, e.start + e.step * e.count, e.step))
        for layer, used in zip(layers, taken, strict=True):
            if not used & places:
                layer.append((bundle, e))
                used |= places
                break
        else:
            layers.append([(bundle, e)])
            taken.append(places)
    return layers


def derivatives(nodes: Sequence[Node], target: Value | None = None) -> dict[Node, list[Map]]:
    """The maps of all nodes.

    Args:
        nodes: active ones, in order.
        target: what they lead to.

    Raises:
        CaptureGap: an operator without a rule, or a value in use that no rule covers.
    """
    found = {node: maps(node) for node in nodes}
    covered = {m.target for each in found.values() for m in each}
    used = {m.source for each in found.values() for m in each} | {target}
    for node in nodes:
        for out in node.outputs:
            if out in used and out not in covered and out.active and 0 not in out.shape and _fed(node):
                raise CaptureGap(f"output {out.out} of {node.name} has no derivative rule")
    return found


def _fed(node: Node) -> bool:
    """Whether it takes any element that hangs on the source: a sum of none does not."""
    return any(v.active and 0 not in v.shape for v in node.inputs())
