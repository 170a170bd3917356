"""Bundles through stretches of the graph: cotangents pulled back, tangents pushed forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

from jaccli.graph import rules_elementwise, rules_linear, rules_opaque, rules_reduce, rules_shape
from jaccli.graph.bundle import Bundle, total, without_ones
from jaccli.graph.convolution import Conv
from jaccli.graph.primitives import Embed, Gather, Matrix, Pick, Primitive, Projection, assembled
from jaccli.graph.recorder import CaptureGap, Node, Value
from jaccli.graph.rules import Map, maps

_REGISTERED = (rules_elementwise, rules_linear, rules_opaque, rules_reduce, rules_shape)


class Stretch:
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
            if isinstance(step, Matrix | Conv | Projection | Gather | Pick)
        )
        known = {"conv": "convolution", "projection": "normalisation or softmax", "gather": "pooling", "pick": "index"}
        return ", ".join(f"{n} {known.get(k, k)}" for k, n in names.items()) or "diagonals and views"

    def pull(self, rows: Bundle) -> Bundle | None:
        """∂target/∂v by ∂target/∂(this target) given: ``rows`` over the target in, over the source out."""
        waiting: dict[Value, list[_Part]] = {self.target: [_Part(rows)]}
        for node in reversed(self.nodes):
            done: dict[Value, Bundle | None] = {}
            for out in node.outputs:
                if out in waiting:
                    done[out] = _sum(waiting.pop(out))
            found = self.maps_of[node]
            for out, bundle in done.items():
                mine = [m for m in found if m.target is out]
                if not mine and bundle is not None and not any(m.target is out for m in found):
                    _no_rule(node, out)
                if bundle is not None and len(mine) > 1:
                    bundle = _lent(bundle)
                for m in mine:
                    part = _through(bundle, [step.T for step in reversed(m.steps)])
                    if part is not None:
                        waiting.setdefault(m.source, []).append(part)
        parts = waiting.get(self.source)
        return _sum(parts) if parts else None

    def push(self, columns: Bundle) -> Bundle | None:
        """``columns`` over the source in, over the target out."""
        waiting: dict[Value, list[_Part]] = {self.source: [_Part(columns)]}
        known: dict[Value, Bundle | None] = {}
        uses = Counter(m.source for node in self.nodes for m in self.maps_of[node])
        left = uses.copy()
        for m in (m for node in self.nodes for m in self.maps_of[node]):
            if m.source not in known:
                bundle = _sum(waiting.pop(m.source)) if m.source in waiting else None
                known[m.source] = bundle if bundle is None or uses[m.source] == 1 else _lent(bundle)
            bundle = known[m.source]
            left[m.source] -= 1
            if not left[m.source]:
                known.pop(m.source)
            part = _through(bundle, m.steps)
            if part is not None:
                waiting.setdefault(m.target, []).append(part)
        parts = waiting.get(self.target)
        return _sum(parts) if parts else None


class _Part:
    """One contribution to a value; the last embedding is held back, so that parts become one tensor."""

    def __init__(self, bundle: Bundle, embed: Embed | None = None) -> None:
        self.bundle, self.embed = bundle, embed


def _lent(bundle: Bundle) -> Bundle:
    """The same data, not to be written into."""
    return Bundle(bundle.form, bundle.data, False)


def _through(bundle: Bundle | None, steps: Sequence[Primitive]) -> _Part | None:
    *first, last = steps if steps else [None]
    for step in first:
        if bundle is None or step is None:
            break
        bundle = step.apply(bundle)
    if bundle is None:
        return None
    if isinstance(last, Embed) and not bundle.form.links.keys() & {
        getattr(x, "key", None) for x in bundle.form.dims[last.dim]
    }:
        return _Part(bundle, last)
    if last is not None:
        bundle = last.apply(bundle)
    return None if bundle is None else _Part(without_ones(bundle))


def _sum(parts: list[_Part]) -> Bundle | None:
    """The sum of contributions; embedded ones in one dimension that do not overlap are put side by side."""
    groups: dict[object, list[tuple[Bundle, Embed]]] = {}
    bundles = []
    for part in parts:
        if part.embed is None:
            bundles.append(part.bundle)
            continue
        form, dim = part.bundle.form, part.embed.dim
        rest = (*form.dims[:dim], *form.dims[dim + 1 :])
        key = (dim, tuple(e.key for e in form.ends), rest, part.embed.step)
        groups.setdefault(key, []).append((part.bundle, part.embed))
    for group in groups.values():
        for layer in _layers(group):
            bundles.append(assembled(layer))
    return reduce(total, bundles) if bundles else None


def _layers(group: list[tuple[Bundle, Embed]]) -> list[list[tuple[Bundle, Embed]]]:
    """Split into lists whose members do not overlap."""
    layers: list[list[tuple[Bundle, Embed]]] = []
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


def _no_rule(node: Node, out: Value) -> None:
    raise CaptureGap(f"output {out.out} of {node.name} has no derivative rule")


Through = Callable[[Bundle], Bundle | None]


def derivatives(nodes: Sequence[Node]) -> dict[Node, list[Map]]:
    """The maps of all nodes.

    Raises:
        CaptureGap: an operator without a rule, or a value in use that no rule covers.
    """
    found = {node: maps(node) for node in nodes}
    covered = {m.target for each in found.values() for m in each}
    used = {m.source for each in found.values() for m in each}
    for node in nodes:
        for out in node.outputs:
            if out in used and out not in covered and out.active and not _blind(found[node], node):
                raise CaptureGap(f"output {out.out} of {node.name} has no derivative rule")
    return found


def _blind(found: list[Map], node: Node) -> bool:
    """A node whose derivative is zero by its rule."""
    return not found and node.name in ("aten.embedding",)
