"""Every operator's rule in the structured engine against backward passes, at the edges of what the operator takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jaccli.activations.address import parse_address
from jaccli.activations.record import Inputs
from jaccli.graph.program.codegen import generate
from jaccli.graph.program.dead_code import remove_dead_code
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.trace.tracer import Tracer
from jaccli.methods.base import MethodGap
from jaccli.models.adapt import as_network
from jaccli.planning.linearize import computing, exact_attention, linearize
from jaccli.run.execute import fill
from tests.oracle import error
from tests.structured_networks import Of, normal

Function = Callable[[Tensor], Tensor]


def both(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """J by the structured engine, no fallback, and row by row.

    Raises:
        MethodGap: the engine cannot do it.
    """
    model = Of(lambda self, x: function(x))
    with computing(network := as_network(model)), exact_attention(True):
        pair = (parse_address("input"), parse_address("output"))
        (linearization,) = linearize(network, Inputs((x,)), [pair])
        outcome = fill(linearization, "structured", 4)
        assert outcome.method == "structured"
        return outcome.matrix, fill(linearization, "loop", 1).matrix


def vary(x: Tensor) -> Tensor:
    """What comes before the operator, so that its derivative meets vectors that are not one-hot."""
    return (x * 1.3).sin() + 0.2 * x


def rows(function: Function, *sample: int, batch: int = 3) -> Any:
    return lambda: (function, normal((batch, *sample), 5))


def fixed(shape: tuple[int, ...], seed: int) -> Tensor:
    """A constant of the model, without drawing numbers, which would be a gap."""
    return (torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * (seed + 0.7) + 0.3).sin().reshape(shape)


INDEX = torch.tensor([[[0, 2]], [[1, 1]], [[2, 0]]])
LONG = torch.tensor([0, 3, 1, 3])

CASES: dict[str, Callable[[], tuple[Function, Tensor]]] = {
    # Sums and statistics.
    "sum over a negative dim": rows(lambda x: x.sum(-2), 3, 4),
    "sum, dim kept": rows(lambda x: x.sum((1, -1), keepdim=True), 3, 4),
    "sum of everything": rows(lambda x: x * x.sum(), 3, batch=1),
    "sum in another dtype": rows(lambda x: x.sum(1, dtype=torch.float32).exp(), 3, 4),
    "mean of no dims": rows(lambda x: x * x.mean(), 3, batch=1),
    "mean in another dtype": rows(lambda x: x.float().mean(-1, dtype=torch.float64) ** 2, 3, 4),
    "mean, dim kept": rows(lambda x: x - x.mean(-1, keepdim=True), 3, 4),
    "var": rows(lambda x: x.var((1, 2), correction=0), 3, 4),
    "var, no correction given": rows(lambda x: x.var(-1), 3, 4),
    "var with a large correction": rows(lambda x: x.var(-1, correction=2, keepdim=True), 3, 4),
    "var and mean": rows(lambda x: torch.cat(torch.var_mean(x, (-1,), correction=1), 1), 3, 4),
    "std": rows(lambda x: x.std(1, keepdim=True) * x, 3, 4),
    "std of one element": rows(lambda x: x.std(-1, correction=0) + x[..., 0], 3, 1),
    "std and mean of everything": rows(lambda x: torch.stack(torch.std_mean(x)).expand(1, 2), 3, batch=1),
    "norm": rows(lambda x: x.norm(dim=-1, keepdim=True), 3, 4),
    "norm of order 1": rows(lambda x: torch.linalg.vector_norm(x, 1, (1, 2)), 3, 4),
    "norm in another dtype": rows(lambda x: torch.linalg.vector_norm(x.float(), 2, 1, dtype=torch.float64), 3, 4),
    "largest norm": rows(lambda x: torch.linalg.vector_norm(x, float("inf"), -1), 3, 4),
    "prod": rows(lambda x: x.prod(-1), 3, 4),
    "prod with a zero": rows(lambda x: (x - x.detach() * (torch.arange(4) == 1)).prod(1, keepdim=True), 4),
    "logsumexp": rows(lambda x: x.logsumexp((1, 2)), 3, 4),
    "amax, ties": rows(lambda x: x.round().amax(-1) + x.relu().amax((1, 2), keepdim=True)[..., 0], 3, 4),
    "amin": rows(lambda x: x.amin((1,), keepdim=True), 3, 4),
    "aminmax": rows(lambda x: torch.cat(torch.aminmax(x, dim=-1), 1), 3, 4),
    "max with indices": rows(lambda x: x.max(-1).values * x.min(1, keepdim=True).values[:, 0, :3], 3, 4),
    "median": rows(lambda x: x.median(-1).values, 3, 5),
    "kthvalue": rows(lambda x: x.kthvalue(2, 1, keepdim=True).values, 3, 5),
    "topk": rows(lambda x: x.topk(2, -1).values, 3, 5),
    "sort": rows(lambda x: x.sort(1, descending=True).values, 3, 5),
    "cummax": rows(lambda x: x.cummax(-1).values, 5),
    "cumsum": rows(lambda x: x.cumsum(-2), 3, 4),
    "cumsum in another dtype": rows(lambda x: x.float().cumsum(-1, dtype=torch.float64), 4),
    "cumprod": rows(lambda x: x.cumprod(-1), 3, 4),
    "logcumsumexp": rows(lambda x: x.logcumsumexp(1), 3, 4),
    "one number": rows(lambda x: (x.sum().cumsum(0).softmax(0) + x.sum().max(0).values + x.sum()) * x, 3, batch=1),
    # Softmax and normalisations.
    "softmax over a negative dim": rows(lambda x: x.softmax(-2), 3, 4),
    "softmax in another dtype": rows(lambda x: x.float().softmax(-1, dtype=torch.float64), 4),
    "log_softmax": rows(lambda x: x.log_softmax(-2), 3, 4),
    "layer norm without weights": rows(lambda x: F.layer_norm(x, (3, 4)), 3, 4),
    "layer norm, weight alone": rows(lambda x: F.layer_norm(x, (4,), fixed((4,), 2)), 3, 4),
    "group norm without weights": rows(lambda x: F.group_norm(x, 2), 4, 3),
    "group norm": rows(lambda x: F.group_norm(x, 2, fixed((4,), 1), fixed((4,), 2)), 4, 3, 2),
    "batch norm without weights": rows(lambda x: F.batch_norm(x, fixed((4,), 1), fixed((4,), 2).exp(), eps=0.1), 4, 3),
    "instance norm": rows(lambda x: F.instance_norm(x, weight=fixed((4,), 1)), 4, 5),
    "rms norm": rows(lambda x: F.rms_norm(x, (4,), fixed((4,), 2)), 3, 4),
    # Elementwise.
    "add with alpha": rows(lambda x: torch.add(x, x.sin(), alpha=-2.5), 4),
    "add with alpha 0": rows(lambda x: torch.add(x, x.sin(), alpha=0), 4),
    "rsub with alpha": rows(lambda x: torch.rsub(x, x.sin(), alpha=3), 4),
    "with numbers": rows(lambda x: 2 - (1 / (x**2 + 1)) * 3 + x / 4, 4),
    "with integers": rows(lambda x: x * torch.arange(1, 5) / torch.tensor([1, 2, 4, 8]), 4),
    "with what is made of integers": rows(lambda x: x * (x > 0).long() + x.floor() + x.round().sign(), 4),
    "floor division": rows(lambda x: torch.div(x, 0.3, rounding_mode="floor") + x, 4),
    "remainder": rows(lambda x: torch.remainder(x, 0.7) + torch.fmod(x, x.exp()), 4),
    "broadcast over more dims": rows(lambda x: x[:, None] * x.exp()[:, :, None], 4),
    "clamp by numbers": rows(lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1), 4),
    "clamp by tensors": rows(lambda x: x.clamp(fixed((4,), 1) - 1, fixed((3, 1), 2) + 1), 4),
    "clamp by what varies": rows(lambda x: x.clamp(min=x.flip(-1), max=x.exp() + 1), 4),
    "maximum with itself": rows(lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, x), 4),
    "where with a number": rows(lambda x: torch.where(x > 0, x.exp(), 0.0) + torch.where(x < 1, 2.0, x), 4),
    "masked_fill by a value": rows(lambda x: x.masked_fill(x > 0.2, -1), 4),
    "lerp": rows(lambda x: torch.lerp(x, x.exp(), x.sigmoid()) + torch.lerp(x, x.sin(), 0.3), 4),
    "addcmul": rows(lambda x: torch.addcmul(x, x.sin(), x.exp(), value=-2), 4),
    "addcdiv": rows(lambda x: torch.addcdiv(x.sum(-1, keepdim=True), x, x.exp(), value=0.5), 4),
    "powers": rows(lambda x: x.exp() ** x + x.abs() ** 1.5 + 2**x, 4),
    "prelu by channel": rows(lambda x: F.prelu(x, fixed((3,), 4)), 3, 2),
    "glu": rows(lambda x: F.glu(x, -2), 4, 3),
    "activations": rows(lambda x: F.logsigmoid(x) + F.gelu(x, approximate="tanh") + F.hardswish(x) + F.mish(x), 4),
    # Dtypes.
    "through single precision": rows(lambda x: ((x.sin().float() * 3).tanh() * 2).double().exp(), 4),
    "a layer in single precision": rows(
        lambda x: (F.linear((x * 2).float(), fixed((5, 4), 1).float()).sigmoid().double() @ fixed((5, 2), 1)).exp(), 4
    ),
    "single and double added": rows(lambda x: x.float() + x * 2, 4),
    "single and double side by side": rows(lambda x: torch.cat([x.float(), x.exp()], -1) * 2, 4),
    "written into single precision": rows(lambda x: torch.zeros(3, 4).copy_(x).exp(), 4),
    # Pooling and resampling.
    "max pool": rows(lambda x: F.max_pool2d(x, 2), 2, 4, 6),
    "max pool, ceil": rows(lambda x: F.max_pool2d(x, 2, ceil_mode=True), 2, 5, 5),
    "max pool, padding": rows(lambda x: F.max_pool2d(x, 3, 2, 1), 2, 5, 6),
    "max pool, dilation": rows(lambda x: F.max_pool2d(x, 2, 1, dilation=2), 1, 5, 6),
    "max pool, all": rows(lambda x: F.max_pool2d(x, (2, 3), (2, 1), (1, 1), (2, 1), ceil_mode=True), 1, 6, 5),
    "max pool in 1 dimension": rows(lambda x: F.max_pool1d(x, 3, 2, 1), 2, 7),
    "max pool in 3 dimensions": rows(lambda x: F.max_pool3d(x, 2, ceil_mode=True), 1, 3, 4, 2),
    "adaptive max pool": rows(lambda x: F.adaptive_max_pool2d(x, (3, 2)), 1, 5, 4),
    "average pool": rows(lambda x: F.avg_pool2d(x, 2, padding=1), 2, 4, 4),
    "average pool, padding not counted": rows(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 1, 5, 6),
    "average pool, ceil": rows(lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True), 1, 4, 5),
    "average pool, ceil, not counted": rows(lambda x: F.avg_pool2d(x, (3, 2), 2, 1, True, False), 1, 4, 5),
    "average pool, divisor": rows(lambda x: F.avg_pool2d(x, 2, divisor_override=3), 1, 4, 4),
    "average pool, divisor and padding": rows(lambda x: F.avg_pool2d(x, 2, 1, 1, divisor_override=3), 1, 3, 4),
    "average pool in 1 dimension": rows(lambda x: F.avg_pool1d(x, 3, 2, 1, False, False), 2, 7),
    "average pool in 3 dimensions": rows(lambda x: F.avg_pool3d(x, 2, 1, 1), 1, 3, 2, 2),
    "adaptive average pool": rows(lambda x: F.adaptive_avg_pool2d(x, (3, 2)), 1, 5, 4),
    "nearest": rows(lambda x: F.interpolate(x, size=(5, 3)), 1, 3, 2),
    "bilinear, corners": rows(lambda x: F.interpolate(x, size=(5, 3), mode="bilinear", align_corners=True), 1, 3, 2),
    "bicubic, antialiased": rows(lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True), 1, 6, 8),
    # Views, joins and cuts.
    "cat with nothing": rows(lambda x: torch.cat([x[:, :0], x.sin(), torch.zeros(0), x.exp()], -1), 4),
    "split with nothing": rows(lambda x: torch.cat(x.split([0, 3, 1, 0], 1)[::-1], 1), 4),
    "stack and unbind": rows(lambda x: torch.stack([u.exp() for u in x.unbind(-1)], -2), 3, 2),
    "slices": rows(lambda x: x[:, -3:-1] * x[:, 1::2] + x[:, 100:].sum(), 4),
    "negative places": rows(lambda x: x[:, -1] + x.select(-1, -2)[:, :1].sum(-1, keepdim=True), 3, 3),
    "permute, negative": rows(lambda x: x.permute(0, -1, 1).transpose(-1, -2).mT, 3, 4),
    "repeat": rows(lambda x: x.repeat(1, 2, 3), 1, 2),
    "repeat into more dims": rows(lambda x: x.repeat(1, 1, 2)[0].tile(3)[:, None].repeat_interleave(2, -1), 2),
    "pad and crop": rows(lambda x: F.pad(x, (-1, 2, 1, -1)), 3, 4),
    "pad with a number": rows(lambda x: F.pad(x, (1, 0), value=2.0).exp(), 3),
    "circular pad": rows(lambda x: F.pad(x, (1, 2), mode="circular"), 2, 4),
    "reflection pad": rows(lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"), 1, 3, 4),
    "flip": rows(lambda x: x.flip(-1, 1), 3, 4),
    "roll": rows(lambda x: x.roll((1, -2, 1), (1, -1, 1)), 3, 4),
    "roll of one": rows(lambda x: x.roll(1), 1, batch=1),
    "roll flat": rows(lambda x: x.roll(2) * x, 5, batch=1),
    "rot90": rows(lambda x: x.rot90(1, (1, 2)), 3, 4),
    "diagonal": rows(lambda x: x.diagonal(1, -2, -1), 3, 4),
    "diag_embed": rows(lambda x: torch.diag_embed(x, -1), 3),
    "triangles": rows(lambda x: x.tril(-1) + x.triu(1), 3, 4),
    "unfold": rows(lambda x: x.unfold(-1, 3, 2), 7),
    "patches": rows(lambda x: F.fold(F.unfold(x, 2), (3, 4), 2), 1, 3, 4),
    "pixel shuffle": rows(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2).sin(), 2), 4, 2, 2),
    "channel shuffle": rows(lambda x: F.channel_shuffle(x, 2), 4, 2, 2),
    "strides read": rows(lambda x: x.exp().as_strided((3, 2, 2), (4, 2, 1)), 4),
    "strides read of a transpose": rows(lambda x: x.exp().transpose(1, 2).as_strided((3, 2), (4, 3)), 2, 2),
    # Indices.
    "index": rows(lambda x: x[:, LONG], 4, 2),
    "index by pairs": rows(lambda x: x[:, LONG[:2], -LONG[1:3]], 4, 4),
    "index by a mask": rows(lambda x: x[:, torch.tensor([True, False, True])], 3, 2),
    "index of size 1": rows(lambda x: x[:, torch.tensor([0, 0, 0])], 1, 2),
    "index_select of size 1": rows(lambda x: x.index_select(1, torch.tensor([0, 0])), 1, 2),
    "index_select, a scalar": rows(lambda x: x.index_select(-1, torch.tensor(1)), 3, 2),
    "gather": rows(lambda x: x.gather(1, INDEX), 3, 2),
    "gather by what varies": rows(lambda x: x.gather(-1, x.argsort(-1)[..., :2]), 3, 4),
    "scatter": rows(lambda x: x.scatter(1, torch.tensor([[0, 2]] * 3), x[:, 1:3].exp()), 4),
    "scatter of a number": rows(lambda x: x.scatter(-1, torch.tensor([[0, 2]] * 3), 5.0), 4),
    "scatter_add": rows(lambda x: x.scatter_add(1, torch.tensor([[0, 2, 2]] * 3), x[:, 1:].exp()), 4),
    "index_add, alpha": rows(lambda x: x.index_add(-1, LONG, x.exp(), alpha=-2), 4),
    "index_add, alpha 0": rows(lambda x: x.index_add(-1, LONG, x.exp(), alpha=0), 4),
    "index_copy": rows(lambda x: x.index_copy(1, torch.tensor([3, 0]), x[:, :2].exp()), 4),
    "index_put": rows(lambda x: _put(x), 4),
    "written into": rows(lambda x: _written(x), 4),
    # Products.
    "addmm, beta and alpha": rows(lambda x: torch.addmm(x[:, :2], x, fixed((4, 2), 1), beta=0.5, alpha=-2), 4),
    "addmm, beta 0": rows(lambda x: torch.addmm(x[:, :2], x, fixed((4, 2), 1), beta=0), 4),
    "baddbmm": rows(lambda x: torch.baddbmm(x, x.exp(), x.mT, beta=2, alpha=3), 3, 3),
    "inverse": rows(lambda x: (x + 3 * torch.eye(3, dtype=x.dtype)).inverse(), 3, 3),
    "determinant": rows(lambda x: (x + 3 * torch.eye(3, dtype=x.dtype)).det()[:, None] * x[:, 0], 3, 3),
    "solve": rows(lambda x: torch.linalg.solve(x + 3 * torch.eye(3, dtype=x.dtype), x[..., :2].exp()), 3, 3),
    "solve for vectors": rows(lambda x: torch.linalg.solve(x + 3 * torch.eye(3, dtype=x.dtype), x[..., 0]), 3, 3),
    "distances": rows(lambda x: torch.cdist(x, x.flip(1).exp()), 3, 4),
    "cross": rows(lambda x: torch.linalg.cross(x, x.exp()), 2, 3),
    "bilinear": rows(lambda x: F.bilinear(x, x.exp(), fixed((2, 3, 3), 1)), 3),
}


def _written(x: Tensor) -> Tensor:
    y = x.exp() + 1
    y[:, 1::2] *= x[:, :2]
    y[:, 0] = x[:, -1] ** 2
    y.clamp_(min=0.3)
    return y


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, torch.tensor([0, 2])] = x[:, 1:3].exp()
    return y


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_rule_agrees_with_backward_passes(name: str) -> None:
    if name == "aminmax" and "NotImplemented" in torch.aminmax(torch.ones(1, requires_grad=True)).min.grad_fn.name():
        pytest.skip("this torch has no derivative for it: J is taken by differences")
    function, x = CASES[name]()
    bound = 1e-5 if "single" in name or "dtype" in name else 1e-12  # some eighty roundings
    got, truth = both(lambda x: function(vary(x)), x)
    assert truth.any()
    assert error(got, truth) < bound
    alone, truth = both(function, x)  # the identity itself meets the rule
    assert error(alone, truth) < bound


GAPS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "statistics of a layer norm": (lambda x: _stats(torch.native_layer_norm(x, (4,), None, None, 1e-5)), (4,)),
    "only the mean of a layer norm": (lambda x: torch.native_layer_norm(x, (4,), None, None, 1e-5)[1], (4,)),
    "statistics of a group norm": (
        lambda x: torch.native_group_norm(x, None, None, len(x), 4, 3, 2, 1e-5)[2].exp(),
        (4, 3),
    ),
    "distances between samples": (lambda x: torch.cdist(x, x.exp()), (4,)),
    "one matrix of all": (lambda x: (x + 3 * torch.eye(3, dtype=x.dtype)).inverse(), (3,)),
    "one system of all": (lambda x: torch.linalg.solve(3 * torch.eye(3, dtype=x.dtype) + 1, x), (2,)),
    "renormalised over the samples": (lambda x: torch.renorm(x, 2, 1, 0.5), (3,)),
    "pairs of samples": (lambda x: F.pdist(x), (4,)),
    "strides read beyond": (lambda x: x.exp()[:, :2].as_strided((3, 3), (4, 1)), (4,)),
}


def _stats(results: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    out, mean, deviation = results
    return out + mean * deviation


@pytest.mark.parametrize("name", GAPS)
def test_what_no_rule_covers_is_a_gap_and_never_a_zero(name: str) -> None:
    function, sample = GAPS[name]
    with pytest.raises(MethodGap):
        both(function, normal((3, *sample), 5))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_vectors_take_the_dtype_of_the_activation() -> None:
    """Half precision within: every product is of one dtype, as in the model itself."""

    def function(x: Tensor) -> Tensor:
        h = F.linear(x.to(torch.bfloat16), fixed((6, 4), 1).to(torch.bfloat16)).tanh()
        h = F.layer_norm(h, (6,)).softmax(-1)
        return F.linear(h.to(x.dtype), fixed((3, 6), 2).to(x.dtype)).exp()

    for dtype in (torch.float64, torch.float32):
        got, truth = both(function, normal((3, 4), 5).to(dtype))
        assert got.dtype == truth.dtype == dtype
        assert error(got, truth) < 5e-2


def test_bits_read_as_other_numbers_have_no_derivative() -> None:
    got, truth = both(lambda x: (x.view(torch.float32) * 2).double()[:, :4] + x, normal((3, 4), 5))
    assert error(got, truth) == 0


def test_division_by_zero_is_not_an_error() -> None:
    got, truth = both(lambda x: x / 0, normal((2, 3), 1))
    assert torch.equal(got.isinf(), truth.isinf())


def test_scaling_held_back_stays_before_a_change_of_dtype() -> None:
    """A factor beyond single precision, and its inverse after the change."""
    got, truth = both(lambda x: ((x * 1e-30) * 1e-20 * 1e50).float().double(), normal((2, 3), 1))
    assert error(got, truth) < 1e-6


def test_constants_written_into_are_made_anew_in_every_run() -> None:
    """A constant copied into another shape, then scaled in place: a second run must not find it scaled."""
    constant, x, there = fixed((3, 4, 2), 1), normal((1, 4), 1), normal((1, 4), 2)
    tracer = Tracer()
    x_slot = tracer.adopt(x, True)
    with torch.no_grad(), tracer:
        made = torch.ops.aten._unsafe_view.default((constant * 2).transpose(0, 1).contiguous(), [4, 6])
        made.mul_(x.t())
    program = generate(remove_dead_code(Instructions(tracer.instructions, [x_slot], [tracer.variable_of(made)])))
    for point in (there, x, there):
        truth = (constant * 2).transpose(0, 1).reshape(4, 6) * point.t()
        assert torch.equal(program.call(point, torch.empty(24, dtype=x.dtype))[0].view(4, 6), truth)
