"""Two blocks with axes that agree: what a sum and a product need before numbers meet.

Blocks over the same activations may have their axes split at different places, cover different ranges of the seed, or
store a dimension banded here and dense there. ``aligned`` makes the seeds agree, ``same_axes`` the primals.

Example: rows with pixels as ``(16,)`` and rows with them as ``(8, 2)``, after a reshape. The first get their axis
split, as cells of 2: a dense axis simply, a diagonal together with its seed axis, a window as a window of whole cells
(``windows.in_cells``) or, where that would be wide, stored in full. Then the seeds differ, are split too, and so on
until nothing changes: ``algebra.total`` has the loop.

Invariants
    * blocks only ever get more axes, larger ranges, wider windows or more dense axes, so that this ends;
    * where it is enough to store the banded axes of one of the two in full, it is the one with fewer elements.
"""

from __future__ import annotations

from dataclasses import replace

from jaccli.graph.layout.block import Block, densify, merged, split_axis_factor, split_seed_axis, widened, zero_padded
from jaccli.graph.layout.layout import BandedAxis, SeedAxis
from jaccli.graph.layout.windows import WIDE, grown, in_cells, split_window


def aligned(a: Block, b: Block) -> tuple[Block, Block]:
    """Both with seed axes that are split at the same places and cover the same ranges."""
    a = _split_as(a, b)
    b = _split_as(b, a)
    seed_axes = covering(a, b)
    return widened(a, seed_axes), widened(b, seed_axes)


def covering(a: Block, b: Block) -> tuple[SeedAxis, ...]:
    """Seed axes whose ranges cover those of both."""
    return tuple(x if x == y else x.covering(y) for x, y in zip(a.layout.seed_axes, b.layout.seed_axes, strict=True))


def _split_as(a: Block, b: Block) -> Block:
    """``a`` with its seed axes split where those of ``b`` are."""
    for other in b.layout.seed_axes:
        if other.key in a.layout.seed_axis:
            continue
        dim, stride = other.key
        for seed in a.layout.seed_axes:
            if seed.key[0] == dim and seed.key[1] < stride < seed.key[1] * seed.full:
                # One split at a time: it changes the keys that the next one is looked up by.
                return _split_as(_split(a, seed, stride // seed.key[1]), b)
    return a


def _split(block: Block, seed: SeedAxis, low: int) -> Block:
    """A seed axis as ``high x low``, with what is tied to it; a range grows to whole groups of ``low``."""
    if not seed.divisible(low):
        # Down and up to multiples of ``low``; seed elements that this adds are zero.
        start, stop = seed.start // low * low, -(-(seed.start + seed.size) // low) * low
        wide = replace(seed, start=start, size=stop - start)
        block = widened(block, tuple(wide if e is seed else e for e in block.layout.seed_axes))
    banded = block.layout.banded
    if seed.key in banded and not block.layout.plain(banded[seed.key][2]):
        return split_window(block, seed.key, low)
    return split_seed_axis(block, seed.key, low)


def containing(a: Block, b: Block) -> tuple[Block, Block]:
    """``a`` with its windows made as wide as those of ``b``."""
    for key in a.layout.banded.keys() & b.layout.banded.keys():
        (d, i, x), (_, _, y) = a.layout.banded[key], b.layout.banded[key]
        if _alike(x, y):
            low, high = min(x.offset, y.offset), max(x.offset + x.width, y.offset + y.width)
            a = grown(a, d, i, low, high - low)
    return a, b


def same_axes(a: Block, b: Block) -> tuple[Block, Block]:
    """Both with the same axis factors, except that one may have banded axes where the other has dense ones."""
    for d in range(len(a.layout.primal_axes)):
        a, b = same_axis_factors(a, b, d)
    x, y = a.layout.banded, b.layout.banded
    shared = {key for key in x.keys() & y.keys() if x[key][:2] == y[key][:2] and _alike(x[key][2], y[key][2])}
    a_more, b_more = x.keys() - shared, y.keys() - shared
    if a_more and b_more:
        if a.layout.numel < b.layout.numel:
            a = densify(a, a_more)
        else:
            b = densify(b, b_more)
        return same_axes(a, b) if a.layout.banded.keys() & b.layout.banded.keys() - shared else (a, b)
    return a, b


def same_axis_factors(a: Block, b: Block, d: int, bands: bool = True) -> tuple[Block, Block]:
    """One dimension of both split at the same places; with ``bands``, banded axes that disagree made equal too."""
    position = 0
    while position < max(len(a.layout.primal_axes[d]), len(b.layout.primal_axes[d])):
        # One has axis factors left and the other none: no common cut is left either.
        if position >= min(len(a.layout.primal_axes[d]), len(b.layout.primal_axes[d])):
            return merged(a, d), merged(b, d)
        x, y = a.layout.primal_axes[d][position], b.layout.primal_axes[d][position]
        if bands and isinstance(x, BandedAxis) and isinstance(y, BandedAxis) and not _alike(x, y):
            # The same position is looked at again: what was changed may differ in size still.
            changed = _same_bands(a, b, x, y)
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


def _alike(x: BandedAxis, y: BandedAxis) -> bool:
    """Whether two banded axes differ by their windows at most, and a window that holds both is small."""
    # The window that holds both.
    width = max(x.offset + x.width, y.offset + y.width) - min(x.offset, y.offset)
    near = width == max(x.width, y.width) or width <= WIDE * x.size
    return near and x.zero_padded and y.zero_padded and replace(x, offset=y.offset, width=y.width) == y


def _same_bands(a: Block, b: Block, x: BandedAxis, y: BandedAxis) -> tuple[Block, Block] | None:
    """Two banded axes that differ, as padded ones or stored in full; None where splitting has to come first."""
    if x.size != y.size:
        return None
    if x.key == y.key and x.stride == y.stride and not (x.zero_padded and y.zero_padded):
        return zero_padded(a), zero_padded(b)
    return densify(a, [x.key]), densify(b, [y.key])


def _cut(block: Block, d: int, a: int, high: int) -> tuple[Block, bool]:
    """Split an axis factor so that its first part has size ``high``; False where it does not divide."""
    axis = block.layout.primal_axes[d][a]
    if axis.size % high:
        return block, False
    if isinstance(axis, BandedAxis) and not block.layout.plain(axis):
        cells = in_cells(block, d, a, axis.size // high)
        if cells is not None:
            return cells, True
        block = densify(block, [axis.key])
    return split_axis_factor(block, d, a, axis.size // high), True
