"""Linear maps between activations, applied to bundles. Each knows its transpose, so that one
implementation serves tangents pushed forward and cotangents pulled back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from jaccli.graph.bundle import Bundle, cleaned, merged, split_atom, spread, unlink, widened, without_ones
from jaccli.graph.einsum import arranged, contract
from jaccli.graph.form import Atom, Form, Free, Label, Link
from jaccli.graph.meter import meter

Shape = tuple[int, ...]
Make = Callable[[], Tensor]


class Primitive(Protocol):
    """A linear map from one activation to another."""

    def apply(self, bundle: Bundle) -> Bundle | None:
        """The map applied to every vector; None when all of them become zero."""

    @property
    def T(self) -> Primitive:
        """The transpose."""


@dataclass(frozen=True)
class Late:
    """A tensor made when it is first wanted: dry runs want none."""

    make: Make

    @cached_property
    def tensor(self) -> Tensor:
        """Made once."""
        return self.make()


@dataclass(frozen=True)
class Mul:
    """Elementwise scaling by a factor that broadcasts to the activation; ``shape`` is the factor's."""

    factor: Late
    shape: Shape

    @property
    def T(self) -> Mul:
        return self

    def apply(self, bundle: Bundle) -> Bundle:
        form = bundle.form
        full = {key for key, (d, _, _) in form.links.items() if self.shape[d] != 1 or form.shape[d] == 1}
        dims = tuple(
            tuple(replace(x, clean=True) if isinstance(x, Link) and x.key in full else x for x in atoms)
            for atoms in form.dims
        )
        new = replace(form, dims=dims, flat=form.flat - full)
        meter.move(form.numel + new.numel)
        if bundle.data is None:
            return Bundle(new, None)
        factor = self.factor.tensor
        if factor.dim() == 4 and any(x.width > 1 for _, _, x in form.links.values()):
            factor = factor.contiguous(memory_format=torch.channels_last)  # as windows lie
        factor, labels = spread(form, factor)
        factor = _laid_out_as(arranged(factor, labels, form.layout), bundle.data)
        if bundle.fresh and form.flat == new.flat:
            return bundle.made(new, bundle.data.mul_(factor))
        if math.prod(form.sizes) == 1:
            return bundle.made(new, (bundle.data * factor).expand(new.sizes))
        data = bundle.data
        if 2 * data.numel() <= new.numel and not data.is_contiguous():
            data = data.contiguous()  # the product lies in memory as its first factor does
        return bundle.made(new, data * factor)


@dataclass(frozen=True)
class Scale:
    """Multiplication by a number."""

    factor: float

    @property
    def T(self) -> Scale:
        return self

    def apply(self, bundle: Bundle) -> Bundle:
        if self.factor == 1:
            return bundle
        meter.move(2 * bundle.form.numel)
        if bundle.data is None:
            return bundle
        return bundle.made(bundle.form, bundle.data * self.factor)


def multiplied(bundle: Bundle, factors: Sequence[Mul | Scale]) -> Bundle:
    """Scaled by all factors, which are multiplied with each other first: they are the smaller."""
    number = math.prod(f.factor for f in factors if isinstance(f, Scale))
    tensors = [f for f in factors if isinstance(f, Mul)]
    if not tensors:
        return Scale(number).apply(bundle)
    if len(tensors) == 1 and number == 1:
        return tensors[0].apply(bundle)
    shape = tuple(torch.broadcast_shapes(*(f.shape for f in tensors)))

    def make() -> Tensor:
        whole = tensors[0].factor.tensor if number == 1 else tensors[0].factor.tensor * number
        for f in tensors[1:]:
            whole = whole * f.factor.tensor
        return whole

    return Mul(Late(make), shape).apply(bundle)


def _laid_out_as(factor: Tensor, data: Tensor) -> Tensor:
    """A small factor with its axes in memory in the order of the data's: else every access of it strides."""
    if factor.numel() * 2 > data.numel() or factor.dim() < 3 or data.is_contiguous():
        return factor
    order = sorted(range(data.dim()), key=lambda d: -data.stride(d))
    back = [order.index(d) for d in range(data.dim())]
    return factor.permute(order).contiguous().permute(back)


@dataclass(frozen=True)
class Reshape:
    """Another shape, elements in the same order."""

    old: Shape
    new: Shape

    @property
    def T(self) -> Reshape:
        return Reshape(self.new, self.old)

    def apply(self, bundle: Bundle) -> Bundle:
        if self.old == self.new:
            return bundle
        bundle = without_ones(bundle)
        dims: list[tuple[Atom, ...]] = []
        position = 0  # of the atom that comes next, in reading order
        for want in self.new:
            have: list[Atom] = []
            got = 1
            while got < want:
                d, a = _place(bundle.form, position)
                atom = bundle.form.dims[d][a]
                need = want // got
                if want % got or (atom.size % need and need % atom.size):
                    return self._merged(bundle)
                if not bundle.form.plain(atom) and (atom.size > need or want != atom.size):
                    assert isinstance(atom, Link)
                    bundle = unlink(bundle, [atom.key])
                    atom = bundle.form.dims[d][a]
                if atom.size > need:
                    bundle = split_atom(bundle, d, a, atom.size // need)
                    atom = bundle.form.dims[d][a]
                have.append(atom)
                got *= atom.size
                position += 1
            if got != want:
                return self._merged(bundle)
            dims.append(tuple(have))
        form = replace(bundle.form, dims=tuple(dims))
        return bundle.made(form, bundle.data, bundle.fresh)

    def _merged(self, bundle: Bundle) -> Bundle:
        """Where the two shapes cut the elements at different places: those dims in full, as one axis."""
        start_old = start_new = 0
        dims: list[tuple[Atom, ...]] = []
        old, new = list(self.old), list(self.new)
        while start_old < len(old) or start_new < len(new):
            stop_old, stop_new = start_old + 1, start_new + 1
            a = math.prod(old[start_old:stop_old])
            b = math.prod(new[start_new:stop_new])
            while a != b:
                if a < b and stop_old < len(old):
                    a, stop_old = a * old[stop_old], stop_old + 1
                else:
                    b, stop_new = b * new[stop_new], stop_new + 1
            if (old[start_old:stop_old], stop_new - start_new) == ([b], 1):
                dims.append(bundle.form.dims[start_old])
            else:
                keys = [x.key for atoms in bundle.form.dims[start_old:stop_old] for x in atoms if isinstance(x, Link)]
                bundle = unlink(bundle, keys)
                dims.extend((Free(n),) if n != 1 else () for n in new[start_new:stop_new])
            start_old, start_new = stop_old, stop_new
        form = replace(bundle.form, dims=tuple(dims))
        data = bundle.data
        return bundle.made(form, None if data is None else data.reshape(form.sizes), bundle.fresh)


def _place(form: Form, position: int) -> tuple[int, int]:
    for d, atoms in enumerate(form.dims):
        if position < len(atoms):
            return d, position
        position -= len(atoms)
    raise IndexError(position)


@dataclass(frozen=True)
class Permute:
    """Dimensions in another order."""

    order: Shape

    @property
    def T(self) -> Permute:
        return Permute(tuple(self.order.index(d) for d in range(len(self.order))))

    def apply(self, bundle: Bundle) -> Bundle:
        form = replace(bundle.form, dims=tuple(bundle.form.dims[d] for d in self.order))
        if bundle.data is None:
            return Bundle(form, None)
        moved: list[Label] = [x if x[0] == -1 else (self.order[x[0]], x[1]) for x in form.layout]
        order = [bundle.form.layout.index(x) for x in moved]
        data = bundle.data if order == sorted(order) else bundle.data.permute(order)
        return bundle.made(form, data, bundle.fresh)


@dataclass(frozen=True)
class Expand:
    """Dimensions of size 1 repeated: ``old`` to ``new``, of as many dimensions."""

    old: Shape
    new: Shape

    @property
    def T(self) -> SumTo:
        return SumTo(self.new, self.old)

    def apply(self, bundle: Bundle) -> Bundle:
        if self.old == self.new:
            return bundle
        grown = [d for d, (m, n) in enumerate(zip(self.old, self.new, strict=True)) if m != n]
        form = replace(
            bundle.form, dims=tuple((Free(self.new[d]),) if d in grown else x for d, x in enumerate(bundle.form.dims))
        )
        if bundle.data is None:
            return Bundle(form, None)
        return bundle.made(form, arranged(bundle.data, bundle.form.layout, form.layout).expand(form.sizes), False)


@dataclass(frozen=True)
class SumTo:
    """Sums over the dimensions that become 1: the transpose of ``Expand``."""

    old: Shape
    new: Shape

    @property
    def T(self) -> Expand:
        return Expand(self.new, self.old)

    def apply(self, bundle: Bundle) -> Bundle:
        if self.old == self.new:
            return bundle
        bundle = cleaned(bundle)
        gone = [d for d, (m, n) in enumerate(zip(self.old, self.new, strict=True)) if m != n]
        old = bundle.form
        keys = frozenset(x.key for d in gone for x in old.dims[d] if isinstance(x, Link))
        form = Form(old.ends, tuple(() if d in gone else x for d, x in enumerate(old.dims)), old.flat - keys)
        meter.move(old.numel + form.numel)
        data = bundle.data
        if data is None:
            return Bundle(form, None)
        axes = [axis for axis, label in enumerate(old.layout) if label[0] in gone]
        labels = [label for label in old.layout if label[0] not in gone]
        if axes:
            data = data.sum(axes)
        data = arranged(data, labels, form.layout)
        return bundle.made(form, data.expand(form.sizes), bool(axes) and tuple(data.shape) == form.sizes)


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

    def free(self, bundle: Bundle) -> Bundle:
        """The bundle with this dimension as one axis in full, of size ``count`` (1 too)."""
        form = bundle.form
        if not form.dims[self.dim]:
            form = form.with_dim(self.dim, (Free(1),))
            data = bundle.data
            return bundle.made(
                form, None if data is None else arranged(data, bundle.form.layout, form.layout), bundle.fresh
            )
        return merged(bundle, self.dim)


def assembled(pieces: list[tuple[Bundle, Embed]]) -> Bundle:
    """The sum of embedded bundles of one form that do not overlap: one tensor, each written once."""
    first, embed = pieces[0]
    free = [(e.free(b), e) for b, e in pieces]
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
        out[(slice(None),) * axis + (slice(e.start, stop, e.step),)] = bundle.data
    return first.made(form, out)


def _expanded(bundle: Bundle, form: Form, axis: int) -> Tensor:
    assert bundle.data is not None
    sizes = list(form.sizes)
    sizes[axis] = bundle.data.shape[axis]
    return bundle.data.expand(sizes)


@dataclass(frozen=True)
class Pick:
    """``index_select`` in one dimension of size ``full``."""

    dim: int
    full: int
    index: Tensor

    @property
    def T(self) -> Primitive:
        return Drop(self.dim, self.full, self.index)

    def apply(self, bundle: Bundle) -> Bundle:
        bundle = merged(bundle, self.dim)
        count = self.index.numel()
        form = bundle.form.with_dim(self.dim, (Free(count),) if count != 1 else ())
        meter.move(2 * form.numel)
        if bundle.data is None:
            return Bundle(form, None)
        if not bundle.form.dims[self.dim]:
            return Expand(self._one(), tuple(count if d == self.dim else n for d, n in enumerate(self._one()))).apply(
                bundle
            )
        data = bundle.data.index_select(bundle.form.layout.index((self.dim, 0)), self.index)
        return bundle.made(form, data.reshape(form.sizes))

    def _one(self) -> Shape:
        raise NotImplementedError("a dimension of size 1 is not indexed")


@dataclass(frozen=True)
class Drop:
    """The transpose of ``Pick``: each element is added at its place."""

    dim: int
    full: int
    index: Tensor

    @property
    def T(self) -> Pick:
        return Pick(self.dim, self.full, self.index)

    def apply(self, bundle: Bundle) -> Bundle:
        bundle = merged(bundle, self.dim)
        if not bundle.form.dims[self.dim]:
            bundle = Embed(self.dim, 2, 0, 1).free(bundle)
        form = bundle.form.with_dim(self.dim, (Free(self.full),))
        meter.move(2 * form.numel + bundle.form.numel)
        if bundle.data is None:
            return Bundle(form, None)
        out = bundle.data.new_zeros(form.sizes)
        return bundle.made(form, out.index_add_(form.layout.index((self.dim, 0)), self.index, bundle.data))


@dataclass(frozen=True)
class Gather:
    """``gather`` in one dimension of size ``full``, by indices that differ from place to place."""

    dim: int
    full: int
    index: Late
    shape: Shape

    @property
    def T(self) -> Scatter:
        return Scatter(self.dim, self.full, self.index, self.shape)

    def apply(self, bundle: Bundle) -> Bundle:
        bundle = _in_full(bundle, self.dim)
        count = self.shape[self.dim]
        new = bundle.form.with_dim(self.dim, (Free(count),))
        new = replace(new, flat=frozenset())
        meter.move(3 * new.numel)
        if bundle.data is None:
            return without_ones(Bundle(new, None))
        axis = new.layout.index((self.dim, 0))
        index = arranged(*spread(new, self.index.tensor), new.layout).expand(new.sizes)
        sizes = list(new.sizes)
        sizes[axis] = self.full
        return without_ones(bundle.made(new, bundle.data.expand(sizes).gather(axis, index)))


@dataclass(frozen=True)
class Scatter:
    """The transpose of ``Gather``: each element is added where its index says."""

    dim: int
    full: int
    index: Late
    shape: Shape

    @property
    def T(self) -> Gather:
        return Gather(self.dim, self.full, self.index, self.shape)

    def apply(self, bundle: Bundle) -> Bundle:
        bundle = _in_full(bundle, self.dim)
        form = replace(bundle.form.with_dim(self.dim, (Free(self.full),)), flat=frozenset())
        old = replace(bundle.form, flat=frozenset())
        meter.move(3 * old.numel + form.numel)
        if bundle.data is None:
            return without_ones(Bundle(form, None))
        index = arranged(*spread(old, self.index.tensor), old.layout).expand(old.sizes)
        out = bundle.data.new_zeros(form.sizes)
        out.scatter_add_(form.layout.index((self.dim, 0)), index, bundle.data.expand(old.sizes))
        return without_ones(bundle.made(form, out))


def _in_full(bundle: Bundle, dim: int) -> Bundle:
    """One axis for this dimension, also where it has size 1; no windows anywhere."""
    keys = [key for key, (_, _, atom) in bundle.form.links.items() if not bundle.form.plain(atom) and atom.width > 1]
    bundle = merged(unlink(bundle, keys), dim)
    return bundle if bundle.form.dims[dim] else Embed(dim, 2, 0, 1).free(bundle)


@dataclass(frozen=True)
class Matrix:
    """A matrix along one dimension: ``y[…, j] = Σ_i x[…, i] M[…, i, j]``.

    Args:
        dim: the dimension.
        factor: M, ``(*parallel, n_in, n_out)``.
        shape: of M.
        parallel: dimensions of the activation that M has too; size 1 where M is the same along one.
    """

    dim: int
    factor: Late
    shape: Shape
    parallel: tuple[int, ...] = ()
    swapped: bool = False

    @property
    def T(self) -> Matrix:
        *parallel, i, j = self.shape
        return replace(self, shape=(*parallel, j, i), swapped=not self.swapped)

    def apply(self, bundle: Bundle) -> Bundle:
        form = bundle.form
        odd = [x.key for x in form.dims[self.dim] if isinstance(x, Link) and x.width > 1]
        bundle = unlink(bundle, odd)
        form = bundle.form
        n_out = self.shape[-1]
        opened = frozenset(x.key for x in form.dims[self.dim] if isinstance(x, Link))
        varied = {
            x.key
            for axis, d in enumerate(self.parallel)
            for x in form.dims[d]
            if isinstance(x, Link) and (self.shape[axis] != 1)
        }
        new = form.with_dim(self.dim, (Free(n_out),) if n_out != 1 else ())
        new = replace(new, flat=form.flat - opened - varied)
        out_label: Label = (self.dim, 0)
        wanted = [x for x in new.layout if x != out_label] + ([out_label] if n_out != 1 else [])
        la = [(-3, *x) if x[0] == self.dim else x for x in form.layout]
        if bundle.data is None:
            self._count(form, la, wanted, new)
            return Bundle(new, None)
        factor, lb = self._labelled(form)
        data = contract(bundle.data, la, factor, lb, wanted)
        data = arranged(data, wanted, new.layout)
        if tuple(data.shape) != new.sizes:
            data = data.expand(new.sizes)
            return bundle.made(new, data, False)
        return bundle.made(new, data)

    def _labelled(self, form: Form) -> tuple[Tensor, list[Label]]:
        """M with labels: parallel axes as the data's, then those of the dimension, then the new one."""
        factor = self.factor.tensor
        factor = factor.transpose(-1, -2) if self.swapped else factor
        factor, labels = spread(form, factor, self.parallel)
        inner, inner_labels = spread(
            Form(form.ends, (form.dims[self.dim],), form.flat), factor.movedim(len(labels), 0), [0]
        )
        named = [(-3, self.dim, x[1]) if x[0] != -1 else x for x in inner_labels]
        labels = [*named, *labels]
        if self.shape[-1] == 1:
            return inner.squeeze(-1), labels
        return inner, [*labels, (self.dim, 0)]

    def _count(self, form: Form, la: list[Label], wanted: list[Label], new: Form) -> None:
        sizes: dict[Label, int] = {}
        for axis, d in enumerate(self.parallel):
            for a, atom in enumerate(form.dims[d]):
                label: Label = (-1, *atom.key) if isinstance(atom, Link) else (d, a)
                sizes[label] = (
                    1 if self.shape[axis] == 1 else (form.end[atom.key].size if isinstance(atom, Link) else atom.size)
                )
        for a, atom in enumerate(form.dims[self.dim]):
            if isinstance(atom, Link):
                sizes[(-1, *atom.key)] = form.end[atom.key].size
            else:
                sizes[(-3, self.dim, a)] = atom.size
        sizes[(self.dim, 0)] = self.shape[-1]
        meter.product(dict(zip(la, form.sizes, strict=True)), sizes, wanted)


@dataclass(frozen=True)
class Projection:
    """The core of softmax and of normalisations over one dimension: symmetric, ``v ↦ s (v - … )``.

    ``softmax``: y ⊙ (v - ⟨y, v⟩). ``norm``: r (v - mean v - x̂ mean(x̂ v)), r the reciprocal deviation;
    ``rms``: without the mean.

    Args:
        dim: the dimension.
        vector: y or x̂, of the activation's shape.
        kind: which.
        scale: r, of the activation's shape with 1 in ``dim``.
    """

    dim: int
    vector: Late
    kind: str
    scale: Late | None = None

    @property
    def T(self) -> Projection:
        return self

    def apply(self, bundle: Bundle) -> Bundle:
        keys = [k for k, (_, _, atom) in bundle.form.links.items() if atom.width > 1]
        bundle = merged(unlink(bundle, keys), self.dim)
        form = bundle.form
        new = replace(form, flat=frozenset())
        meter.move(2 * new.numel + 2 * form.numel)
        meter.move(3 * new.numel)
        if bundle.data is None:
            return Bundle(new, None)
        data = bundle.data.expand(new.sizes)
        axis = form.layout.index((self.dim, 0))
        vector = arranged(*spread(form, self.vector.tensor), form.layout)
        if self.kind == "softmax":
            scaled = data * vector
            return bundle.made(new, torch.addcmul(scaled, vector, scaled.sum(axis, keepdim=True), value=-1))
        along = _along(data, vector, axis) / -data.shape[axis]
        out = torch.addcmul(data, vector, along)
        if self.kind == "norm":
            out -= data.mean(axis, keepdim=True)
        assert self.scale is not None
        out *= arranged(*spread(form, self.scale.tensor), form.layout)
        return bundle.made(new, out)


def _along(data: Tensor, vector: Tensor, axis: int) -> Tensor:
    """⟨data, vector⟩ along an axis, kept."""
    return (data * vector).sum(axis, keepdim=True)
