"""Bundles of vectors and their algebra: spread, unlink, add, transpose, multiply."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.einsum import arranged, contract
from jaccli.graph.form import Atom, End, Form, Free, Key, Label, Link, identity
from jaccli.graph.meter import meter

# Windows of more than this share of their axis are stored in full.
_WIDE = 0.5


@dataclass(frozen=True)
class Bundle:
    """Vectors in a form; without data it is a plan's stand-in, and operations on it count their cost.

    ``fresh``: nothing else looks at the data, so that it may be written into.
    """

    form: Form
    data: Tensor | None
    fresh: bool = False

    def made(self, form: Form, data: Tensor | None, fresh: bool = True) -> Bundle:
        """A bundle from this one; the data's shape is held against the form in passing."""
        assert data is None or tuple(data.shape) == form.sizes, (tuple(data.shape), form)
        return Bundle(form, data, fresh)


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
    """Put a bundle into the data of a form in which fewer axes are linked."""
    old, data = bundle.form, bundle.data
    assert data is not None
    keys = old.links.keys() - form.links.keys()
    strides = dict(zip(form.layout, out.stride(), strict=True))
    data = data.expand(
        [
            n if x[0] != -1 else old.end[(x[1], x[2])].size if (x[1], x[2]) in keys else out.shape[form.layout.index(x)]
            for x, n in zip(old.layout, data.shape, strict=True)
        ]
    )
    windows = [key for key in keys if not _fits(old, key)]
    for box in itertools.product(*(_boxes(old, key) for key in windows)):
        size, offset = list(data.shape), out.storage_offset()
        steps, part = [], data
        chosen = dict(zip(windows, box, strict=True))
        for axis, label in enumerate(old.layout):
            key = (label[1], label[2]) if label[0] == -1 else None
            if key is None or key not in keys:
                steps.append(strides[label])
                continue
            d, a, atom = old.links[key]
            steps.append(strides[label] + atom.stride * strides[(d, a)])
            first, count, low, width = chosen.get(key, (0, size[axis], 0, atom.width))
            offset += first * strides[label] + (atom.offset + atom.stride * first + low) * strides[(d, a)]
            part, size[axis] = part.narrow(axis, first, count), count
            if atom.width > 1:
                column = old.layout.index((d, a))
                part, size[column] = part.narrow(column, low, width), width
        view = out.as_strided(size, steps, offset)
        if add:
            view.add_(part)
        else:
            view.copy_(part)


def _fits(form: Form, key: Key) -> bool:
    _, _, atom = form.links[key]
    return atom.offset >= 0 and atom.offset + atom.stride * (form.end[key].size - 1) + atom.width <= atom.size


def _boxes(form: Form, key: Key) -> list[tuple[int, int, int, int]]:
    """Ranges of ends with the part of the window that lies inside: (first, count, low, width)."""
    _, _, atom = form.links[key]
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
    """Split an end of size ``high x low`` in two, and with it the axis linked to it."""
    form = bundle.form
    end = form.end[key]
    assert end.whole and end.full % low == 0
    high_key, high = (key[0], key[1] * low), end.full // low
    pair = (End(high_key, high), End(key, low))
    ends = tuple(x for e in form.ends for x in (pair if e.key == key else (e,)))
    dims = form.dims
    if key in form.links:
        d, a, _ = form.links[key]
        atoms = (*dims[d][:a], Link(high_key, high), Link(key, low), *dims[d][a + 1 :])
        dims = (*dims[:d], atoms, *dims[d + 1 :])
    flat = form.flat | {high_key} if key in form.flat else form.flat
    new = Form(ends, dims, flat)
    data = bundle.data
    if data is not None:
        data = data.reshape(new.sizes)
    return bundle.made(new, data, bundle.fresh)


def split_atom(bundle: Bundle, d: int, a: int, low: int) -> Bundle:
    """Split one axis of the dims in two, ``high x low``."""
    atom = bundle.form.dims[d][a]
    if isinstance(atom, Link):
        return split_end(bundle, atom.key, low)
    atoms = bundle.form.dims[d]
    form = bundle.form.with_dim(d, (*atoms[:a], Free(atom.size // low), Free(low), *atoms[a + 1 :]))
    return bundle.made(form, None if bundle.data is None else bundle.data.reshape(form.sizes), bundle.fresh)


def merged(bundle: Bundle, d: int) -> Bundle:
    """One dimension with its axes in full and as one."""
    form = bundle.form
    bundle = unlink(bundle, [x.key for x in form.dims[d] if isinstance(x, Link)])
    atoms = bundle.form.dims[d]
    if len(atoms) == 1:
        return bundle
    form = bundle.form.with_dim(d, (Free(math.prod(x.size for x in atoms)),))
    return bundle.made(form, None if bundle.data is None else bundle.data.reshape(form.sizes), bundle.fresh)


def without_ones(bundle: Bundle) -> Bundle:
    """Axes of size 1 are not stored."""
    dims = tuple(tuple(x for x in atoms if x != Free(1)) for atoms in bundle.form.dims)
    if dims == bundle.form.dims:
        return bundle
    form = replace(bundle.form, dims=dims)
    return bundle.made(form, None if bundle.data is None else bundle.data.reshape(form.sizes), bundle.fresh)


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


def aligned(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """Both with the same ends, split and ranged alike."""
    a, b = _same_splits(a, b)
    b, a = _same_splits(b, a)
    ends = tuple(
        replace(x, start=min(x.start, y.start), size=max(x.start + x.size, y.start + y.size) - min(x.start, y.start))
        for x, y in zip(a.form.ends, b.form.ends, strict=True)
    )
    return widened(a, ends), widened(b, ends)


def _same_splits(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """``a`` with its ends split where those of ``b`` are."""
    for end in b.form.ends:
        if end.key in a.form.end:
            continue
        dim, stride = end.key
        for mine in a.form.ends:
            if mine.key[0] == dim and mine.key[1] < stride < mine.key[1] * mine.full:
                if not mine.whole:
                    a = widened(a, tuple(replace(e, start=0, size=e.full) for e in a.form.ends))
                if mine.key in a.form.links and not a.form.plain(a.form.links[mine.key][2]):
                    a = unlink(a, [mine.key])
                a = split_end(a, mine.key, stride // mine.key[1])
                return _same_splits(a, b)
    return a, b


def total(a: Bundle, b: Bundle) -> Bundle:
    """The sum of two bundles over the same activation."""
    a, b = aligned(without_ones(a), without_ones(b))
    while a.form.dims != b.form.dims:
        before = (a.form, b.form)
        a, b = _same_dims(a, b)
        a, b = aligned(a, b)
        if (a.form, b.form) == before:  # nothing but links of one is left between them
            break
    if len(a.form.links) > len(b.form.links):
        a, b = b, a
    flat = a.form.flat & b.form.flat
    if len(a.form.links) == len(b.form.links):
        form = replace(a.form, flat=flat)
        meter.move(3 * form.numel)
        if a.data is None or b.data is None:
            return Bundle(form, None)
        if a.fresh and a.form.flat == flat:
            return a.made(form, a.data.add_(b.data))
        if b.fresh and b.form.flat == flat:
            return a.made(form, b.data.add_(a.data))
        return a.made(form, a.data + b.data)
    keys = frozenset(b.form.links) - frozenset(a.form.links)
    flat = a.form.flat & (b.form.flat - keys)
    form = replace(a.form, flat=flat)
    meter.move(3 * b.form.numel + (0 if a.fresh else 2 * form.numel))
    if a.data is None or b.data is None:
        return Bundle(form, None)
    data = a.data
    if not a.fresh or a.form.flat != flat or not _dense(data):
        data = data.expand(form.sizes).clone(memory_format=torch.contiguous_format)
    write(data, form, b, add=True)
    return a.made(form, data)


def _dense(data: Tensor) -> bool:
    return data.is_contiguous()


def _same_dims(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """Dims that differ only by links of ``b`` (or ``a``) where the other one is free, atom by atom."""
    for d in range(len(a.form.dims)):
        a, b = _same_atoms(a, b, d)
    shared = {key for key in a.form.links.keys() & b.form.links.keys() if a.form.links[key] == b.form.links[key]}
    a_more = a.form.links.keys() - shared
    b_more = b.form.links.keys() - shared
    if a_more and b_more:
        if a.form.numel < b.form.numel:
            a = unlink(a, a_more)
        else:
            b = unlink(b, b_more)
        return _same_dims(a, b) if a.form.links.keys() & b.form.links.keys() - shared else (a, b)
    return a, b


def _same_atoms(a: Bundle, b: Bundle, d: int) -> tuple[Bundle, Bundle]:
    """One dimension of both, split at the same places; windows that differ are stored in full."""
    position = 0
    while position < max(len(a.form.dims[d]), len(b.form.dims[d])):
        if position >= min(len(a.form.dims[d]), len(b.form.dims[d])):
            return merged(a, d), merged(b, d)
        x, y = a.form.dims[d][position], b.form.dims[d][position]
        if isinstance(x, Link) and isinstance(y, Link) and x != y:
            if x.key == y.key and replace(x, clean=y.clean) == y:
                a, b = cleaned(a), cleaned(b)
                continue
            if x.key == y.key and x.size == y.size and x.stride == y.stride:
                low = min(x.offset, y.offset)
                width = max(x.offset + x.width, y.offset + y.width) - low
                if width <= _WIDE * x.size:
                    a, b = grown(cleaned(a), d, position, low, width), grown(cleaned(b), d, position, low, width)
                    continue
            if x.size == y.size or not (a.form.plain(x) and b.form.plain(y)):
                a, b = unlink(a, [x.key]), unlink(b, [y.key])
                continue
        if x.size == y.size:
            position += 1
            continue
        if x.size > y.size:
            a, ok = _cut(a, d, position, y.size)
        else:
            b, ok = _cut(b, d, position, x.size)
        if not ok:
            return merged(a, d), merged(b, d)
    return a, b


def grown(bundle: Bundle, d: int, a: int, offset: int, width: int) -> Bundle:
    """A window made wider, with zeros."""
    old, form = bundle.form.dims[d][a], bundle.form
    assert isinstance(old, Link)
    if (old.offset, old.width) == (offset, width):
        return bundle
    new = replace(old, offset=offset, width=width)
    wide = form.with_dim(d, tuple(new if x is old else x for x in form.dims[d]))
    meter.move(form.numel + wide.numel)
    data = bundle.data
    if data is None:
        return Bundle(wide, None)
    if old.width == 1:
        data = arranged(data, form.layout, wide.layout)
    axis = wide.layout.index((d, a))
    pads = [0, 0] * (data.dim() - 1 - axis) + [old.offset - offset, offset + width - old.offset - old.width]
    return bundle.made(wide, torch.constant_pad_nd(data, pads))


def _cut(bundle: Bundle, d: int, a: int, high: int) -> tuple[Bundle, bool]:
    """Split an atom so that its first part has size ``high``."""
    atom = bundle.form.dims[d][a]
    if atom.size % high:
        return bundle, False
    if not bundle.form.plain(atom):
        assert isinstance(atom, Link)
        bundle = unlink(bundle, [atom.key])
    return split_atom(bundle, d, a, atom.size // high), True


def ungraded(bundle: Bundle) -> Bundle:
    """Only links one to one with whole ends are left."""
    form = bundle.form
    bundle = unlink(bundle, [key for key, (_, _, atom) in form.links.items() if not form.plain(atom)])
    return widened(bundle, tuple(replace(e, start=0, size=e.full) for e in bundle.form.ends))


def transposed(bundle: Bundle, shape: tuple[int, ...]) -> Bundle:
    """Ends and dims exchanged.

    Args:
        bundle: J as columns or as rows.
        shape: of the activation that the ends belong to.
    """
    bundle = ungraded(without_ones(bundle))
    form = bundle.form
    place: dict[Label, Label] = {}
    ends: list[End] = []
    renamed: dict[Key, Key] = {}
    for d, atoms in enumerate(form.dims):
        stride = math.prod(x.size for x in atoms)
        for a, atom in enumerate(atoms):
            stride //= atom.size
            ends.append(End((d, stride), atom.size))
            if isinstance(atom, Link):
                renamed[atom.key] = (d, stride)
                place[(-1, d, stride)] = (-1, *atom.key)
            else:
                place[(-1, d, stride)] = (d, a)
    dims: list[list[Atom]] = [[] for _ in shape]
    for end in form.ends:
        d = end.key[0]
        if end.key in renamed:
            dims[d].append(Link(renamed[end.key], end.size))
        else:
            place[(d, len(dims[d]))] = (-1, *end.key)
            dims[d].append(Free(end.size))
    new = Form(tuple(ends), tuple(map(tuple, dims)), frozenset(renamed[k] for k in form.flat))
    if bundle.data is None:
        return Bundle(new, None)
    return bundle.made(new, bundle.data.permute([form.layout.index(place[x]) for x in new.layout]), False)


def product(rows: Bundle, columns: Bundle, shape: tuple[int, ...]) -> Bundle:
    """J of two stretches that meet at one activation.

    Args:
        rows: ends are the target, dims the meeting activation.
        columns: ends are the source, dims the meeting activation.
        shape: of the source.

    Returns:
        Ends are the target, dims the source.
    """
    rows, columns = ungraded(without_ones(rows)), ungraded(without_ones(columns))
    for d in range(len(rows.form.dims)):
        rows, columns = _same_atoms_split(rows, columns, d)
    r, c = rows.form, columns.form
    la: list[Label] = list(r.layout)
    lb: list[Label] = [(-2, *x[1:]) if x[0] == -1 else x for x in c.layout]
    shared: dict[Key, Key] = {}  # source end → target end
    for d, atoms in enumerate(r.dims):
        for a, atom in enumerate(atoms):
            other = c.dims[d][a]
            if isinstance(other, Link) and isinstance(atom, Link):
                lb[lb.index((-2, *other.key))] = (-1, *atom.key)
                shared[other.key] = atom.key
            elif isinstance(atom, Link):
                lb[lb.index((d, a))] = (-1, *atom.key)
            elif isinstance(other, Link):
                la[la.index((d, a))] = (-2, *other.key)
    dims: list[list[Atom]] = [[] for _ in shape]
    source: list[Label] = []
    for end in c.ends:
        if end.key in shared:
            dims[end.key[0]].append(Link(shared[end.key], end.size))
        else:
            source.append((-2, *end.key))
            dims[end.key[0]].append(Free(end.size))
    flat = frozenset(t for s, t in shared.items() if t in r.flat and s in c.flat)
    form = Form(r.ends, tuple(map(tuple, dims)), flat)
    want: list[Label] = [x for x in form.layout if x[0] == -1]
    meter.product(_sizes(r, la), _sizes(c, lb), [*want, *source])
    if rows.data is None or columns.data is None:
        return Bundle(form, None)
    data = contract(rows.data, la, columns.data, lb, [*want, *source])
    return rows.made(form, data.expand(form.sizes))


def _sizes(form: Form, labels: list[Label]) -> dict[Label, int]:
    return dict(zip(labels, form.sizes, strict=True))


def _same_atoms_split(a: Bundle, b: Bundle, d: int) -> tuple[Bundle, Bundle]:
    position = 0
    while position < max(len(a.form.dims[d]), len(b.form.dims[d])):
        if position >= min(len(a.form.dims[d]), len(b.form.dims[d])):
            return merged(a, d), merged(b, d)
        x, y = a.form.dims[d][position], b.form.dims[d][position]
        if x.size == y.size:
            position += 1
            continue
        if x.size > y.size:
            a, ok = _cut(a, d, position, y.size)
        else:
            b, ok = _cut(b, d, position, x.size)
        if not ok:
            return merged(a, d), merged(b, d)
    return a, b


def matrix(bundle: Bundle, out: Tensor | None = None) -> Tensor:
    """``(batch, n_ends, n_dims)``, the caller's own; the first dimension of both is the samples.

    Args:
        bundle: J as rows; of ends in ranges only those that it covers.
        out: where to put it; else it is new, or the bundle's own data.

    Raises:
        ValueError: samples are not linked with samples.
    """
    old = bundle.form
    if not all(isinstance(x, Link) and x.key[0] == 0 and old.plain(x) for x in old.dims[0]):
        raise ValueError("samples mix")
    kept = {x.key for x in old.dims[0] if isinstance(x, Link)}
    dims = (old.dims[0], *(tuple(Free(x.size) for x in atoms) for atoms in old.dims[1:]))
    form = Form(old.ends, dims)
    n_batch = math.prod(e.size for e in old.ends if e.key in kept)
    n_out = math.prod(e.size for e in old.ends if e.key not in kept)
    shape = (n_batch, n_out, math.prod(old.shape[1:]))
    data = bundle.data
    assert data is not None
    plain = old.links.keys() == kept
    if out is None and plain and bundle.fresh and data.is_contiguous() and data.shape == form.sizes:
        if data.untyped_storage().nbytes() == data.nbytes:
            return data.view(shape)
    if out is None:
        out = data.new_empty(shape)
    place = _split_into(out, form, len(kept))
    if plain:
        place.copy_(data.expand(form.sizes))
    else:
        out.zero_()
        write(place, form, bundle)
    return out


def _split_into(out: Tensor, form: Form, batch_axes: int) -> Tensor:
    """``(batch, rows, columns)`` seen with an axis for each of the form's."""
    ends = sum(label[0] == -1 for label in form.layout)
    groups = (form.sizes[:batch_axes], form.sizes[batch_axes:ends], form.sizes[ends:])
    sizes: list[int] = []
    strides: list[int] = []
    for group, step in zip(groups, out.stride(), strict=True):
        for position, n in enumerate(group):
            sizes.append(n)
            strides.append(step * math.prod(group[position + 1 :]))
    return out.as_strided(sizes, strides, out.storage_offset())
