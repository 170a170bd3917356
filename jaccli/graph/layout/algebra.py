"""The algebra of blocks: sums, transposes, products, and blocks as matrices.

Two blocks of one Jacobian may be stored differently: one banded, one dense; one over all of its seed, one over a
range; with axes split at different places. ``total`` and ``product`` bring both to axes that agree, with as few
elements stored as possible, and then do one operation of torch.

Sum (``total``), as in a residual connection y = x + f(x)
    1. two blocks that differ in the range of one seed axis only are put side by side (``_joined``);
    2. seed axes are split at the same places and cover the same ranges (``aligned``);
    3. axis factors are split at the same places; banded axes that disagree are padded, given a common window, or
       stored in full, on the side where that costs less (``same_axes``);
    4. then the axes of one block contain those of the other: its data is added into the diagonal or the windows of
       the larger one, in place where that is owned.

    With f a linear layer on each of 2 tokens (``layout``'s example with 4 = 3 features), x has layout
    ``(banded, banded)``, data (1, 1), and f has ``(banded, dense)``, data (2, 3, 3): the 1 is added to the diagonal
    of each 3 x 3 matrix. With f a convolution over tokens, a window of 3, it is added to the middle of each window.

Product (``product``), where rows of the later part meet columns of the earlier part
    J[target, source] = Σ_m rows[target, m] columns[source, m]. Both live on the middle activation. An axis that is
    dense in both is summed over; one that is diagonal on one side takes the label of its seed axis instead, and no
    sum is needed; diagonal on both sides, source and target are tied to each other, and the result is banded. The
    per-token layer times another one is ``(2, 4, m) · (2, m, 3) → (2, 4, 3)``: a batched product with a batch of 2
    tokens. Windows are stored in full first (``without_windows``).

Transposing (``transposed``) exchanges seed and primal: each axis factor becomes a seed axis, and each seed axis an
axis factor. No number moves, only the order of the data axes changes.

Invariants
    * the result is the sum, product or transpose as a matrix, whatever the layouts; these decide the cost alone;
    * results cover all seed elements that one of the operands covers;
    * operands are left as they are, but for ``total``, which may write into the data of an operand that owns it;
    * nothing here looks at numbers: layouts of results, and the path taken, depend on layouts only.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.graph.layout.alignment import aligned, containing, covering, same_axes, same_axis_factors
from jaccli.graph.layout.block import Block, densify, whole, without_ones
from jaccli.graph.layout.contraction import LabelledTensor
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.dense_write import write
from jaccli.graph.layout.layout import AxisFactor, BandedAxis, DenseAxis, Key, Label, Layout, SeedAxis

if TYPE_CHECKING:
    from jaxtyping import Shaped


def total(a: Block, b: Block) -> Block:
    """The sum of two blocks over the same activation and of the same seed.

    Args:
        a: its data may be written into where it is owned.
        b: likewise.
    """
    a, b = without_ones(a), without_ones(b)
    # Step 1 of the docstring; then 2 and 3, until the axes agree, and 4.
    joined = _joined(a, b)
    if joined is not None:
        return joined
    a, b = aligned(a, b)
    while a.layout.primal_axes != b.layout.primal_axes:
        before = (a.layout, b.layout)
        a, b = aligned(*same_axes(a, b))
        if (a.layout, b.layout) == before:  # they differ by banded axes of one of them alone
            break
    # ``a`` becomes the block that is written into: the one with fewer banded axes, which has room for the elements of
    # the other; among equals the larger one.
    if (len(a.layout.banded), -a.layout.numel) > (len(b.layout.banded), -b.layout.numel):
        a, b = b, a
    a, b = containing(a, b)
    if a.layout.primal_axes == b.layout.primal_axes:
        return _sum_of_equals(a, b)
    return _sum_into(a, b)


def _sum_into(a: Block, b: Block) -> Block:
    """The sum, where ``b`` has the banded axes of ``a`` and more: written into ``a`` or a copy of it."""
    keys = frozenset(b.layout.banded) - frozenset(a.layout.banded)
    layout = replace(a.layout, broadcast=a.layout.broadcast & (b.layout.broadcast - keys))
    if isinstance(a.data, CostModel):
        a.data.move(3 * b.layout.numel + (0 if a.owned else 2 * layout.numel))
        return Block(layout, a.data)
    data = a.tensor
    # Data that is expanded (stride 0) has one number for several elements, and a sum in place would add to it several
    # times.
    if not a.owned or a.layout.broadcast != layout.broadcast or 0 in data.stride():
        data = data.expand(layout.sizes).clone(memory_format=torch.contiguous_format)
    write(data, layout, b.tensor, b.layout, add=True)
    return Block.of(layout, data)


def _sum_of_equals(a: Block, b: Block) -> Block:
    """The sum of two blocks with the same axes."""
    layout = replace(a.layout, broadcast=a.layout.broadcast & b.layout.broadcast)

    def compute(data: Tensor) -> Tensor:
        # In place only where the sum is as large as the data: a broadcast axis of size 1 may become a full one.
        if a.owned and a.layout.broadcast == layout.broadcast:
            return data.add_(b.tensor)
        if b.owned and b.layout.broadcast == layout.broadcast:
            return b.tensor.add_(data)
        return data + b.tensor

    return a.step(layout, compute, 3 * layout.numel)


def _joined(a: Block, b: Block) -> Block | None:
    """The sum of blocks that differ in the range of one untied seed axis alone, each written once; else None."""
    x, y = a.layout, b.layout
    keys = [e.key for e, f in zip(x.seed_axes, y.seed_axes, strict=False) if e != f]
    if (
        x.primal_axes != y.primal_axes
        or [e.key for e in x.seed_axes] != [e.key for e in y.seed_axes]
        or len(keys) != 1
        or keys[0] in x.banded
    ):
        return None
    layout = Layout(covering(a, b), x.primal_axes, x.broadcast & y.broadcast)
    if x.seed_axis[keys[0]].start > y.seed_axis[keys[0]].start:
        a, b = b, a
    first, second = a.layout.seed_axis[keys[0]], b.layout.seed_axis[keys[0]]

    def compute(data: Tensor) -> Tensor:
        low = data.expand(replace(a.layout, broadcast=layout.broadcast).sizes)
        high = b.tensor.expand(replace(b.layout, broadcast=layout.broadcast).sizes)
        axis = layout.labels.index((-1, *keys[0]))
        if first.start + first.size == second.start:
            return torch.cat([low, high], axis)
        out = low.new_zeros(layout.sizes)
        out.narrow(axis, 0, first.size).copy_(low)
        out.narrow(axis, second.start - first.start, second.size).add_(high)
        return out

    return a.step(layout, compute, layout.numel + 2 * (x.numel + y.numel), layout.numel)


def without_windows(block: Block) -> Block:
    """The block over all of its seed, with banded axes that are whole diagonals only."""
    banded = block.layout.banded.items()
    return whole(densify(block, [key for key, (_, _, axis) in banded if not block.layout.plain(axis)]))


def transposed(block: Block, shape: tuple[int, ...]) -> Block:
    """Seed and primal exchanged.

    Args:
        block: J as columns or as rows.
        shape: of the activation that is the seed.

    Returns:
        J as rows or as columns; a view of the data.
    """
    block = without_windows(without_ones(block))
    old = block.layout
    place: dict[Label, Label] = {}  # label in the result → label in ``old``
    seed_axes: list[SeedAxis] = []
    key_of: dict[Key, Key] = {}  # of a banded axis: the old key → the new one
    for d, axes in enumerate(old.primal_axes):
        stride = math.prod(x.size for x in axes)
        for a, axis in enumerate(axes):
            # The stride of an axis factor in its dimension is the product of the sizes of those after it.
            stride //= axis.size
            seed_axes.append(SeedAxis((d, stride), axis.size))
            if isinstance(axis, BandedAxis):
                key_of[axis.key] = (d, stride)
            place[(-1, d, stride)] = (-1, *axis.key) if isinstance(axis, BandedAxis) else (d, a)
    primal_axes: list[list[AxisFactor]] = [[] for _ in shape]
    for seed in old.seed_axes:
        d = seed.key[0]
        if seed.key not in key_of:
            place[(d, len(primal_axes[d]))] = (-1, *seed.key)
        primal_axes[d].append(BandedAxis(key_of[seed.key], seed.size) if seed.key in key_of else DenseAxis(seed.size))
    layout = Layout(tuple(seed_axes), tuple(map(tuple, primal_axes)), frozenset(key_of[k] for k in old.broadcast))
    order = [old.labels.index(place[x]) for x in layout.labels]
    return block.view(layout, lambda data: data.permute(order), shared=True)


def product(rows: Block, columns: Block, shape: tuple[int, ...]) -> Block:
    """J of two parts of a network that meet at one activation.

    Args:
        rows: J of the later part: the seed is the target, the primal the activation between.
        columns: J of the earlier part: the seed is the source, the primal the activation between.
        shape: of the source.

    Returns:
        J of both: the seed is the target, the primal the source.
    """
    rows, columns = without_windows(without_ones(rows)), without_windows(without_ones(columns))
    for d in range(len(rows.layout.primal_axes)):
        # Banded axes may differ: each is named by its own seed axis, and no sum is needed there.
        rows, columns = same_axis_factors(rows, columns, d, bands=False)
    r, c = rows.layout, columns.layout
    a_labels, b_labels, tied = _product_labels(r, c)
    primal_axes: list[list[AxisFactor]] = [[] for _ in shape]
    for seed in c.seed_axes:
        axis = BandedAxis(tied[seed.key], seed.size) if seed.key in tied else DenseAxis(seed.size)
        primal_axes[seed.key[0]].append(axis)
    broadcast = frozenset(t for s, t in tied.items() if t in r.broadcast and s in c.broadcast)
    layout = Layout(r.seed_axes, tuple(map(tuple, primal_axes)), broadcast)
    out: list[Label] = [x for x in layout.labels if x[0] == -1]
    out += [(-2, *seed.key) for seed in c.seed_axes if seed.key not in tied]
    a, b = _labelled(rows, a_labels), _labelled(columns, b_labels)
    return Block.repeated(layout, a.times(b, out))


def _product_labels(r: Layout, c: Layout) -> tuple[list[Label], list[Label], dict[Key, Key]]:
    """Labels of the data of rows and columns so that axes with one name are multiplied.

    Seed axes of the columns are ``(-2, *key)``, unless they are tied to a seed axis of the rows.

    Returns:
        Labels of rows, of columns, and key of a source axis → key of the target axis that it is tied to.
    """
    la: list[Label] = list(r.labels)
    lb: list[Label] = [(-2, *x[1:]) if x[0] == -1 else x for x in c.labels]
    tied: dict[Key, Key] = {}
    for d, axes in enumerate(r.primal_axes):
        for a, (x, y) in enumerate(zip(axes, c.primal_axes[d], strict=True)):
            if isinstance(x, BandedAxis) and isinstance(y, BandedAxis):
                lb[lb.index((-2, *y.key))] = (-1, *x.key)
                tied[y.key] = x.key
            elif isinstance(x, BandedAxis):
                lb[lb.index((d, a))] = (-1, *x.key)
            elif isinstance(y, BandedAxis):
                la[la.index((d, a))] = (-2, *y.key)
    return la, lb, tied


def _labelled(block: Block, labels: list[Label]) -> LabelledTensor:
    """The data of a block with other labels."""
    data = block.data if isinstance(block.data, CostModel) else block.tensor
    return LabelledTensor(dict(zip(labels, block.layout.sizes, strict=True)), data)


def matrix(
    block: Block, out: Shaped[Tensor, "batch n_seed n_primal"] | None = None
) -> Shaped[Tensor, "batch n_seed n_primal"]:
    """J as a tensor ``(batch, n_seed, n_primal)``, the caller's own; the first dimension of both is the samples.

    Args:
        block: J as rows; of seed axes in ranges only those elements that it covers.
        out: where to write J; else the result is new, or the block's own data.

    Raises:
        ValueError: samples are not tied to samples.
    """
    old, data = block.layout, block.tensor
    if not all(isinstance(x, BandedAxis) and x.key[0] == 0 and old.plain(x) for x in old.primal_axes[0]):
        raise ValueError("samples mix")
    samples = set(old.banded_keys(0))
    dense = (tuple(DenseAxis(x.size) for x in axes) for axes in old.primal_axes[1:])
    layout = Layout(old.seed_axes, (old.primal_axes[0], *dense))
    n_batch = math.prod(e.size for e in old.seed_axes if e.key in samples)
    n_seed = math.prod(e.size for e in old.seed_axes if e.key not in samples)
    shape = (n_batch, n_seed, math.prod(old.shape[1:]))
    stored_so = old.banded.keys() == samples
    # The caller keeps the result: it must not hold memory of a larger buffer, nor share it with another block.
    can_be_handed_over = stored_so and block.owned and data.is_contiguous() and data.shape == layout.sizes
    if out is None and can_be_handed_over and data.untyped_storage().nbytes() == data.nbytes:
        return data.view(shape)
    if out is None:
        out = data.new_empty(shape)
    place = out.view(layout.sizes)
    if stored_so:
        place.copy_(data.expand(layout.sizes))
    else:
        out.zero_()
        write(place, layout, data, old)
    return out
