"""The examples in the docstrings of layouts, blocks, windows and algebra, with numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.graph.layout.algebra import matrix, product, total, transposed
from jaccli.graph.layout.block import Block, densify, identity_block, zero_padded
from jaccli.graph.layout.layout import BandedAxis, DenseAxis, Layout, SeedAxis
from jaccli.graph.layout.spread import laid_out
from jaccli.graph.layout.windows import split_window
from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.maps.convolution import Conv
from tests.structured_networks import normal

TOKENS = Layout(
    seed_axes=(SeedAxis((0, 1), 2), SeedAxis((1, 1), 4)),
    primal_axes=((BandedAxis((0, 1), 2),), (DenseAxis(3),)),
)
PIXELS = Layout(
    seed_axes=(SeedAxis((0, 1), 8),),
    primal_axes=((BandedAxis((0, 1), 8, offset=-1, width=3, zero_padded=False),),),
)


def tokens() -> Block:
    return Block.of(TOKENS, normal((2, 4, 3), 1))


def full(block: Block) -> Tensor:
    """``(n_seed, n_primal)``."""
    rows = densify(zero_padded(block))
    data = rows.tensor.expand(rows.layout.sizes)
    return data.reshape(-1, torch.Size(rows.layout.shape).numel())


def test_a_linear_layer_on_each_token() -> None:
    assert TOKENS.labels == ((-1, 0, 1), (-1, 1, 1), (1, 0))
    assert (TOKENS.sizes, TOKENS.shape) == ((2, 4, 3), (2, 3))
    assert densify(tokens()).layout.sizes == (2, 4, 2, 3)
    torch.testing.assert_close(full(tokens()), torch.block_diag(*tokens().tensor), rtol=0, atol=0)
    torch.testing.assert_close(matrix(tokens()), tokens().tensor, rtol=0, atol=0)


def test_a_convolution() -> None:
    assert PIXELS.labels == ((-1, 0, 1), (0, 0))
    assert PIXELS.sizes == (8, 3)
    data = normal((8, 3), 2)
    want = sum(torch.diag(data[max(0, 1 - w) : 8 - max(0, w - 1), w], w - 1) for w in range(3))
    torch.testing.assert_close(full(Block.of(PIXELS, data)), want, rtol=0, atol=0)
    factor = laid_out(PIXELS, normal((8,), 3))
    assert factor.shape == (8, 3)
    assert factor[0].tolist() == [0.0, *normal((8,), 3)[:2].tolist()]


def test_sum_product_and_transpose() -> None:
    block, one = tokens(), identity_block((2, 4), torch.ones(1, dtype=torch.float64))
    columns = transposed(block, (2, 4))
    torch.testing.assert_close(full(columns), full(block).T, rtol=0, atol=0)
    gram = product(block, transposed(columns, (2, 3)), (2, 4))  # J Jᵀ: both live on the tokens of 3 features
    assert gram.layout.sizes == (2, 4, 4)
    torch.testing.assert_close(full(gram), full(block) @ full(block).T)
    torch.testing.assert_close(full(total(gram, one)), full(block) @ full(block).T + torch.eye(8))


def test_a_window_shared_by_neighbours() -> None:
    """Inputs 2 g and 2 g + 1 of a convolution of stride 2 reach results g and g + 1."""
    weight = normal((1, 1, 3), 4)
    one = identity_block((1, 1, 8), weight)
    split = split_window(one, (2, 1), 2)
    assert split.layout.sizes == (1, 2, 2)
    torch.testing.assert_close(full(split), torch.eye(8).double())
    columns = Conv(LazyTensor(lambda: weight), (3,), (2,), (1,), (1,), 1, (1, 1, 8), (1, 1, 4)).apply(one)
    _, _, band = columns.layout.banded[(2, 2)]
    assert (band.offset, band.stride, band.width) == (0, 1, 2)
    want = torch.nn.functional.conv1d(torch.eye(8).double()[:, None], weight, stride=2, padding=1)[:, 0]
    torch.testing.assert_close(full(columns), want)


def test_padding_of_a_diagonal_that_is_the_only_axis() -> None:
    layout = Layout((SeedAxis((0, 1), 8),), ((BandedAxis((0, 1), 8, offset=-1, zero_padded=False),),))
    padded = zero_padded(Block.of(layout, torch.ones(8)))
    assert padded.tensor.tolist() == [0.0] + [1.0] * 7
