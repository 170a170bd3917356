"""Patterns against the nonzeros of J at many points, colourings, and J from coloured passes."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import jaccli
from jaccli.activations.address import parse_address
from jaccli.activations.record import Inputs
from jaccli.graph.elimination.compressed import Compressed, compressed_plan
from jaccli.graph.elimination.cuts import active_nodes
from jaccli.graph.elimination.sweep import Segment
from jaccli.graph.program import pipeline
from jaccli.graph.program import trace as program
from jaccli.graph.rules.derivatives import derivatives
from jaccli.graph.rules.registry import Map
from jaccli.graph.sparsity.coloring import By, Coloring, coloring, fewest, greedy, largest_first, periodic
from jaccli.graph.sparsity.index_sets import EVERYTHING, IndexSets, TooMuchWork
from jaccli.graph.sparsity.pattern import Pattern, pattern
from jaccli.graph.trace.capture import Graph, capture
from jaccli.graph.trace.ir import CaptureGap, Node
from jaccli.models.adapt import as_network
from jaccli.planning.linearize import computing, exact_attention, linearize
from tests.random_networks import random_network

Captured = tuple[Graph, list[Node], dict[Node, list[Map]]]
BLOCKED = torch.ones(6, 6, dtype=torch.bool).triu(1)
BAND = (torch.arange(6)[:, None] - torch.arange(6)).abs() <= 1


class Of(nn.Module):
    """A function of x and of modules."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class MaskedLinear(nn.Linear):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("mask", torch.rand(n_out, n_in, generator=torch.Generator().manual_seed(0)) < 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedConv(nn.Conv2d):
    """Sees what comes before in reading order; of the first channels, its own place as well."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        middle = mask.shape[-1] // 2
        mask[:, :, middle, middle + 1 :] = 0
        mask[:, :, middle + 1 :] = 0
        mask[1:, :, middle, middle] = 0
        return F.conv2d(x, self.weight * mask, self.bias, padding=self.padding)


def attention(how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, 2, d // 2).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        return how(q, k, v).transpose(1, 2).reshape(b, t, d)

    return Of(forward, qkv=nn.Linear(4, 12))


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / 2 + torch.zeros(6, 6).masked_fill(BLOCKED, -math.inf).to(q)
    return torch.softmax(scores, -1) @ v


def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q @ k.mT).masked_fill(BLOCKED, torch.finfo(q.dtype).min), -1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def merged_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, t, d = q.shape
    q, k, v = (z.reshape(b * h, t, d) for z in (q, k, v))
    mask = torch.zeros(t, t).masked_fill(BLOCKED, -math.inf).to(q)
    weights = torch.softmax(torch.baddbmm(mask.expand(b * h, t, t), q, k.mT), -1)
    return torch.bmm(weights, v).view(b, h, t, d)


def different_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.stack([~BLOCKED, BAND]).expand(q.shape[0], 2, 6, 6)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def unrolled(self: Any, x: Tensor) -> Tensor:
    h, out = x.new_zeros(x.shape[0], 3), []
    for t in range(x.shape[1]):
        h = torch.tanh(self.a(x[:, t]) + self.b(h))
        out.append(h)
    return torch.stack(out, 1)


def windowed(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        y[:, t] = torch.tanh(self.a(x[:, max(0, t - 1) : t + 1].mean(1)))
    return y


def strided_write(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0:6:2] = x[:, 1:4].tanh()
    return y


def patches(self: Any, x: Tensor) -> Tensor:
    b = x.shape[0]
    return self.fc(x.view(b, 1, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, 12, 4))


def coupling(self: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, :4], x[:, 4:] * self.fc(x[:, :4]).exp()], 1)


def recurrent(cell: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return Of(lambda self, x: self.cell(x)[0], cell=cell(2, 3, batch_first=True, **options))


def small(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


Conv = nn.Conv2d
# The pattern of these is known to be exact: name, model, shape of a sample.
EXACT: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("convolutions", lambda: small(Conv(2, 3, 3, padding=1), nn.Tanh(), Conv(3, 2, 3)), (2, 6, 5)),
    (
        "strided, dilated",
        lambda: small(Conv(2, 4, 3, 2, 1), nn.Tanh(), Conv(4, 2, (3, 2), dilation=(1, 2), padding=(0, 1))),
        (2, 8, 9),
    ),
    ("grouped", lambda: small(Conv(4, 4, 3, groups=4, padding=1), nn.Tanh(), Conv(4, 8, 1, groups=2)), (4, 4, 5)),
    (
        "transposed",
        lambda: small(nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2)),
        (2, 3, 4),
    ),
    ("transposed, grouped", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dilation=2), (4, 5)),
    (
        "circular, reflected",
        lambda: small(
            nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"),
            nn.Conv1d(3, 1, 3, padding=2, padding_mode="reflect"),
        ),
        (2, 7),
    ),
    ("convolution in 3", lambda: nn.Conv3d(1, 2, 2, padding=1), (1, 3, 3, 3)),
    (
        "masked convolutions",
        lambda: small(MaskedConv(1, 3, 3, padding=1), nn.Tanh(), MaskedConv(3, 1, 5, padding=2)),
        (1, 6, 6),
    ),
    ("max pooling", lambda: small(Conv(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(3, 2, 1)), (1, 7, 6)),
    ("max pooling, odd", lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2), ceil_mode=True), (2, 8, 7)),
    ("max pooling, tiles", lambda: nn.MaxPool2d(2), (2, 6, 6)),
    ("max pooling in 1", lambda: nn.MaxPool1d(3, 2), (2, 9)),
    ("max pooling, adaptive", lambda: nn.AdaptiveMaxPool2d((3, 2)), (2, 7, 5)),
    ("mean pooling", lambda: small(Conv(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(3, 2, 1)), (1, 8, 8)),
    ("mean pooling, adaptive", lambda: nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    ("bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 4, 5)),
    ("nearest", lambda: nn.Upsample(7), (2, 3)),
    ("pixel shuffle", lambda: small(nn.PixelShuffle(2), Conv(1, 2, 3, padding=1)), (4, 3, 3)),
    ("per token", lambda: small(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), (5, 6)),
    ("group norm", lambda: small(nn.Conv1d(4, 4, 1, groups=4), nn.GroupNorm(2, 4)), (4, 5)),
    ("instance norm", lambda: nn.InstanceNorm1d(4), (4, 5)),
    ("attention, mask added", lambda: attention(added), (6, 4)),
    ("attention, mask filled", lambda: attention(filled), (6, 4)),
    ("attention, heads merged", lambda: attention(merged_heads), (6, 4)),
    ("attention, heads differ", lambda: attention(different_heads), (6, 4)),
    ("attention, causal", lambda: attention(causal), (6, 4)),
    (
        "attention, time first",
        lambda: Of(
            lambda self, x: self.m(*[x.transpose(0, 1)] * 3, attn_mask=BLOCKED)[0].transpose(0, 1),
            m=nn.MultiheadAttention(4, 2),
        ),
        (6, 4),
    ),
    (
        "encoder layer, causal",
        lambda: Of(
            lambda self, x: self.layer(x, BLOCKED), layer=nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
        ),
        (6, 4),
    ),
    ("masked linear", lambda: small(MaskedLinear(12, 20), nn.Tanh(), MaskedLinear(20, 9)), (12,)),
    ("cumsum", lambda: Of(lambda self, x: x.cumsum(1)), (7, 2)),
    ("cumprod", lambda: Of(lambda self, x: x.cumprod(1)), (7,)),
    ("cummax", lambda: Of(lambda self, x: x.cummax(1)[0]), (5,)),
    ("slices, cat", lambda: Of(lambda self, x: torch.cat([x[:, ::2].tanh(), x[:, 1:3] * x[:, 4:6]], 1)), (8,)),
    ("constant index", lambda: Of(lambda self, x: x[:, torch.tensor([3, 0, 3, 5])].exp()), (6, 2)),
    ("gather", lambda: Of(lambda self, x: x.gather(1, torch.tensor([[2, 0]]).expand(len(x), 2))), (3,)),
    ("roll, flip", lambda: Of(lambda self, x: x * x.roll(1, 1) + x.flip(1)), (7,)),
    ("padding", lambda: Of(lambda self, x: F.pad(x, (2, -1)).tanh()), (3, 6)),
    ("unfold", lambda: Of(lambda self, x: x.unfold(1, 3, 2).prod(-1)), (9,)),
    ("tril", lambda: Of(lambda self, x: torch.tril(x).sum(-1)), (4, 4)),
    ("constant factor", lambda: Of(lambda self, x: x.cumsum(1) * torch.tensor([0, 1, 0, 2])), (4,)),
    ("constant choice", lambda: Of(lambda self, x: torch.where(torch.arange(6) % 2 == 0, x.sin(), x.flip(1))), (6,)),
    ("index_add", lambda: Of(lambda self, x: x.new_zeros(len(x), 9).index_add(1, torch.tensor([1, 4, 4]), x)), (3,)),
    ("written in place", lambda: Of(strided_write), (6,)),
    ("unrolled loop", lambda: Of(unrolled, a=nn.Linear(2, 3), b=nn.Linear(3, 3)), (5, 2)),
    ("loop over windows", lambda: Of(windowed, a=nn.Linear(2, 2)), (5, 2)),
    ("RNN", lambda: recurrent(nn.RNN), (5, 2)),
    ("LSTM", lambda: recurrent(nn.LSTM, num_layers=2), (4, 2)),
    (
        "GRU, time first",
        lambda: Of(lambda self, x: self.cell(x.transpose(0, 1))[0].transpose(0, 1), cell=nn.GRU(2, 3)),
        (5, 2),
    ),
    (
        "backward in time",
        lambda: Of(lambda self, x: self.cell(x)[0][:, :, 3:], cell=nn.LSTM(2, 3, bidirectional=True, batch_first=True)),
        (4, 2),
    ),
    ("coupling", lambda: Of(coupling, fc=nn.Linear(4, 4)), (8,)),
    ("residual", lambda: Of(lambda self, x: x + self.conv(x).relu(), conv=Conv(2, 2, 3, padding=1)), (2, 5, 5)),
    ("outer product", lambda: Of(lambda self, x: torch.einsum("bi,bj->bij", x, x)), (5,)),
    ("patches", lambda: Of(patches, fc=nn.Linear(4, 5)), (1, 6, 8)),
    ("no path", lambda: Of(lambda self, x: torch.zeros_like(x)), (5,)),
]
NAMES = [name for name, _, _ in EXACT]


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    _, make, shape = EXACT[NAMES.index(name)]
    return make().double().eval(), shape


@contextmanager
def captured(
    model: nn.Module, x: Tensor, source: str = "input", target: str = "output", args: Any = ()
) -> Iterator[Captured]:
    network = as_network(model)
    with computing(network), exact_attention(True):
        pair = (parse_address(source), parse_address(target))
        (linearization,) = linearize(network, Inputs((x, *args)), [pair], graph=False, probe=False)
        graph = capture(linearization.linear.f)
        nodes = active_nodes(graph.nodes, graph.source, graph.target)
        yield graph, nodes, derivatives(nodes)


def dense(matrix: Pattern) -> np.ndarray[Any, Any]:
    """``(n_out, n_in)`` booleans."""
    whole = np.zeros(matrix.shape, np.bool_)
    whole[matrix.rows, matrix.indices] = True
    return whole


def fits(colours: Coloring, matrix: Pattern) -> bool:
    """Whether every entry is alone at its place in the compressed matrix."""
    matrix = matrix if colours.by == "row" else matrix.T
    places = np.stack([colours.groups[matrix.rows], matrix.indices])
    return bool((places >= 0).all()) and len(np.unique(places, axis=1).T) == matrix.nnz


def found(model: nn.Module, x: Tensor, densest: float = 1.0) -> Pattern | None:
    with captured(model, x) as (graph, nodes, maps_of):
        return pattern(nodes, maps_of, graph.source, graph.target, densest)


def nonzeros(model: nn.Module, shape: tuple[int, ...], points: int = 60) -> np.ndarray[Any, Any]:
    x = torch.randn(points, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (jaccli.jacobian(model, x, method="reverse") != 0).any(0).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_patterns_are_exact(name: str) -> None:
    model, shape = built(name)
    true = nonzeros(model, shape)
    for batch in (3, 1):
        known = found(model, torch.randn(batch, *shape).double())
        assert known is not None
        mine = dense(known)
        assert not (true & ~mine).any(), "a dependency is missed"
        assert not (mine & ~true).any(), "an entry that is never nonzero"
        assert (dense(known.T) == mine.T).all()


@pytest.mark.parametrize("by", ["row", "column"])
@pytest.mark.parametrize("name", NAMES)
def test_coloured_passes_give_j(name: str, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the point, and, recorded as a program, at another one."""
    model, shape = built(name)
    monkeypatch.setattr(program, "jacobian", lambda plan: plan.run())
    for batch, chunk in ((3, 2), (1, 100)):
        x, there = torch.randn(2, batch, *shape, dtype=torch.float64)
        with captured(model, x) as (graph, nodes, maps_of):
            known = pattern(nodes, maps_of, graph.source, graph.target, 1.0)
            assert known is not None
            colours = coloring(known, by, (graph.target if by == "row" else graph.source).shape[1:])
            assert fits(colours, known)
            assert colours.by == by
            plan = Compressed(Segment(nodes, graph.source, graph.target, maps_of), known, colours, chunk)
            (recorded, *_), here = pipeline.programs_of(graph, plan)  # type: ignore[arg-type]
            assert (here - jaccli.jacobian(model, x, method="reverse")).abs().max() < 1e-12
            further = len(inspect.signature(recorded.call).parameters) - len(graph.inputs)
            with torch.no_grad():
                again = recorded.call(*[there] * len(graph.inputs), *[here.new_empty(here.numel())] * further)[0]
        assert (again - jaccli.jacobian(model, there, method="reverse")).abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(120))
def test_random_networks(seed: int) -> None:
    """The pattern holds at other points, and coloured passes give J."""
    network = random_network(seed)

    def true(x: Tensor) -> Tensor:
        return jaccli.jacobian(network.model, x, network.source, network.target, method="reverse", args=network.args)

    try:
        with captured(network.model, network.x, network.source, network.target, network.args) as (
            graph,
            nodes,
            maps_of,
        ):
            known = pattern(nodes, maps_of, graph.source, graph.target, 1.0)
            assert known is not None
            by: By = "row" if fewest(known, "row") <= fewest(known, "column") else "column"
            colours = coloring(known, by, (graph.target if by == "row" else graph.source).shape[1:])
            with torch.no_grad():
                j = Compressed(Segment(nodes, graph.source, graph.target, maps_of), known, colours, 7).run()
    except CaptureGap:
        pytest.skip("not captured")
    expected = true(network.x)
    assert (j - expected).norm() <= 1e-10 * (expected.norm() + 1e-2)
    mine = torch.from_numpy(dense(known))
    assert not ((expected != 0) & ~mine).any()
    if not network.chooses:
        away = torch.randn(network.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert not ((true(away) != 0) & ~mine).any()


def test_values_that_vary_are_never_zero() -> None:
    """A ReLU that is dead here, a mask computed from the input, an argument of zeros."""
    x = torch.full((2, 4), -1.0)
    assert found(nn.ReLU(), x).nnz == 4
    masked = Of(lambda self, x: torch.where(x > 0, x, 0.0) + torch.softmax(x.masked_fill(x < 0, -math.inf), 1))
    assert found(masked, x + torch.eye(2, 4) * 3).nnz == 16
    scaled = Of(lambda self, x: self.scale * x, scale=nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 1.0])))
    assert found(scaled, x).nnz == 2


def test_masks_that_leave_nothing_or_are_mild_are_not_trusted() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    mild = Of(lambda self, x: torch.softmax(x + torch.tensor([0.0, -30.0, 0.0]), 1))
    assert found(mild, x).nnz == 9
    strict = Of(lambda self, x: torch.softmax(x + torch.tensor([0.0, -math.inf, 0.0]), 1))
    assert found(strict, x).nnz == 4
    even = Of(lambda self, x: torch.softmax(x * 1e-9 + torch.finfo(torch.float64).min, 1))
    assert found(even, x).nnz == 9


def test_samples_that_mix_have_no_pattern() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    assert found(Of(lambda self, x: x - x.mean(0)), x) is None
    assert found(Of(lambda self, x: x.flip(0)), x) is None
    assert found(Of(lambda self, x: x.view(2, 2, 6).sin().view(4, 6)), x) is None  # the samples in two dimensions


def test_too_dense_or_too_much_work() -> None:
    model = small(nn.Linear(6, 6), nn.Tanh())
    x = torch.randn(2, 6)
    assert found(model, x, 0.25) is None
    assert found(Of(lambda self, x: x.cumsum(1)), x, 0.5) is None
    assert found(Of(lambda self, x: x.cumsum(1)), x, 0.6).nnz == 21
    with captured(Conv(1, 1, 3), torch.randn(1, 1, 8, 8)) as (graph, nodes, maps_of):
        assert pattern(nodes, maps_of, graph.source, graph.target, 1.0, work=100) is None


def test_sets_are_united_and_named_once() -> None:
    pool = IndexSets(5)
    a, b, c = pool.singles((5,))[:3]
    ab, abc, same, everything = pool.unite(
        np.array([a, b, a, b, c, b, 0, a, *pool.singles((5,))]), np.array([0, 2, 5, 8])
    )
    assert same == ab != abc
    assert everything == EVERYTHING
    assert pool.pairs(np.array([ab, 0, a]), np.array([c, b, a])).tolist() == [abc, b, a]
    bounds, elements = pool.rows(np.array([abc, 0, EVERYTHING, b]))
    assert bounds.tolist() == [0, 3, 3, 8, 9]
    assert elements.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 1]
    with pytest.raises(TooMuchWork):
        IndexSets(5, work=1).unite(np.array([2, 3, 4]), np.array([0]))
    saturated = IndexSets(10, densest=0.3)
    assert saturated.unite(np.arange(2, 6), np.array([0]))[0] == EVERYTHING


# ---- colouring


def matrix_of(mask: np.ndarray[Any, Any]) -> Pattern:
    return Pattern(np.append(0, mask.sum(1).cumsum()), np.nonzero(mask)[1], mask.shape)


masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda t: np.random.default_rng(t[2]).random(t[:2]) < t[3]
)


def graph_of(mask: np.ndarray[Any, Any]) -> Any:
    """Rows that share a column."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(mask)))
    graph.add_edges_from((i, j) for i, j in np.argwhere(mask.astype(int) @ mask.T.astype(int)) if i < j)
    return graph


@settings(max_examples=150, deadline=None)
@given(masks)
def test_colourings_of_random_patterns(mask: np.ndarray[Any, Any]) -> None:
    matrix = matrix_of(mask)
    for by, one in (("row", mask), ("column", mask.T)):
        found = coloring(matrix, by, one.shape[:1])
        assert fits(found, matrix)
        assert fewest(matrix, by) <= found.count
        assert sorted(set(found.groups[found.groups >= 0])) == list(range(found.count))
        assert ((found.groups < 0) == ~one.any(1)).all()
        others = graph_of(one)
        assert all(found.groups[i] != found.groups[j] for i, j in others.edges)
        assert found.count <= max((d for _, d in others.degree), default=0) + 1


@settings(max_examples=100, deadline=None)
@given(masks)
def test_the_greedy_colouring_is_the_one_of_networkx(mask: np.ndarray[Any, Any]) -> None:
    matrix = matrix_of(mask)
    order = largest_first(matrix)
    oracle = nx.greedy_color(graph_of(mask), strategy=lambda graph, colors: order.tolist())
    mine = greedy(matrix, order)
    assert all(mine[row] == oracle[row] for row in range(len(mask)) if mask[row].any())


@settings(max_examples=100, deadline=None)
@given(masks, st.integers(1, 4))
def test_periodic_colourings_fit(mask: np.ndarray[Any, Any], high: int) -> None:
    mask = np.repeat(mask, high, 0)
    groups = periodic(matrix_of(mask), (len(mask) // high, high))
    assert fits(Coloring(groups, int(groups.max(initial=-1)) + 1, "row"), matrix_of(mask))


def field(size: int, depth: int) -> nn.Module:
    channels = [1, *[3] * (depth - 1), 1]
    layers = [Conv(a, b, size, padding=size // 2) for a, b in itertools.pairwise(channels)]
    return small(*(x for layer in layers for x in (layer, nn.Tanh())))


@pytest.mark.parametrize(
    ("model", "shape", "rows", "columns"),
    [
        (field(3, 3), (1, 16, 16), 49, 49),  # a field of 7 x 7
        (field(5, 1), (1, 12, 12), 25, 25),
        (small(nn.Conv1d(1, 1, 3, padding=2, dilation=2)), (1, 30), 3, 3),
        (small(Conv(1, 4, 2, 2)), (1, 8, 8), 4, 4),
        (small(nn.MaxPool2d(3, 2, 1)), (1, 12, 12), 4, 9),
        (small(nn.MaxPool2d(2)), (3, 8, 8), 1, 4),
        (Of(unrolled, a=nn.Linear(2, 3), b=nn.Linear(3, 3)), (5, 2), 15, 10),  # the first step reaches all
        (Of(windowed, a=nn.Linear(2, 2)), (8, 2), 4, 4),
        (attention(added), (6, 4), 24, 24),
        (small(nn.LayerNorm(6), nn.Linear(6, 4)), (10, 6), 4, 6),
        (nn.Tanh(), (20,), 1, 1),
    ],
)
def test_numbers_of_passes(model: nn.Module, shape: tuple[int, ...], rows: int, columns: int) -> None:
    known = found(model, torch.randn(2, *shape))
    assert known is not None
    out = model(torch.randn(1, *shape)).shape[1:]
    assert coloring(known, "row", out).count == rows
    assert coloring(known, "column", shape).count == columns


# ---- the plan


def test_the_plan_says_what_it_saves_and_does_it() -> None:
    torch.manual_seed(0)
    model, x = field(3, 3).double(), torch.randn(3, 1, 16, 16).double()
    with captured(model, x) as (graph, nodes, maps_of):
        plan = compressed_plan(graph.source, graph.target, nodes, maps_of)
        assert plan is not None
        assert plan.passes == 49
        assert plan.describe() in ("49 VJPs instead of 256", "49 JVPs instead of 256")
        assert plan.seconds > 0
        assert plan.peak >= 3 * 49 * 256
        with torch.no_grad():
            j = plan.run()
    assert (j - jaccli.jacobian(model, x, method="reverse")).abs().max() < 1e-12


def test_planning_looks_at_no_factor() -> None:
    """A factor that was made while planning would be bound to the point of the plan."""
    model, _ = built("attention, mask added")
    with captured(model, torch.randn(2, 6, 4).double()) as (graph, nodes, maps_of):
        assert pattern(nodes, maps_of, graph.source, graph.target, 1.0) is not None
        steps = [step for found in maps_of.values() for m in found for step in m.steps]
        lates = [getattr(step, name) for step in steps for name in ("factor", "vector") if hasattr(step, name)]
        assert lates
        assert not any("tensor" in vars(late) for late in lates if hasattr(late, "make"))


def test_no_plan_where_nothing_is_saved() -> None:
    for model, shape in (
        (small(nn.Linear(8, 8), nn.Tanh()), (8,)),
        (Of(unrolled, a=nn.Linear(2, 3), b=nn.Linear(3, 3)), (9, 2)),
        (Conv(1, 1, 5, padding=2), (1, 4, 4)),
    ):
        with captured(model, torch.randn(2, *shape)) as (graph, nodes, maps_of):
            assert compressed_plan(graph.source, graph.target, nodes, maps_of) is None


def test_chunks_keep_to_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaccli.graph.elimination.compressed.WORKING_SET", 2 * 256 * 3 * 8 * 10)
    model, x = field(3, 3).double(), torch.randn(2, 1, 16, 16).double()
    with captured(model, x) as (graph, nodes, maps_of):
        plan = compressed_plan(graph.source, graph.target, nodes, maps_of)
        assert plan is not None
        assert 1 <= plan.chunk <= 10
        with torch.no_grad():
            j = plan.run()
    assert (j - jaccli.jacobian(model, x, method="reverse")).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = field(3, 2).to(dtype), torch.randn(2, 1, 10, 10).to(dtype)
    with captured(model, x) as (graph, nodes, maps_of):
        known = pattern(nodes, maps_of, graph.source, graph.target, 1.0)
        assert known is not None
        colours = coloring(known, "row", (1, 10, 10))
        with torch.no_grad():
            j = Compressed(Segment(nodes, graph.source, graph.target, maps_of), known, colours, 9).run()
    expected = jaccli.jacobian(model, x, method="reverse")
    assert j.dtype == dtype
    assert (j - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
