"""Slices of one dimension, and their transposes: pieces put at their places."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import Bundle, cleaned, merged, unlink, widened
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import Atom, Form, Free, Link


@dataclass(frozen=True)
class Slice:
    """``start, start + step, …``: ``count`` elements of one dimension of size ``full``."""

    dim: int
    full: int
    start: int
    count: int
    step: int = 1

    @property
    def T(self) -> Embed:
        return Embed(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, bundle: Bundle) -> Bundle | None:
        if self.count == self.full:
            return bundle
        atoms = bundle.form.dims[self.dim]
        if len(atoms) == 1 and isinstance(atoms[0], Link):
            atom = atoms[0]
            if atom.width == 1 and atom.stride == 1 and self.step == 1:
                return self._narrowed(bundle, atom)
            if self.step == 1 and self.count > 1:  # windows reach out of what is left
                moved = replace(atom, offset=atom.offset - self.start, size=self.count, clean=False)
                return bundle.made(bundle.form.with_dim(self.dim, (moved,)), bundle.data, bundle.fresh)
            bundle = unlink(bundle, [atom.key])
        bundle = merged(bundle, self.dim)
        return self._picked(bundle)

    def _narrowed(self, bundle: Bundle, atom: Link) -> Bundle | None:
        end = bundle.form.end[atom.key]
        low = max(0, self.start - atom.offset)
        high = min(end.size, self.start + self.count - atom.offset)
        if high <= low:
            return None
        ends = tuple(replace(e, start=e.start + low, size=high - low) if e is end else e for e in bundle.form.ends)
        kept: tuple[Atom, ...] = (replace(atom, offset=atom.offset + low - self.start, size=self.count),)
        flat = bundle.form.flat
        if self.count == 1:
            kept, flat = (), flat - {atom.key}
        old = bundle.form
        form = Form(ends, (*old.dims[: self.dim], kept, *old.dims[self.dim + 1 :]), flat)
        data = bundle.data
        if data is None:
            return Bundle(form, None)
        if atom.key not in old.flat:
            data = data.narrow(old.layout.index((-1, *atom.key)), low, high - low)
        return bundle.made(form, arranged(data, old.layout, form.layout), bundle.fresh)

    def _picked(self, bundle: Bundle) -> Bundle:
        form = bundle.form.with_dim(self.dim, (Free(self.count),) if self.count > 1 else ())
        if bundle.data is None:
            return Bundle(form, None)
        axis = bundle.form.layout.index((self.dim, 0))
        stop = self.start + self.step * (self.count - 1) + 1
        if self.count == 1:
            return bundle.made(form, bundle.data.select(axis, self.start), bundle.fresh)
        cut = (slice(None),) * axis + (slice(self.start, stop, self.step),)
        return bundle.made(form, bundle.data[cut], bundle.fresh)


@dataclass(frozen=True)
class Embed:
    """The transpose of ``Slice``: the elements at their places, zeros elsewhere."""

    dim: int
    full: int
    start: int
    count: int
    step: int = 1

    @property
    def T(self) -> Slice:
        return Slice(self.dim, self.full, self.start, self.count, self.step)

    def apply(self, bundle: Bundle) -> Bundle:
        if self.count == self.full:
            return bundle
        atoms = bundle.form.dims[self.dim]
        if len(atoms) == 1 and isinstance(atoms[0], Link) and (atoms[0].width == 1 or self.step == 1):
            bundle = cleaned(bundle)
            (atom,) = bundle.form.dims[self.dim]
            assert isinstance(atom, Link)
            moved = replace(
                atom,
                size=self.full,
                offset=self.start + self.step * atom.offset,
                stride=self.step * atom.stride,
                clean=True,
            )
            return bundle.made(bundle.form.with_dim(self.dim, (moved,)), bundle.data, bundle.fresh)
        return assembled([(bundle, self)])


def assembled(pieces: list[tuple[Bundle, Embed]]) -> Bundle:
    """The sum of embedded bundles of one form that do not overlap: one tensor, each written once."""
    first, embed = pieces[0]
    free = [(merged(b, e.dim), e) for b, e in pieces]
    ends = tuple(
        replace(
            e,
            start=(low := min(b.form.ends[i].start for b, _ in free)),
            size=max(b.form.ends[i].start + b.form.ends[i].size for b, _ in free) - low,
        )
        for i, e in enumerate(free[0][0].form.ends)
    )
    free = [(widened(b, ends), e) for b, e in free]
    flat = frozenset.intersection(*(b.form.flat for b, _ in free))
    form = replace(free[0][0].form.with_dim(embed.dim, (Free(embed.full),)), flat=flat)
    meter.move(2 * form.numel, fresh=form.numel)
    if any(b.data is None for b, _ in free):
        return Bundle(form, None)
    axis = form.layout.index((embed.dim, 0))
    covered = sum(e.count for _, e in free)
    data = free[0][0].data
    assert data is not None
    if covered == embed.full and all(e.step == 1 for _, e in free):
        order = sorted(free, key=lambda piece: piece[1].start)
        parts = [_expanded(b, form, axis) for b, _ in order]
        return first.made(form, torch.cat(parts, axis))
    out = data.new_zeros(form.sizes) if covered < embed.full else data.new_empty(form.sizes)
    for bundle, e in free:
        stop = e.start + e.step * (e.count - 1) + 1
        assert bundle.data is not None
        out[(slice(None),) * axis + (slice(e.start, stop, e.step),)] = bundle.data
    return first.made(form, out)


def _expanded(bundle: Bundle, form: Form, axis: int) -> Tensor:
    assert bundle.data is not None
    sizes = list(form.sizes)
    sizes[axis] = bundle.data.shape[axis]
    return bundle.data.expand(sizes)
