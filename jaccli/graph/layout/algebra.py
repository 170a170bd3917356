"""The algebra of bundles: add, transpose, multiply, and lay out as matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from jaccli.graph.layout.block import (
    Bundle,
    cleaned,
    merged,
    split_atom,
    split_end,
    unlink,
    whole,
    widened,
    without_ones,
    write,
)
from jaccli.graph.layout.contraction import contract
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import Atom, End, Form, Free, Key, Label, Link
from jaccli.graph.layout.windows import WIDE, grown, in_cells, split_window


def aligned(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """Both with the same ends, split and ranged alike."""
    a, b = _same_splits(a, b)
    b, a = _same_splits(b, a)
    ends = _reach(a, b)
    return widened(a, ends), widened(b, ends)


def _reach(a: Bundle, b: Bundle) -> tuple[End, ...]:
    """Ends whose ranges cover those of both."""
    return tuple(
        replace(x, start=min(x.start, y.start), size=max(x.start + x.size, y.start + y.size) - min(x.start, y.start))
        for x, y in zip(a.form.ends, b.form.ends, strict=True)
    )


def _joined(a: Bundle, b: Bundle) -> Bundle | None:
    """The sum of bundles that differ in the range of one free end alone, each written once; None for others."""
    x, y = a.form, b.form
    keys = [e.key for e, f in zip(x.ends, y.ends, strict=False) if e != f]
    if x.dims != y.dims or [e.key for e in x.ends] != [e.key for e in y.ends] or len(keys) != 1 or keys[0] in x.links:
        return None
    new = Form(_reach(a, b), x.dims, x.flat & y.flat)
    meter.move(new.numel + 2 * (x.numel + y.numel), fresh=new.numel)
    if x.end[keys[0]].start > y.end[keys[0]].start:
        x, y, a, b = y, x, b, a
    if a.data is None or b.data is None:
        return Bundle(new, None)
    low, high = a.data.expand(replace(x, flat=new.flat).sizes), b.data.expand(replace(y, flat=new.flat).sizes)
    first, second, axis = x.end[keys[0]], y.end[keys[0]], new.layout.index((-1, *keys[0]))
    if first.start + first.size == second.start:
        return a.made(new, torch.cat([low, high], axis))
    out = low.new_zeros(new.sizes)
    out.narrow(axis, 0, first.size).copy_(low)
    out.narrow(axis, second.start - first.start, second.size).add_(high)
    return a.made(new, out)


def _same_splits(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """``a`` with its ends split where those of ``b`` are."""
    for end in b.form.ends:
        if end.key in a.form.end:
            continue
        dim, stride = end.key
        for mine in a.form.ends:
            if mine.key[0] == dim and mine.key[1] < stride < mine.key[1] * mine.full:
                return _same_splits(_split(a, mine, stride // mine.key[1]), b)
    return a, b


def _split(bundle: Bundle, end: End, low: int) -> Bundle:
    """An end in two, with what is linked to it."""
    if not end.divisible(low):  # of a range the whole groups around it
        start, stop = end.start // low * low, -(-(end.start + end.size) // low) * low
        wide = replace(end, start=start, size=stop - start)
        bundle = widened(bundle, tuple(wide if e is end else e for e in bundle.form.ends))
    linked = end.key in bundle.form.links
    if linked and not bundle.form.plain(bundle.form.links[end.key][2]):
        return split_window(bundle, end.key, low)
    return split_end(bundle, end.key, low)


def total(a: Bundle, b: Bundle) -> Bundle:
    """The sum of two bundles over the same activation."""
    a, b = without_ones(a), without_ones(b)
    joined = _joined(a, b)
    if joined is not None:
        return joined
    a, b = aligned(a, b)
    while a.form.dims != b.form.dims:
        before = (a.form, b.form)
        a, b = _same_dims(a, b)
        a, b = aligned(a, b)
        if (a.form, b.form) == before:  # nothing but links of one is left between them
            break
    if (len(a.form.links), -a.form.numel) > (len(b.form.links), -b.form.numel):
        a, b = b, a
    a, b = _containing(a, b)
    if a.form.dims == b.form.dims:
        return _added(a, b)
    keys = frozenset(b.form.links) - frozenset(a.form.links)
    flat = a.form.flat & (b.form.flat - keys)
    form = replace(a.form, flat=flat)
    meter.move(3 * b.form.numel + (0 if a.fresh else 2 * form.numel))
    if a.data is None or b.data is None:
        return Bundle(form, None)
    data = a.data
    if not a.fresh or a.form.flat != flat or 0 in data.stride():
        data = data.expand(form.sizes).clone(memory_format=torch.contiguous_format)
    write(data, form, b, add=True)
    return a.made(form, data)


def _added(a: Bundle, b: Bundle) -> Bundle:
    """The sum of two bundles that lie in memory alike."""
    flat = a.form.flat & b.form.flat
    form = replace(a.form, flat=flat)
    meter.move(3 * form.numel)
    if a.data is None or b.data is None:
        return Bundle(form, None)
    if a.fresh and a.form.flat == flat:
        return a.made(form, a.data.add_(b.data))
    if b.fresh and b.form.flat == flat:
        return a.made(form, b.data.add_(a.data))
    return a.made(form, a.data + b.data)


def _containing(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """``a`` with its windows made as wide as those of ``b``."""
    for key in a.form.links.keys() & b.form.links.keys():
        (d, i, x), (_, _, y) = a.form.links[key], b.form.links[key]
        if not _alike(x, y):
            continue
        low, high = min(x.offset, y.offset), max(x.offset + x.width, y.offset + y.width)
        a = grown(a, d, i, low, high - low)
    return a, b


def _same_dims(a: Bundle, b: Bundle) -> tuple[Bundle, Bundle]:
    """Dims that differ only by links of ``b`` (or ``a``) where the other one is free, atom by atom."""
    for d in range(len(a.form.dims)):
        a, b = _same_atoms(a, b, d)
    shared = {
        key
        for key in a.form.links.keys() & b.form.links.keys()
        if a.form.links[key][:2] == b.form.links[key][:2] and _alike(a.form.links[key][2], b.form.links[key][2])
    }
    a_more = a.form.links.keys() - shared
    b_more = b.form.links.keys() - shared
    if a_more and b_more:
        if a.form.numel < b.form.numel:
            a = unlink(a, a_more)
        else:
            b = unlink(b, b_more)
        return _same_dims(a, b) if a.form.links.keys() & b.form.links.keys() - shared else (a, b)
    return a, b


def _same_atoms(a: Bundle, b: Bundle, d: int, links: bool = True) -> tuple[Bundle, Bundle]:
    """One dimension of both, split at the same places; with ``links`` its links made equal too."""
    position = 0
    while position < max(len(a.form.dims[d]), len(b.form.dims[d])):
        if position >= min(len(a.form.dims[d]), len(b.form.dims[d])):
            return merged(a, d), merged(b, d)
        x, y = a.form.dims[d][position], b.form.dims[d][position]
        if links and isinstance(x, Link) and isinstance(y, Link) and not _alike(x, y):
            changed = _same_links(a, b, d, position)
            if changed is not None:
                a, b = changed
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


def _alike(x: Link, y: Link) -> bool:
    """Whether two links differ by their windows at most, and one of both is small and can hold them."""
    width = max(x.offset + x.width, y.offset + y.width) - min(x.offset, y.offset)
    near = width == max(x.width, y.width) or width <= WIDE * x.size
    return near and x.clean and y.clean and replace(x, offset=y.offset, width=y.width) == y


def _same_links(a: Bundle, b: Bundle, d: int, position: int) -> tuple[Bundle, Bundle] | None:
    """Two links that differ, as near windows made one or stored in full; None where splitting has to come first."""
    x, y = a.form.dims[d][position], b.form.dims[d][position]
    assert isinstance(x, Link)
    assert isinstance(y, Link)
    if x.key == y.key and replace(x, clean=y.clean) == y:
        return cleaned(a), cleaned(b)
    if x.key == y.key and x.size == y.size and x.stride == y.stride and not (x.clean and y.clean):
        return cleaned(a), cleaned(b)
    if x.size == y.size:
        return unlink(a, [x.key]), unlink(b, [y.key])
    return None


def _cut(bundle: Bundle, d: int, a: int, high: int) -> tuple[Bundle, bool]:
    """Split an atom so that its first part has size ``high``."""
    atom = bundle.form.dims[d][a]
    if atom.size % high:
        return bundle, False
    if not bundle.form.plain(atom):
        assert isinstance(atom, Link)
        cells = in_cells(bundle, d, a, atom.size // high)
        if cells is not None:
            return cells, True
        bundle = unlink(bundle, [atom.key])
    return split_atom(bundle, d, a, atom.size // high), True


def ungraded(bundle: Bundle) -> Bundle:
    """Only links one to one with whole ends are left."""
    form = bundle.form
    bundle = unlink(bundle, [key for key, (_, _, atom) in form.links.items() if not form.plain(atom)])
    return whole(bundle)


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
        rows, columns = _same_atoms(rows, columns, d, links=False)
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
    own = plain and bundle.fresh and data.is_contiguous() and data.shape == form.sizes
    if out is None and own and data.untyped_storage().nbytes() == data.nbytes:
        return data.view(shape)
    if out is None:
        out = data.new_empty(shape)
    place = out.view(form.sizes)
    if plain:
        place.copy_(data.expand(form.sizes))
    else:
        out.zero_()
        write(place, form, bundle)
    return out
