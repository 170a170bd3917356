"""What can be left out of the linear maps and of the blocks that they act on: layouts, convolutions, rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ablation.switch import empty, first, nothing, switches, yes
from jaccli.graph.layout.block import Block, materialized
from jaccli.graph.layout.layout import Layout
from jaccli.graph.maps.convolution import Conv
from jaccli.graph.maps.elementwise import Mul, Scale
from jaccli.graph.rules.derivatives import RULES  # type: ignore[attr-defined]
from jaccli.graph.rules.elementwise import SLOPES, pointwise

_of = Block.of.__func__  # type: ignore[attr-defined]


@classmethod  # type: ignore[misc]
def _never_owned(cls: type[Block], layout: Layout, tensor: Tensor, owned: bool = True) -> Block:
    del owned
    block: Block = _of(cls, layout, tensor, False)
    return block


def _one_by_one(block: Block, factors: Sequence[Mul | Scale]) -> Block:
    for factor in factors:
        result = factor.apply(materialized(block))
        assert result is not None
        block = result
    return block


def _as_it_lies(data: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, *rest: Any) -> Tensor:
    return torch.convolution(data, weight, None, stride, padding, dilation, *rest)


def _single_pixels_convolved(conv: Conv, data: Tensor) -> Tensor:
    inner, outer = conv.shapes
    sizes = zip(outer[2:], inner[2:], conv.stride, strict=True)
    rest = [n - (m - 1) * s - 1 if conv.adjoint else 0 for n, m, s in sizes]
    return _as_it_lies(
        data, conv.weight.tensor, conv.stride, conv.padding, conv.dilation, conv.adjoint, rest, conv.groups
    )


def _by_convolution(_conv: Conv, _stack: Any) -> str:
    return "convolution"


def _with_repetitions(_conv: Conv, block: Block) -> tuple[Block, tuple[int, ...]]:
    return block, ()


def _no(*_: Any) -> bool:
    return False


_LAYOUT, _CONV, _SWEEP = "graph.layout.", "graph.maps.convolution.", "graph.elimination.sweep."
_BY_AUTOGRAD = {**RULES, **{f"aten.{name}": pointwise for name in SLOPES}}

MAP_SWITCHES = switches(
    "engine",
    ("windows", "convolutions as growing windows", "maps/convolution", {_CONV + "Conv._stays_local": _no}),
    (
        "cells",
        "windows cut into cells where an operator strides",
        "layout/windows",
        dict.fromkeys((_LAYOUT + "alignment.in_cells", "graph.maps.reshape.in_cells"), nothing),
    ),
    (
        "toeplitz",
        "convolutions of windows as matrix products",
        "maps/toeplitz",
        {_CONV + "Conv._mode": _by_convolution},
    ),
    ("taps", "the first of them tap by tap", "maps/toeplitz", {_CONV + "_TAPS": math.inf}),
    (
        "phases",
        "strided convolutions by phases",
        "maps/polyphase",
        {_CONV + "Conv._phases": empty, _CONV + "Conv._unrepeated": _with_repetitions},
    ),
    (
        "repeats",
        "upsampling and convolution as one, by phases",
        "maps/polyphase",
        {_CONV + "Conv._unrepeated": _with_repetitions},
    ),
    (
        "pixel-blocks",
        "several pixels of a strided convolution in one product",
        "maps/convolution",
        {_CONV + "_BLOCKS": ()},
    ),
    (
        "single-pixels",
        "1 x 1 results and kernels as matrices",
        "maps/convolution",
        {_CONV + "Conv._of_single_pixels": _single_pixels_convolved},
    ),
    (
        "channels-last",
        "dense convolutions in channels-last memory",
        "maps/convolution",
        {_CONV + "convolution": _as_it_lies},
    ),
    (
        "tiles",
        "nearest upsampling as a repetition, not an index",
        "rules/linear",
        {"graph.rules.linear._tiles": nothing},
    ),
    ("outer", "outer products kept as two factors", "layout", {"graph.maps.matrix._OUTER": math.inf}),
    (
        "factors",
        "elementwise factors gathered and multiplied once",
        "elimination/sweep",
        {_SWEEP + "multiplied": _one_by_one},
    ),
    (
        "in-place",
        "blocks that nobody else holds written in place",
        "layout/block",
        {_LAYOUT + "block.Block.of": _never_owned},
    ),
    (
        "embeds",
        "slices put at their places only when they are summed",
        "elimination/sweep",
        {_SWEEP + "_is_banded": yes},
    ),
    ("joined-ranges", "sums of neighbouring ranges joined", "layout/algebra", {_LAYOUT + "algebra._joined": nothing}),
    (
        "factor-layout",
        "factors laid out as the block is",
        "maps/elementwise",
        {"graph.maps.elementwise._in_order": first},
    ),
    (
        "reshape-layout",
        "reshapes that keep the innermost axis of memory",
        "layout/block",
        {_LAYOUT + "block._reshaped": Tensor.reshape},
    ),
    (
        "formulas",
        "closed formulas of elementwise operators, not autograd",
        "rules/elementwise",
        {"graph.rules.derivatives.RULES": _BY_AUTOGRAD},
    ),
    (
        "recurrent-layers",
        "fused recurrent layers captured again in operators",
        "trace/capture",
        {"graph.trace.capture.FUSED_OPERATORS": frozenset()},
    ),
)
