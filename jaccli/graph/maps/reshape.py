"""Linear maps that give an activation another shape: views, broadcasts and their transposes, sums."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaccli.graph.layout.block import Bundle, Factor, cleaned, solid, split_atom, unlink, without_ones
from jaccli.graph.layout.contraction import arranged
from jaccli.graph.layout.cost import meter
from jaccli.graph.layout.layout import Atom, Form, Free, Label, Link
from jaccli.graph.layout.windows import in_cells
from jaccli.graph.maps.base import Shape


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
        if bundle.outer is not None:
            return self._regrouped(bundle, bundle.outer) or self.apply(solid(bundle))
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
                if not bundle.form.plain(atom) and atom.size > need:
                    assert isinstance(atom, Link)
                    bundle = in_cells(bundle, d, a, atom.size // need) or unlink(bundle, [atom.key])
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

    def _regrouped(self, bundle: Bundle, outer: tuple[Factor, Factor]) -> Bundle | None:
        """The same axes in other dimensions; None where axes have to be split or joined."""
        old = bundle.form
        new = self.apply(Bundle(old, None)).form
        places = [[(d, a) for d, atoms in enumerate(form.dims) for a in range(len(atoms))] for form in (old, new)]
        atoms = [[atom for each in form.dims for atom in each] for form in (old, new)]
        if atoms[0] != atoms[1] or old.ends != new.ends or old.flat != new.flat:
            return None
        names: dict[Label, Label] = dict(zip(*places, strict=True))
        a, b = (factor.relabelled(lambda x: names.get(x, x)) for factor in outer)
        return Bundle(new, None, outer=(a, b))

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
        return bundle.regarded(form)


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
        if bundle.outer is not None:
            place = self.T.order
            a, b = (f.relabelled(lambda x: x if x[0] == -1 else (place[x[0]], x[1])) for f in bundle.outer)
            return Bundle(form, None, outer=(a, b))
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
