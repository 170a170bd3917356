"""A linear map between activations, applied to bundles. Each knows its transpose, so that one
implementation serves tangents pushed forward and cotangents pulled back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from jaccli.graph.layout.block import Block

Shape = tuple[int, ...]
Make = Callable[[], Tensor]


class Primitive(Protocol):
    """A linear map from one activation to another."""

    def apply(self, bundle: Block) -> Block | None:
        """The map applied to every vector; None when all of them become zero."""

    @property
    def T(self) -> Primitive:
        """The transpose."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor made when it is first wanted: dry runs want none."""

    make: Make

    @cached_property
    def tensor(self) -> Tensor:
        """Made once."""
        return self.make()
