"""Blocks: vectors in a layout, with the operations that change how they are stored.

A ``Block`` is a layout and its data. The data is one of three things:

* a tensor of the layout's ``sizes``;
* a ``CostModel``: the block is *abstract*. It has a layout and no numbers; operations on it give abstract blocks and
  are charged to the model. Plans are chosen that way, see ``cost``;
* an ``OuterProduct``: two tensors whose product is put off, since a later matrix may be cheaper on one of them.

Operations are written once for numbers and dry runs. Each says three things, apart from each other: the layout of the
result, what it costs, and how the data is computed. ``Block.step`` takes all three and ``Block.view`` takes two, for
what costs nothing. They ask whether a block is abstract, and so does ``maps.base.Primitive.apply``; elsewhere only what
multiplies blocks, writes in place, or chooses between several ways asks that.

Example: pooling over the two tokens of the per-token linear layer of ``layout`` needs them in one row. The block has
data of sizes ``(2, 4, 3)``; ``densify`` stores the token axis of the primal in full::

    labels  (-1, 0, 1) seed token, (-1, 1, 1) seed feature,            (1, 0) feature     sizes (2, 4, 3)
        →   (-1, 0, 1) seed token, (-1, 1, 1) seed feature, (0, 0) token, (1, 0) feature  sizes (2, 4, 2, 3)

with zeros where the tokens differ. That reads 24 elements, writes 48 of zeros and 24 of them again, which is what the
cost model is charged with. The convolution of ``layout``, data ``(8, 3)``, becomes ``(8, 8)`` with three diagonals.

Invariants
    * a tensor has the layout's sizes; where it does not vary along an axis that is not in ``broadcast``, it is
      expanded (stride 0), and the block is not *owned*;
    * an owned block's data is read by nobody else, so that it may be written into. In a dry run ``owned`` is a guess
      on the safe side: blocks are taken as not owned, but for those that are padded, widened or reinterpreted;
    * operations return new blocks. Data is written in place by ``algebra.total`` and by ``maps.elementwise.Mul``,
      and only where it is owned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jaccli.graph.layout.contraction import LabelledTensor, arranged
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.dense_write import write
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Key, Label, Layout, SeedAxis, exchanged, identity
from jaccli.graph.layout.spread import windows_along

_ONE = DenseAxis(1)


@dataclass(frozen=True)
class OuterProduct:
    """The data of a block as two factors, labelled as its axes, which share no axis that is summed over."""

    a: LabelledTensor
    b: LabelledTensor


@dataclass(frozen=True)
class Block:
    """Vectors in a layout; see the module's docstring.

    Args:
        layout: of the data.
        data: a tensor of ``layout.sizes``; or a cost model, or a product that is put off.
        owned: nothing else reads the data, so that it may be written into.
    """

    layout: Layout
    data: Tensor | CostModel | OuterProduct
    owned: bool = False

    @classmethod
    def of(cls, layout: Layout, tensor: Tensor, owned: bool = True) -> Block:
        """A block of numbers: a tensor of shape ``(*layout.sizes)``, in memory of its own unless ``owned`` is False."""
        assert tuple(tensor.shape) == layout.sizes, (tuple(tensor.shape), layout)
        return cls(layout, tensor, owned)

    @classmethod
    def repeated(cls, layout: Layout, data: Tensor | CostModel) -> Block:
        """A new block: ``data`` of shape ``(*layout.sizes)``, or with 1 on axes along which it is repeated.

        Repeated data is expanded (stride 0), and such a block is not owned.
        """
        if isinstance(data, CostModel):
            return cls(layout, data)
        full = tuple(data.shape) == layout.sizes
        return cls.of(layout, data if full else data.expand(layout.sizes), full)

    @property
    def tensor(self) -> Tensor:
        """The data of a block of numbers, ``(*layout.sizes)``."""
        assert isinstance(self.data, Tensor)
        return self.data

    def step(
        self, layout: Layout, compute: Callable[[Tensor], Tensor], moved: float, result: int = 0, owned: bool = False
    ) -> Block:
        """A new block, computed from this one.

        Args:
            layout: of the result.
            compute: data ``(*self.layout.sizes)`` → data ``(*layout.sizes)``, in memory of its own.
            moved: elements that are read and written.
            result: elements of the result where it is large and newly allocated.
            owned: whether a dry run takes the result as owned; with numbers it always is.
        """
        if isinstance(self.data, CostModel):
            self.data.move(moved, result)
            return Block(layout, self.data, owned)
        return Block.of(layout, compute(self.tensor))

    def view(self, layout: Layout, compute: Callable[[Tensor], Tensor], shared: bool = False) -> Block:
        """The same data, or a part of it, seen otherwise: free.

        Args:
            layout: of the result.
            compute: data ``(*self.layout.sizes)`` → a view of it, ``(*layout.sizes)``.
            shared: this block stays in use, or elements are repeated: the result is not owned.
        """
        if isinstance(self.data, CostModel):
            return Block(layout, self.data)
        return Block.of(layout, compute(self.tensor), self.owned and not shared)

    def relabelled(self, layout: Layout) -> Block:
        """The same data with other names for its axes: layouts of equal sizes."""
        if isinstance(self.data, CostModel):
            return Block(layout, self.data, self.owned)
        return Block.of(layout, self.tensor, self.owned)

    def reinterpreted(self, layout: Layout) -> Block:
        """The same elements in the same order, with axes split or joined; a copy where strides leave no other way."""
        if isinstance(self.data, CostModel):
            return Block(layout, self.data, self.owned)
        return Block.of(layout, _reshaped(self.tensor, layout.sizes), self.owned)


def _reshaped(data: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Data of any shape in other sizes. A copy keeps the axis that is innermost in memory: mostly channels."""
    try:
        return data.view(sizes)
    except RuntimeError:
        inner = next((a for a, n in enumerate(data.shape) if n > 1 and data.stride(a) == 1), data.dim() - 1)
    # The innermost axis can stay where it is when the new sizes have one of its size at the same place in reading
    # order.
    before = math.prod(data.shape[:inner])
    places = [a for a, n in enumerate(sizes) if n == data.shape[inner] and math.prod(sizes[:a]) == before]
    if not places or inner == data.dim() - 1:
        return data.reshape(sizes)
    rest = [n for a, n in enumerate(sizes) if a != places[0]]
    return data.movedim(inner, -1).reshape(*rest, data.shape[inner]).movedim(-1, places[0])


def materialized(block: Block) -> Block:
    """The block with an outer product multiplied out."""
    if not isinstance(block.data, OuterProduct):
        return block
    a, b, layout = block.data.a, block.data.b, block.layout
    if isinstance(a.data, CostModel):
        a.data.move(a.numel + b.numel + layout.numel, layout.numel)
        return Block(layout, a.data)
    return Block.repeated(layout, a.times(b, layout.labels))


def identity_block(shape: tuple[int, ...], like: Tensor | CostModel) -> Block:
    """The identity on an activation, of which a single 1 is stored; abstract for a cost model.

    Args:
        shape: of the activation.
        like: a tensor of any shape, of the dtype and on the device to use; or the cost model of a dry run.
    """
    layout = identity(shape)
    if isinstance(like, CostModel):
        return Block(layout, like)
    return Block(layout, torch.ones(layout.sizes, dtype=like.dtype, device=like.device))


def narrowed(block: Block, dim: int, start: int, size: int) -> Block:
    """Of an identity, a range of the seed elements in one dimension."""
    (axis,) = block.layout.primal_axes[dim]
    assert isinstance(axis, BandedAxis)
    seed_axes = tuple(replace(e, start=start, size=size) if e.key == axis.key else e for e in block.layout.seed_axes)
    layout = replace(block.layout.with_dim(dim, (replace(axis, offset=start),)), seed_axes=seed_axes)
    return Block(layout, block.data, block.owned)


def zero_padded(block: Block) -> Block:
    """Zeros wherever windows stick out of their axes: what is there is unknown after a slice or a convolution."""
    for d, a, axis in block.layout.banded.values():
        if not axis.zero_padded:
            block = _zero_padded(block, d, a, axis)
    return block


def _zero_padded(block: Block, d: int, a: int, axis: BandedAxis) -> Block:
    layout = block.layout.with_band(replace(axis, zero_padded=True))
    # Windows at the border have zeros that those inside have not, so that the data varies along the seed axis now.
    layout = replace(layout, broadcast=layout.broadcast - {axis.key})

    def compute(data: Tensor) -> Tensor:
        mask = windows_along(data.new_ones(axis.size), 0, axis, layout.seed_axis[axis.key].size)
        seed: Label = (-1, *axis.key)
        if axis.width == 1:
            return data * arranged(mask.squeeze(-1), [seed], layout.labels)
        return data * arranged(mask, [seed, (d, a)], layout.labels)

    return block.step(layout, compute, 2 * layout.numel, owned=True)


def densify(block: Block, keys: Iterable[Key] | None = None) -> Block:
    """Banded axes (all by default) stored in full: zeros but on the diagonal, or in the windows."""
    old = block.layout
    keys = set(old.banded if keys is None else keys)
    if not keys:
        return block
    primal_axes = tuple(
        tuple(DenseAxis(x.size) if isinstance(x, BandedAxis) and x.key in keys else x for x in axes)
        for axes in old.primal_axes
    )
    layout = Layout(old.seed_axes, primal_axes, old.broadcast - keys)

    def compute(data: Tensor) -> Tensor:
        out = data.new_zeros(layout.sizes)
        write(out, layout, data, old)
        return out

    return block.step(layout, compute, layout.numel + 2 * old.numel, layout.numel)


def split_seed_axis(block: Block, key: Key, low: int) -> Block:
    """Split a seed axis of size ``high x low`` in two, and with it the axis tied to it, which must be plain."""
    old = block.layout
    pair = old.seed_axis[key].split(low)
    high_key, high = pair[0].key, pair[0].full
    seed_axes = tuple(x for e in old.seed_axes for x in (pair if e.key == key else (e,)))
    primal_axes = old.primal_axes
    if key in old.banded:
        d, a, _ = old.banded[key]
        # A whole diagonal of size high · low is the product of two whole diagonals.
        split = exchanged(primal_axes[d], a, BandedAxis(high_key, high), BandedAxis(key, low))
        primal_axes = exchanged(primal_axes, d, split)
    broadcast = old.broadcast | {high_key} if key in old.broadcast else old.broadcast
    return block.reinterpreted(Layout(seed_axes, primal_axes, broadcast))


def split_axis_factor(block: Block, d: int, a: int, low: int) -> Block:
    """Split one axis factor in two, ``high x low``; a banded one must be plain."""
    axes = block.layout.primal_axes[d]
    axis = axes[a]
    if isinstance(axis, BandedAxis):
        return split_seed_axis(block, axis.key, low)
    split = exchanged(axes, a, DenseAxis(axis.size // low), DenseAxis(low))
    return block.reinterpreted(block.layout.with_dim(d, split))


def merged(block: Block, d: int) -> Block:
    """One dimension of the primal in full, as one dense axis."""
    block = densify(block, block.layout.banded_keys(d))
    axes = block.layout.primal_axes[d]
    if len(axes) == 1:
        return block
    return block.reinterpreted(block.layout.with_dim(d, (DenseAxis(math.prod(x.size for x in axes)),)))


def without_ones(block: Block) -> Block:
    """The block without its dense axes of size 1."""
    if not any(_ONE in axes for axes in block.layout.primal_axes):
        return block
    block = materialized(block)
    primal_axes = tuple(tuple(x for x in axes if x != _ONE) for axes in block.layout.primal_axes)
    return block.reinterpreted(replace(block.layout, primal_axes=primal_axes))


def widened(block: Block, seed_axes: tuple[SeedAxis, ...]) -> Block:
    """The block over larger ranges of its seed axes: zeros for seed elements that it did not cover.

    Args:
        block: any.
        seed_axes: the same axes, with ranges that contain the block's.
    """
    pairs = [(old, new) for old, new in zip(block.layout.seed_axes, seed_axes, strict=True) if old != new]
    keys = [old.key for old, _ in pairs]
    if not keys:
        return block
    block = densify(block, [k for k in keys if k in block.layout.banded])
    layout = Layout(seed_axes, block.layout.primal_axes, block.layout.broadcast - set(keys))

    def compute(data: Tensor) -> Tensor:
        # ``part`` is a view of ``out``: after all cuts it covers the old ranges.
        out = part = data.new_zeros(layout.sizes)
        for old, new in pairs:
            part = part.narrow(layout.labels.index((-1, *old.key)), old.start - new.start, old.size)
        part.copy_(data)
        return out

    return block.step(layout, compute, layout.numel + 2 * block.layout.numel, layout.numel, owned=True)


def whole(block: Block) -> Block:
    """The block over all of its seed: zeros for the elements outside its ranges."""
    if all(e.whole for e in block.layout.seed_axes):
        return block
    return widened(block, tuple(SeedAxis(e.key, e.full) for e in block.layout.seed_axes))
