"""What can be left out of the elimination: ways to bracket, slices pushed down, ranges of rows, sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ablation.switch import empty, nothing, switches
from jaccli.calibration import TYPICAL
from jaccli.graph.elimination.bracketing import Bracketing, Chain, EliminationMode, Interval, SeedRange
from jaccli.graph.layout.block import Block, densify
from jaccli.graph.layout.cost import CostModel

_options, _identity = Chain._options, Chain._identity


def _better_sweep(chain: Chain) -> Bracketing:
    cost = chain._cost_model()
    return min((chain._sweep("pull", cost), chain._sweep("push", cost)), key=lambda sweep: sweep.seconds)


def _without_products(chain: Chain, i: int, j: int) -> Iterator[tuple[EliminationMode, tuple[Interval, ...]]]:
    return (option for option in _options(chain, i, j) if option[0] != "product")


def _joined_to_nothing(cuts: list[Any], parts: list[Any], _maps_of: Any) -> Any:
    return cuts, parts


def _identity_in_full(chain: Chain, cut: int, like: Tensor | CostModel, seeds: SeedRange | None) -> Block:
    """Only samples stay diagonal."""
    block = _identity(chain, cut, like, seeds)
    return densify(block, [key for key, (dim, _, _) in block.layout.banded.items() if dim])


def _switched_off(*_: Any, **__: Any) -> str:
    return "switched off"


_SEARCH, _CHAIN = "graph.elimination.accumulate.", "graph.elimination.bracketing."

SEARCH_SWITCHES = switches(
    "engine",
    (
        "structure",
        "the engine as such",
        "graph",
        {"planning.linearize.linearization.Linearization.search_structure": _switched_off},
    ),
    (
        "bracketing",
        "the search for a bracketing, against the better of two sweeps",
        "elimination/bracketing",
        {_CHAIN + "Chain.best": _better_sweep},
    ),
    (
        "products",
        "products of known Jacobians as a way to bracket",
        "elimination/bracketing",
        {_CHAIN + "Chain._options": _without_products},
    ),
    (
        "joined-segments",
        "neighbouring segments joined before the search",
        "elimination/cuts",
        {"graph.elimination.cuts._without_idle_segments": _joined_to_nothing},
    ),
    (
        "slices",
        "slices pushed down before matrices",
        "elimination/slice_pushdown",
        {_SEARCH + "pushed_down": nothing},
    ),
    (
        "row-ranges",
        "J in ranges of rows, so that intermediate results stay small",
        "elimination/accumulate",
        {_SEARCH + "_seed_ranges": empty},
    ),
    (
        "rates",
        "plans by this machine's rates",
        "layout/cost",
        {"graph.layout.cost.stored_or_typical": lambda _device: TYPICAL},
    ),
    ("compression", "compression by colouring", "elimination/compressed", {_SEARCH + "compressed_plan": nothing}),
    (
        "greedy",
        "greedy colouring where a periodic one has too many colours",
        "sparsity/coloring",
        {"graph.sparsity.coloring._MOST_ENTRIES": -1},
    ),
    (
        "zeros",
        "known zeros, masks before a softmax among them",
        "sparsity/known_zeros",
        {"graph.sparsity.known_zeros.StructuralZeros.where": nothing},
    ),
    (
        "diagonals",
        "seeds that keep diagonal and banded axes",
        "layout",
        {_CHAIN + "Chain._identity": _identity_in_full},
    ),
)
