"""Bundles of vectors: made, spread over activations, unlinked, split and merged, ranged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.contraction import arranged, contract
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import End, Form, Free, Key, Label, Link, exchanged, identity


@dataclass(frozen=True)
class Factor:
    """A tensor with labels as those of a bundle's data; without it a stand-in."""

    sizes: dict[Label, int]
    tensor: Tensor | None

    @property
    def labels(self) -> list[Label]:
        """Of the axes."""
        return list(self.sizes)

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.sizes.values())

    def relabelled(self, new: Callable[[Label], Label]) -> Factor:
        """The same with other labels."""
        return Factor({new(x): n for x, n in self.sizes.items()}, self.tensor)


@dataclass(frozen=True)
class Bundle:
    """Vectors in a form; without data it is a plan's stand-in, and operations on it count their cost.

    ``fresh``: nothing else looks at the data, so that it may be written into.
    ``outer``: the data are the product of these two, which share no axis that is summed, and are not made yet:
    what follows may be cheaper on one of them. ``solid`` makes them.
    """

    form: Form
    data: Tensor | None
    fresh: bool = False
    outer: tuple[Factor, Factor] | None = None

    def made(self, form: Form, data: Tensor | None, fresh: bool = True) -> Bundle:
        """A bundle from this one; the data's shape is held against the form in passing."""
        assert data is None or tuple(data.shape) == form.sizes, (tuple(data.shape), form)
        return Bundle(form, data, fresh)

    def regarded(self, form: Form) -> Bundle:
        """The same elements in the same order, in another form."""
        return self.made(form, None if self.data is None else _reshaped(self.data, form.sizes), self.fresh)

    def filled(self, form: Form, data: Tensor) -> Bundle:
        """With new data, repeated along the axes on which it does not vary."""
        whole = tuple(data.shape) == form.sizes
        return self.made(form, data if whole else data.expand(form.sizes), whole)


def _reshaped(data: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """In other sizes. Where that takes a copy, the axis that is innermost in memory stays it: channels, mostly."""
    try:
        return data.view(sizes)
    except RuntimeError:
        inner = next((a for a, n in enumerate(data.shape) if n > 1 and data.stride(a) == 1), data.dim() - 1)
    before = math.prod(data.shape[:inner])
    places = [a for a, n in enumerate(sizes) if n == data.shape[inner] and math.prod(sizes[:a]) == before]
    if not places or inner == data.dim() - 1:
        return data.reshape(sizes)
    rest = [n for a, n in enumerate(sizes) if a != places[0]]
    return data.movedim(inner, -1).reshape(*rest, data.shape[inner]).movedim(-1, places[0])


def solid(bundle: Bundle) -> Bundle:
    """With its data made."""
    if bundle.outer is None:
        return bundle
    a, b = bundle.outer
    form = bundle.form
    meter.move(a.numel + b.numel + form.numel, fresh=form.numel)
    if a.tensor is None or b.tensor is None:
        return Bundle(form, None)
    return bundle.filled(form, contract(a.tensor, a.labels, b.tensor, b.labels, form.layout))


def identity_bundle(shape: tuple[int, ...], like: Tensor | None) -> Bundle:
    """The identity on an activation: nothing stored but a one."""
    form = identity(shape)
    if like is None:
        return Bundle(form, None)
    return Bundle(form, torch.ones(form.sizes, dtype=like.dtype, device=like.device))


def narrowed(bundle: Bundle, dim: int, start: int, size: int) -> Bundle:
    """Of an identity, a range of the ends of one dimension."""
    (atom,) = bundle.form.dims[dim]
    assert isinstance(atom, Link)
    ends = tuple(replace(e, start=start, size=size) if e.key == atom.key else e for e in bundle.form.ends)
    form = replace(bundle.form.with_dim(dim, (replace(atom, offset=start),)), ends=ends)
    return Bundle(form, bundle.data, bundle.fresh)


def spread(form: Form, tensor: Tensor, dims: Iterable[int] | None = None) -> tuple[Tensor, list[Label]]:
    """A tensor over the dims (sizes of 1 broadcast), its axes labelled as the bundle's data.

    Args:
        form: of the bundle.
        tensor: ``(*dims given)``, or with further axes after them, which the caller labels.
        dims: which dimensions of the activation the tensor's first axes are; all by default.
    """
    chosen = list(range(len(form.dims)) if dims is None else dims)
    extra = tensor.shape[len(chosen) :]
    sizes: list[int] = []
    places: list[tuple[int, int]] = []
    for axis, d in enumerate(chosen):
        for a, atom in enumerate(form.dims[d]):
            sizes.append(1 if tensor.shape[axis] == 1 else atom.size)
            places.append((d, a))
    if tuple(sizes) != tuple(tensor.shape[: len(chosen)]):
        tensor = tensor.reshape([*sizes, *extra])
    labels: list[Label] = []
    windows: list[Label] = []
    for axis, (d, a) in enumerate(places):
        atom = form.dims[d][a]
        if isinstance(atom, Free):
            labels.append((d, a))
            continue
        labels.append((-1, *atom.key))
        if form.plain(atom) or tensor.shape[axis] == 1:
            continue
        count = form.end[atom.key].size
        if atom.width == 1 and atom.offset >= 0 and atom.offset + atom.stride * (count - 1) < atom.size:
            stop = atom.offset + atom.stride * (count - 1) + 1
            tensor = tensor[(slice(None),) * axis + (slice(atom.offset, stop, atom.stride),)]
            continue
        tensor = _windows(tensor, axis, atom, count)
        windows.append((d, a))
        if atom.width == 1:
            tensor = tensor.squeeze(-1)
            windows.pop()
    rest = len(extra)
    if windows and rest:  # the window axes came after the extra ones
        first = len(labels)
        order = [*range(first), *range(first + rest, first + rest + len(windows)), *range(first, first + rest)]
        tensor = tensor.permute(order)
    return tensor, labels + windows


def _windows(tensor: Tensor, axis: int, atom: Link, count: int) -> Tensor:
    """The window of every end along one axis, as a further last axis; zeros where it sticks out."""
    before = max(0, -atom.offset)
    last = atom.offset + atom.stride * (count - 1) + atom.width
    after = max(0, last - atom.size)
    if before or after:
        pads = [0, 0] * (tensor.dim() - 1 - axis) + [before, after]
        tensor = torch.constant_pad_nd(tensor, pads)
    tensor = tensor.narrow(axis, before + atom.offset, last - atom.offset)
    return tensor.unfold(axis, atom.width, atom.stride)


def cleaned(bundle: Bundle) -> Bundle:
    """With zeros where windows stick out of their axes."""
    form = bundle.form
    soiled = [(d, a, atom) for d, a, atom in form.links.values() if not atom.clean]
    if not soiled:
        return bundle
    data = bundle.data
    for d, a, atom in soiled:
        if data is not None:
            ones = data.new_ones(atom.size)
            mask = _windows(ones, 0, atom, form.end[atom.key].size)
            data = data * arranged(mask, [(-1, *atom.key), (d, a)], form.layout)
        form = form.with_dim(d, tuple(replace(x, clean=True) if x is atom else x for x in form.dims[d]))
        form = replace(form, flat=form.flat - {atom.key})
        meter.move(2 * form.numel)
    return bundle.made(form, data)


def unlink(bundle: Bundle, keys: Iterable[Key] | None = None) -> Bundle:
    """Store the axes of these links in full (all by default): zeros but on the diagonal, or in the windows."""
    old = bundle.form
    keys = set(old.links if keys is None else keys)
    if not keys:
        return bundle
    atoms = tuple(
        tuple(Free(x.size) if isinstance(x, Link) and x.key in keys else x for x in atoms) for atoms in old.dims
    )
    form = Form(old.ends, atoms, old.flat - keys)
    meter.move(form.numel + 2 * old.numel, fresh=form.numel)
    if bundle.data is None:
        return Bundle(form, None)
    out = bundle.data.new_zeros(form.sizes)
    write(out, form, bundle)
    return bundle.made(form, out)


def write(out: Tensor, form: Form, bundle: Bundle, add: bool = False) -> None:
    """Put a bundle into the data of a form in which fewer axes are linked, or windows are wider."""
    old, data = bundle.form, bundle.data
    assert data is not None
    keys = [key for key in old.links if key not in form.links]
    out = _narrowed(out, form, old)
    data = data.expand(
        [
            n if x[0] != -1 else old.end[(x[1], x[2])].size if (x[1], x[2]) in keys else out.shape[form.layout.index(x)]
            for x, n in zip(old.layout, data.shape, strict=True)
        ]
    )
    for box in itertools.product(*(_boxes(old, key) for key in keys)):
        boxes, part = dict(zip(keys, box, strict=True)), data
        for key, (first, count, low, width) in boxes.items():
            part = part.narrow(old.layout.index((-1, *key)), first, count)
            d, a, atom = old.links[key]
            if atom.width > 1:
                part = part.narrow(old.layout.index((d, a)), low, width)
        apart = all(old.links[key][2].width <= old.links[key][2].stride for key in keys)
        view = (_diagonal if apart else _strided)(out, form.layout, old, boxes)
        if add:
            view.add_(part)
        else:
            view.copy_(part)


# Ends → first of them, how many, first element of their windows, how many.
Boxes = dict[Key, tuple[int, int, int, int]]


def _diagonal(out: Tensor, labels: tuple[Label, ...], old: Form, boxes: Boxes) -> Tensor:
    """The elements that are linked, as the data of ``old``; ``_strided`` by views, for windows that do not overlap.

    ``torch.compile`` follows writes into views of views, and not those into strides of them.
    """
    for key, (first, count, low, width) in boxes.items():
        d, a, atom = old.links[key]
        row, column = labels.index((-1, *key)), labels.index((d, a))
        reach = atom.stride * (count - 1) + width
        out = out.narrow(row, first, count).narrow(column, atom.offset + atom.stride * first + low, reach)
        labels = tuple(x for i, x in enumerate(labels) if i not in (row, column))
        if atom.stride > 1:
            out = out.unfold(column, width, atom.stride)
            labels += ((d, a),)
        out = out.diagonal(0, row, column)
        labels += ((-1, *key),)
    ones = tuple(i for i, x in enumerate(labels) if x not in old.layout)
    return arranged(out.squeeze(ones) if ones else out, [x for x in labels if x in old.layout], old.layout)


def _strided(out: Tensor, labels: tuple[Label, ...], old: Form, boxes: Boxes) -> Tensor:
    """The elements of ``out``, with the axes ``labels``, that are linked in ``old``, as the data of that."""
    strides, sizes = dict(zip(labels, out.stride(), strict=True)), dict(zip(labels, out.shape, strict=True))
    offset = out.storage_offset()
    for key, (first, count, low, width) in boxes.items():
        end = (-1, *key)
        d, a, atom = old.links[key]
        offset += first * strides[end] + (atom.offset + atom.stride * first + low) * strides[(d, a)]
        strides[end] += atom.stride * strides[(d, a)]
        sizes |= {end: count, (d, a): width}
    return out.as_strided([sizes[x] for x in old.layout], [strides[x] for x in old.layout], offset)


def _narrowed(out: Tensor, form: Form, old: Form) -> Tensor:
    """The part of the windows that the windows of ``old`` cover, still with an axis for each that ``form`` has."""
    for axis, (d, a) in ((i, (x[0], x[1])) for i, x in enumerate(form.layout) if x[0] != -1):
        wide = form.dims[d][a]
        if isinstance(wide, Link):
            _, _, link = old.links[wide.key]
            out = out.narrow(axis, link.offset - wide.offset, link.width)
    return out


def _fits(form: Form, key: Key) -> bool:
    _, _, atom = form.links[key]
    return atom.offset >= 0 and atom.offset + atom.stride * (form.end[key].size - 1) + atom.width <= atom.size


def _boxes(form: Form, key: Key) -> list[tuple[int, int, int, int]]:
    """Ranges of ends with the part of the window that lies inside: (first, count, low, width)."""
    _, _, atom = form.links[key]
    if _fits(form, key):
        return [(0, form.end[key].size, 0, atom.width)]
    boxes: list[tuple[int, int, int, int]] = []
    for p in range(form.end[key].size):
        start = atom.offset + atom.stride * p
        low, high = max(0, -start), min(atom.width, atom.size - start)
        if high <= low:
            continue
        if boxes and boxes[-1][2:] == (low, high - low) and boxes[-1][0] + boxes[-1][1] == p:
            boxes[-1] = (boxes[-1][0], boxes[-1][1] + 1, low, high - low)
        else:
            boxes.append((p, 1, low, high - low))
    return boxes


def split_end(bundle: Bundle, key: Key, low: int) -> Bundle:
    """Split an end of size ``high x low`` in two, and with it the axis linked to it, which must be plain."""
    form = bundle.form
    end = form.end[key]
    pair = end.split(low)
    high_key, high = pair[0].key, pair[0].full
    ends = tuple(x for e in form.ends for x in (pair if e.key == key else (e,)))
    dims = form.dims
    if key in form.links:
        d, a, _ = form.links[key]
        dims = exchanged(dims, d, exchanged(dims[d], a, Link(high_key, high), Link(key, low)))
    flat = form.flat | {high_key} if key in form.flat else form.flat
    return bundle.regarded(Form(ends, dims, flat))


def split_atom(bundle: Bundle, d: int, a: int, low: int) -> Bundle:
    """Split one axis of the dims in two, ``high x low``."""
    atom = bundle.form.dims[d][a]
    if isinstance(atom, Link):
        return split_end(bundle, atom.key, low)
    atoms = bundle.form.dims[d]
    form = bundle.form.with_dim(d, exchanged(atoms, a, Free(atom.size // low), Free(low)))
    return bundle.regarded(form)


def merged(bundle: Bundle, d: int) -> Bundle:
    """One dimension with its axes in full and as one."""
    form = bundle.form
    bundle = unlink(bundle, [x.key for x in form.dims[d] if isinstance(x, Link)])
    atoms = bundle.form.dims[d]
    if len(atoms) == 1:
        return bundle
    form = bundle.form.with_dim(d, (Free(math.prod(x.size for x in atoms)),))
    return bundle.regarded(form)


def without_ones(bundle: Bundle) -> Bundle:
    """Axes of size 1 are not stored."""
    dims = tuple(tuple(x for x in atoms if x != Free(1)) for atoms in bundle.form.dims)
    if dims == bundle.form.dims:
        return bundle
    bundle = solid(bundle)
    form = replace(bundle.form, dims=dims)
    return bundle.regarded(form)


def widened(bundle: Bundle, ends: tuple[End, ...]) -> Bundle:
    """With zeros for ends outside the ranges that it covers."""
    form = bundle.form
    keys = [e.key for e, w in zip(form.ends, ends, strict=True) if (e.start, e.size) != (w.start, w.size)]
    if not keys:
        return bundle
    bundle = unlink(bundle, [k for k in keys if k in form.links])
    new = Form(ends, bundle.form.dims, bundle.form.flat - set(keys))
    meter.move(new.numel + 2 * bundle.form.numel, fresh=new.numel)
    data = bundle.data
    if data is not None:
        out = data.new_zeros(new.sizes)
        part = out
        for end, want in zip(bundle.form.ends, ends, strict=True):
            if end.key in keys:
                part = part.narrow(new.layout.index((-1, *end.key)), end.start - want.start, end.size)
        part.copy_(data)
        data = out
    return bundle.made(new, data)


def whole(bundle: Bundle) -> Bundle:
    """With zeros for all ends that it does not cover."""
    return widened(bundle, tuple(replace(e, start=0, size=e.full) for e in bundle.form.ends))
