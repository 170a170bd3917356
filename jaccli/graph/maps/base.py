"""What a linear map between activations consists of: layout, cost and computation of its result, each for itself.

The derivative of every operator is a chain of *primitives*. A primitive applies one linear map to every vector of a
block. Its transpose ``T`` is a primitive too, so that one implementation serves tangents that are pushed forward and
cotangents that are pulled back::

    block ─→ prepared(block) ─┬─→ layout(old)                 which axes the result has
                              ├─→ charge(cost, old, new)      what it costs; in a dry run only
                              └─→ compute(block, new)         the numbers; not in a dry run

Primitives that consist of several steps, or of several ways to go, override ``apply`` instead, and build it from
operations on blocks, each of which separates the three in the same way (``Block.step``).

Invariants
    * ``layout`` and ``charge`` look at layouts only, and at no ``LazyTensor``: planning computes no factor;
    * the layout that a dry run gives is the one that the numbers have;
    * seed axes keep their keys, but for those that are split or narrowed to a range;
    * ``p.T.T`` is the map ``p``. As matrices, ``p.T`` is the transpose, not the adjoint: numbers are real;
    * a primitive is frozen and has no state, so that dry runs and several threads may share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from jaccli.graph.layout.block import Block
from jaccli.graph.layout.cost import CostModel
from jaccli.graph.layout.layout import Layout

Shape = tuple[int, ...]
Make = Callable[[], Tensor]


class Primitive:
    """A linear map from one activation to another."""

    @property
    def T(self) -> Primitive:
        """The transpose."""
        raise NotImplementedError

    def apply(self, block: Block) -> Block | None:
        """The map applied to every vector; None when all of them become zero. May write into data that is owned."""
        block = self.prepared(block)
        layout = self.layout(block.layout)
        if isinstance(block.data, CostModel):
            self.charge(block.data, block.layout, layout)
            return Block(layout, block.data)
        return self.compute(block, layout)

    def prepared(self, block: Block) -> Block:
        """The block with its axes stored as the map needs them."""
        return block

    def layout(self, old: Layout) -> Layout:
        """Of the result, by that of the prepared block."""
        raise NotImplementedError

    def charge(self, cost: CostModel, old: Layout, new: Layout) -> None:
        """Add what the map costs; nothing where it is a view."""

    def compute(self, block: Block, new: Layout) -> Block:
        """The result for a prepared block of numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class LazyTensor:
    """A tensor computed when it is first used: dry runs use none."""

    make: Make

    @cached_property
    def tensor(self) -> Tensor:
        """Computed once; of any shape: the map which uses it states it."""
        return self.make()
