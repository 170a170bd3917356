"""``graph_jacobian`` against loops of one-hot backward passes, torch's own functions and closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.fx.experimental.symbolic_shapes  # so that batched passes are taken: see test_a_first_call_imports_nothing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import jaccli
from jaccli import graph_jacobian
from jaccli.autograd import products
from jaccli.autograd.sample_mixing import separating_sets
from jaccli.backward_graph import jacobian_of_tensors as existing
from jaccli.backward_graph import passes

F64 = torch.float64
functional = torch.autograd.functional


def leaf(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def matrix(*shape: int, seed: int = 9) -> Tensor:
    return leaf(*shape, seed=seed).detach()


def oracle(y: Tensor, x: Tensor) -> Tensor:
    """One-hot cotangents, one after the other."""
    rows = []
    for o in range(y.numel()):
        u = torch.zeros(y.numel(), dtype=y.dtype)
        u[o] = 1
        (row,) = torch.autograd.grad(y, x, u.reshape(y.shape), retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(x) if row is None else row)
    return torch.stack(rows).reshape(y.shape + x.shape)


def own_blocks(y: Tensor, x: Tensor) -> Tensor:
    """Each sample's block of the whole Jacobian, the other samples held."""
    b = len(y)
    whole = oracle(y, x).reshape(b, -1, b, x[0].numel())
    return torch.stack([whole[i, :, i] for i in range(b)])


@contextmanager
def heard() -> Iterator[dict[str, list[str]]]:
    """What jaccli said: ``warnings`` and ``notes``."""
    said: dict[str, list[str]] = {"warnings": [], "notes": []}
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        yield said
    for record in records:
        assert "batching rule" not in str(record.message)
        if issubclass(record.category, jaccli.JaccliWarning):
            said["notes" if issubclass(record.category, jaccli.JaccliNote) else "warnings"].append(str(record.message))


@contextmanager
def silent() -> Iterator[None]:
    with heard() as said:
        yield
    assert said == {"warnings": [], "notes": []}


class Passes:
    """How many cotangents went back at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        inner = passes.AutogradGraph.vjps

        def counted(graph: Any, u: Tensor) -> list[Tensor]:
            self.sizes.append(len(u))
            return inner(graph, u)

        monkeypatch.setattr(passes.AutogradGraph, "vjps", counted)


def mlp(x: Tensor, n_out: int) -> Tensor:
    n = x.shape[-1]
    return torch.tanh(torch.sin(x @ matrix(n, 6)) @ matrix(6, n_out)) * x.sum(-1, keepdim=True)


WAYS = [pytest.param(n_out, chunk, id=f"{n_out}-{chunk}") for n_out in (2, 5, 40) for chunk in (None, 1, 3)]


# ---------------------------------------------------------------- values and shapes


@pytest.mark.parametrize(("n_out", "chunk"), WAYS)
def test_agrees_with_the_oracle(n_out: int, chunk: int | None) -> None:
    x = leaf(5)
    y = mlp(x, n_out)
    with silent():
        J = graph_jacobian(y, x, chunk=chunk)
    assert J.shape == (n_out, 5)
    assert J.is_contiguous()
    assert not J.requires_grad
    torch.testing.assert_close(J, oracle(y, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("n_out", "expected"), [(19, [1, 19]), (20, [1, 1, 5])])
def test_columns_where_they_are_few(n_out: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf(5)
    y = mlp(x, n_out)
    wanted, passes = oracle(y, x), Passes(monkeypatch)
    torch.testing.assert_close(graph_jacobian(y, x), wanted)
    assert passes.sizes == expected  # evidence; the transposed graph; rows or columns


def test_chunks_keep_to_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf(8)
    y = (x[:, None] * matrix(1, 100)).sin() @ matrix(100, 2)
    wanted, passes = oracle(y, x), Passes(monkeypatch)
    monkeypatch.setattr(jaccli.defaults, "WORKING_SET", 5 * 4 * 8 * 100 * 8)  # five rows of four tensors (8, 100)
    torch.testing.assert_close(graph_jacobian(y, x), wanted)
    assert passes.sizes == [1, 5, 5, 5, 1]


def test_several_outputs_and_inputs_follow_torch() -> None:
    def f(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.outer(a, b).sin(), a.exp(), (a @ a) * b.sum()

    a, b = leaf(3), leaf(4, seed=1)
    outputs, wanted = f(a, b), functional.jacobian(f, (a, b))
    with heard() as said:
        found = graph_jacobian(outputs, [a, b])
    assert isinstance(found, tuple)
    assert all(isinstance(row, tuple) for row in found)
    torch.testing.assert_close(found, wanted)
    assert said["notes"] == ["outputs[1]: J is zero, no path leads there from inputs[1]"]
    torch.testing.assert_close(graph_jacobian(outputs[0], (a, b)), wanted[0])
    torch.testing.assert_close(graph_jacobian([outputs[0]], a), (wanted[0][0],))
    torch.testing.assert_close(graph_jacobian(outputs[2], b), wanted[2][1])
    assert graph_jacobian(outputs[2], b).shape == (4,)


def test_parameters_of_a_network() -> None:
    net, x = network(), leaf(1, 2, 6, 6).detach()
    y = net(x)[0, :3]
    parameters = list(net.parameters())
    with silent():
        J = graph_jacobian(y, parameters)
    assert len(J) == 5
    for j, parameter in zip(J, parameters, strict=True):
        torch.testing.assert_close(j, oracle(y, parameter))
    assert all(parameter.grad is None for parameter in parameters)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([None, 1, 2, 64]),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape(ins: list[int], outs: list[int], chunk: int | None, create_graph: bool, seed: int) -> None:
    x, z = leaf(*ins, seed=seed), leaf(2, seed=seed + 1)
    hidden = torch.tanh(x.reshape(-1) @ matrix(x.numel(), 4, seed=seed)) * z.prod()
    y = (hidden @ matrix(4, math.prod(outs), seed=seed)).reshape(outs)
    with silent():
        Jx, Jz = graph_jacobian(y, (x, z), create_graph, chunk=chunk)
    torch.testing.assert_close(Jx, oracle(y, x), check_layout=True)
    torch.testing.assert_close(Jz, oracle(y, z))
    assert Jx.requires_grad == create_graph


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 3), max_size=2),
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 99),
)
def test_any_batch(batch: int, ins: list[int], outs: list[int], chunk: int | None, seed: int) -> None:
    x = leaf(batch, *ins, seed=seed)
    n_in, n_out = math.prod(ins), math.prod(outs)
    y = torch.sin(x.reshape(batch, n_in) @ matrix(n_in, n_out, seed=seed)).reshape(batch, *outs)
    with silent():
        J = graph_jacobian(y, x, samples=True, chunk=chunk)
    assert J.shape == (batch, n_out, n_in)
    assert J.is_contiguous()
    torch.testing.assert_close(J, own_blocks(y, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_dtype(dtype: torch.dtype) -> None:
    x = leaf(6, dtype=dtype)
    y = torch.tanh(x * 2).repeat(2)
    J = graph_jacobian(y, x)
    assert J.dtype == dtype
    torch.testing.assert_close(J, oracle(y, x))


@pytest.mark.parametrize("n_out", [6, 30])
def test_the_inputs_dtype_where_the_outputs_is_another(n_out: int) -> None:
    x, z = leaf(3), leaf(3, dtype=torch.float32, seed=1)
    y = (x.float() * z).sin().repeat(n_out // 3)
    J = graph_jacobian(y, (x, z))
    assert [j.dtype for j in J] == [F64, torch.float32]
    torch.testing.assert_close(J, (oracle(y, x), oracle(y, z)))


def test_closed_forms() -> None:
    x = leaf(7)
    p = torch.softmax(x, 0)
    torch.testing.assert_close(graph_jacobian(p, x), (torch.diag(p) - torch.outer(p, p)).detach())
    torch.testing.assert_close(graph_jacobian(x, x), torch.eye(7, dtype=F64))
    torch.testing.assert_close(graph_jacobian((x @ x) / 2, x), x.detach())
    h = x * 3
    torch.testing.assert_close(graph_jacobian(h.square(), h), torch.diag(2 * h).detach())  # a result in between
    assert not any(graph_jacobian(h, h.square()).flatten())
    A = leaf(3, 3)
    wanted = -torch.einsum("ia,bj->ijab", A.inverse(), A.inverse()).detach()
    torch.testing.assert_close(graph_jacobian(A.inverse(), A), wanted)


def test_a_tensor_that_is_output_and_input_twice() -> None:
    x = leaf(4)
    (Jx, Jx2), (Jy, Jy2) = graph_jacobian((x, x.sin()), (x, x))
    torch.testing.assert_close(Jx, torch.eye(4, dtype=F64))
    torch.testing.assert_close(Jy, torch.diag(x.cos()).detach())
    assert torch.equal(Jx, Jx2)
    assert torch.equal(Jy, Jy2)
    Jy.zero_()
    assert Jy2.any()  # memory of its own


def test_results_do_not_share_memory_though_gradients_do() -> None:
    a, b = leaf(4), leaf(4, seed=1)
    for create_graph in (False, True):
        Ja, Jb = graph_jacobian(a + b, (a, b), create_graph)
        Ja.detach().zero_()
        assert Jb.any()


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize(("outs", "ins"), [((0,), (3,)), ((0, 2), (0, 3)), ((2, 0), (2, 3)), ((2, 3), (2, 0))])
def test_empty_tensors(outs: tuple[int, ...], ins: tuple[int, ...], samples: bool) -> None:
    x = torch.zeros(ins, dtype=F64, requires_grad=True)
    y = torch.zeros(outs, dtype=F64) + x.sum()
    if samples and outs[0] != ins[0]:
        with pytest.raises(jaccli.UsageError, match=r"inputs has 3 samples\n"):
            graph_jacobian(y, x, samples=True)
        return
    J = graph_jacobian(y, x, samples=samples)
    assert J.shape == ((ins[0], math.prod(outs[1:]), math.prod(ins[1:])) if samples else (*outs, *ins))


# ---------------------------------------------------------------- derivatives of J


def quartic(x: Tensor) -> Tensor:
    return ((x @ matrix(len(x), len(x))) ** 2 * x.exp()).sum()


def test_hessian() -> None:
    x = leaf(5)
    (grad,) = torch.autograd.grad(quartic(x), x, create_graph=True)
    with silent():
        H = graph_jacobian(grad, x)
    torch.testing.assert_close(H, functional.hessian(quartic, x))


@pytest.mark.parametrize("chunk", [None, 1])
def test_hessian_by_two_calls_and_a_third_derivative(chunk: int | None) -> None:
    x = leaf(4)
    grad = graph_jacobian(quartic(x), x, create_graph=True)
    H = graph_jacobian(grad, x, create_graph=True, chunk=chunk)
    torch.testing.assert_close(H, functional.hessian(quartic, x))
    third = graph_jacobian(H, x, chunk=chunk)
    wanted = functional.jacobian(lambda t: functional.hessian(quartic, t, create_graph=True), x)
    torch.testing.assert_close(third, wanted)
    assert third.abs().max() > 1e-3
    assert not third.requires_grad


@pytest.mark.parametrize(("n_out", "chunk"), WAYS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_loss_on_the_jacobian(n_out: int, chunk: int | None, mode: Callable[[], Any]) -> None:
    x, w = leaf(5), leaf(5, seed=3)
    y = mlp(x * w, n_out)
    with mode():
        J = graph_jacobian(y, x, create_graph=True, chunk=chunk)
    assert J.requires_grad
    assert not J.is_inference()
    found = torch.autograd.grad(J.square().sum(), (w, x))

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return functional.jacobian(lambda t: mlp(t * w, n_out), x, create_graph=True).square().sum()

    torch.testing.assert_close(found, torch.autograd.grad(loss(w, x), (w, x)))


def test_a_loss_on_jacobians_of_samples_that_mix() -> None:
    x = leaf(3, 2)
    y = (x * x.cumsum(0)).sin()
    J = graph_jacobian(y, x, create_graph=True, samples=True)
    whole = functional.jacobian(lambda t: (t * t.cumsum(0)).sin(), x, create_graph=True)
    blocks = torch.stack([whole[i, :, i] for i in range(3)])
    torch.testing.assert_close(J, blocks)
    found, wanted = (torch.autograd.grad(j.pow(3).sum(), x)[0] for j in (J, blocks))
    torch.testing.assert_close(found, wanted)


# ---------------------------------------------------------------- the caller's graph


@pytest.mark.parametrize("n_out", [2, 5, 40])
def test_the_callers_autocast_is_set_aside(n_out: int) -> None:
    x = leaf(5, dtype=torch.float32)
    w = leaf(5, n_out, dtype=torch.float32).detach()
    y = (x @ w).sin() @ leaf(n_out, n_out, dtype=torch.float32).detach()
    wanted = oracle(y, x)
    with torch.autocast("cpu", dtype=torch.bfloat16), silent():
        J = graph_jacobian(y, x)
    torch.testing.assert_close(J, wanted)


def test_a_graph_made_under_autocast() -> None:
    x, net = leaf(6, dtype=torch.float32), nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    J = graph_jacobian(y, x)
    assert J.dtype == torch.float32
    torch.testing.assert_close(J, oracle(y, x), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("n_out", [2, 5, 40])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_graph_stays_and_no_grad_is_touched(n_out: int, mode: Callable[[], Any]) -> None:
    x = leaf(5)
    x.grad = torch.full_like(x, 7)
    h = x.exp()
    y = mlp(h, n_out)
    h.retain_grad()
    y.retain_grad()
    y.grad = torch.full_like(y, 3)
    version, state = x._version, torch.get_rng_state()
    with mode():
        first = graph_jacobian(y, (x, h))
        second = graph_jacobian(y, (x, h))
    assert not first[0].is_inference()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(x.grad, torch.full_like(x, 7))
    assert h.grad is None
    assert torch.equal(y.grad, torch.full_like(y, 3))
    assert x._version == version
    assert torch.equal(torch.get_rng_state(), state)
    y.sum().backward()
    torch.testing.assert_close(x.grad - 7, first[0].sum(0))
    torch.testing.assert_close(h.grad, first[1].sum(0))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("n_out", [2, 5, 40])
def test_before_anything_is_imported(n_out: int, create_graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call does as others do, but row by row, and never hands torch a cotangent."""
    x = leaf(5)
    y = mlp(x, n_out)
    wanted = oracle(y, x)
    for module in (existing, products):
        monkeypatch.setattr(module, "batching_imported", lambda: False)
    inner = torch.autograd.grad

    def grad(of: Tensor, by: Any, u: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        assert u is None
        return inner(of, by, u, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    J = graph_jacobian(y, x, create_graph)
    monkeypatch.undo()
    torch.testing.assert_close(J.detach(), wanted)
    if create_graph:
        loss = functional.jacobian(lambda t: mlp(t, n_out), x, create_graph=True).square().sum()
        torch.testing.assert_close(inner(J.square().sum(), x), inner(loss, x))


def test_no_graph_is_kept_of_the_result() -> None:
    x = leaf(3)
    J = graph_jacobian(x.sin() * x.sum(), x)
    assert J.grad_fn is None
    assert not J.requires_grad


def test_a_freed_graph() -> None:
    x = leaf(3)
    y = x.exp().repeat(2)
    y.sum().backward()
    with pytest.raises(jaccli.UsageError, match=r"outputs has been freed\n.*\n.*retain_graph=True"):
        graph_jacobian(y, x)


def test_a_graph_modified_in_place() -> None:
    x = leaf(3)
    h = x.exp()
    y = h.sin().repeat(2)
    h.mul_(2)
    with pytest.raises(jaccli.UsageError, match=r"modified in place.*\n.*\n.*clone"):
        graph_jacobian((y,), x)


def test_in_place_operations_of_the_graph_itself() -> None:
    x = leaf(4)
    y = x * 2
    y[1:].mul_(x[:3])
    y += x.sin()
    torch.testing.assert_close(graph_jacobian(y, x), oracle(y, x))


# ---------------------------------------------------------------- what has no path


def test_unused_inputs_are_zero() -> None:
    x, z = leaf(3), leaf(2, 2, dtype=torch.float32)
    y = x.sin()
    for create_graph in (False, True):
        with heard() as said:
            J = graph_jacobian(y, (z, x), create_graph)
        assert (J[0].shape, J[0].dtype) == ((3, 2, 2), torch.float32)
        assert not J[0].any()
        torch.testing.assert_close(J[1].detach(), torch.diag(x.cos()).detach())
        assert said == {"warnings": [], "notes": ["outputs: J is zero, no path leads there from inputs[0]"]}


def test_an_input_made_after_the_output() -> None:
    x = leaf(2, 3)
    with heard() as said:
        assert not graph_jacobian(x.sin(), x[0]).any()
    assert "made after the output" in said["notes"][0]


@pytest.mark.parametrize("make", [torch.no_grad, torch.inference_mode])
def test_an_output_without_a_graph(make: Callable[[], Any]) -> None:
    x = leaf(3)
    with make():
        y = x.sin()
    with heard() as said:
        lost, kept = graph_jacobian((y, x.sin()), x)
    assert said == {
        "warnings": ["outputs[0] has no graph, J is zero: was it computed under no_grad, or detached?"],
        "notes": [],
    }
    assert torch.equal(lost, torch.zeros(3, 3, dtype=F64))
    assert not lost.is_inference()
    assert kept.any()


# ---------------------------------------------------------------- samples


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(3), nn.Flatten(), nn.Linear(48, 5), nn.Tanh()).to(F64)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_batch_of_a_network(chunk: int | None) -> None:
    x, net = leaf(4, 2, 6, 6), network()
    y = net(x)
    with silent():
        J, Jw = graph_jacobian(y, (x, x), samples=True, chunk=chunk)
    assert J.shape == (4, 5, 72)
    torch.testing.assert_close(J, own_blocks(y, x))
    assert torch.equal(J, Jw)
    torch.testing.assert_close(J, jaccli.jacobian(net, x.detach()))


@pytest.mark.parametrize(
    ("batch", "n_out", "checks"), [(1, 6, 1), (2, 6, 2), (6, 6, 4), (70, 10, 8), (70, 3, 2), (70, 1, 2)]
)
def test_cost_of_a_batch(batch: int, n_out: int, checks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """n_out passes and some that check, not batch * n_out."""
    x = leaf(batch, 4)
    y = torch.sin(x @ matrix(4, n_out))
    passes = Passes(monkeypatch)
    graph_jacobian(y, x, samples=True, chunk=1)
    assert passes.sizes == [1] * (checks + n_out)


def test_each_two_samples_are_told_apart() -> None:
    for batch in [*range(2, 40), 252, 253]:
        sets = separating_sets(batch, 99)
        told_apart = (sets[:, :, None] & ~sets[:, None, :]).any(0)
        assert torch.equal(told_apart, ~torch.eye(batch, dtype=torch.bool))
        assert sets.any(1).all()


def shifted(x: Tensor, by: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:by]), x[:-by]])


def one_pair(x: Tensor) -> Tensor:
    """Sample 5 hangs, a little, on sample 3."""
    return x.sin() + 1e-9 * (torch.arange(len(x)) == 5)[:, None] * x[3]


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "batch-norm": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "softmax": lambda x: torch.softmax(x, 0),
    "flip": lambda x: x.flip(0).sin(),
    "flip-added": lambda x: x.flip(0) * x,
    "cumsum": lambda x: x.cumsum(0).tanh(),
    "two-before": lambda x: x.sin() * shifted(x, 2).cos(),
    "four-before": lambda x: x.sin() * shifted(x, 4).cos(),
    "sum": lambda x: x.sin() * x.sum(0),
    "one-pair": one_pair,
    "sorted": lambda x: x.sort(0).values ** 2,
}


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("n_out", [1, 3, 16])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_mix(name: str, n_out: int, chunk: int | None) -> None:
    if name == "one-pair" and n_out < 4:
        pytest.skip("so few rows leave room for two checks, which show no influence as small as that")
    x = leaf(6, 3)
    y = torch.cat([MIXING[name](x)] * 6, 1)[:, :n_out] * torch.arange(1, n_out + 1)
    with heard() as said:
        J = graph_jacobian(y, x, samples=True, chunk=chunk)
    torch.testing.assert_close(J, own_blocks(y, x))
    assert len(said["warnings"]) == 1, said
    assert said["warnings"][0].startswith("outputs: samples mix: ")
    assert said["notes"] == []


@pytest.mark.parametrize("second_on_first", [False, True])
def test_two_samples_of_which_one_hangs_on_the_other(second_on_first: bool) -> None:
    x = leaf(2, 3)
    one, two = (x[:1], x[1:] * x[:1]) if second_on_first else (x[:1] * x[1:], x[1:])
    y = torch.cat([one, two]).sin()
    with heard() as said:
        J = graph_jacobian(y, x, samples=True)
    assert any("samples mix" in text for text in said["warnings"])
    torch.testing.assert_close(J, own_blocks(y, x))


def test_only_the_output_that_mixes_is_taken_apart() -> None:
    x, z = leaf(4, 3), leaf(4, 2, seed=1)
    outputs = (x.sin() * z.sum(1, keepdim=True), z.cumsum(0).sin())
    with heard() as said:
        J = graph_jacobian(outputs, (x, z), samples=True)
    for row, y in zip(J, outputs, strict=True):
        for j, t in zip(row, (x, z), strict=True):
            torch.testing.assert_close(j, own_blocks(y, t))
    assert [text[:24] for text in said["warnings"]] == ["outputs[1]: samples mix:"]


def test_samples_of_infinite_values_do_not_mix() -> None:
    x = torch.tensor([[0.0], [4.0], [9.0]], dtype=F64, requires_grad=True)
    with silent():
        J = graph_jacobian(x.sqrt().repeat(1, 4), x, samples=True)
    assert J[0].isinf().all()
    torch.testing.assert_close(J[1:, 0, 0], torch.tensor([1 / 4, 1 / 6], dtype=F64))


# ---------------------------------------------------------------- operators that are hard on batched passes


class Stubborn(torch.autograd.Function):
    """A square whose backward pass looks at its cotangent, which vmap cannot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        assert float(grad.sum()) < 1e9
        return 2 * ctx.saved_tensors[0] * grad


class Once(Stubborn):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Detached(Stubborn):
    """Its gradient is no tensor of a graph, and nobody says so."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad.detach()


class HalfDetached(Stubborn):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grad.detach() + ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("n_out", [4, 32])
def test_a_function_that_vmap_cannot_do(n_out: int, create_graph: bool) -> None:
    x = leaf(4)
    y = torch.sin(Stubborn.apply(x) @ matrix(4, n_out))
    with heard() as said:
        J = graph_jacobian(y, x, create_graph)
    torch.testing.assert_close(J.detach(), oracle(y, x))
    assert said["warnings"] == []
    assert [text[:35] for text in said["notes"]] == ["outputs: taken by rows one by one: "] * (n_out == 4)


@pytest.mark.parametrize("function", [Once.apply, Detached.apply, lambda x: Once.apply(x) * x.cos()])
def test_columns_need_a_second_derivative(function: Callable[[Tensor], Tensor]) -> None:
    x = leaf(3)
    y = torch.sin(function(x) @ matrix(3, 20))
    with heard() as said:
        J = graph_jacobian(y, x)
    torch.testing.assert_close(J, oracle(y, x))
    assert said["warnings"] == []
    assert said["notes"][0].startswith("outputs: taken by rows")


def test_a_second_derivative_that_is_wrong() -> None:
    x = leaf(3)
    y = torch.sin(HalfDetached.apply(x) @ matrix(3, 20))
    with heard() as said:
        J = graph_jacobian(y, x)
    torch.testing.assert_close(J, oracle(y, x))
    assert [text for text in said["warnings"] if "off an independent backward pass" in text]


def test_the_gradient_of_a_function_with_one_derivative() -> None:
    x = leaf(3)
    (grad,) = torch.autograd.grad(Once.apply(x).sin().sum(), x, create_graph=True)
    with pytest.raises(jaccli.UnsupportedError, match="once_differentiable"):
        graph_jacobian(grad, x)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("n_out", [6, 32])
def test_batched_passes_that_are_wrong(n_out: int, samples: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf(4, 3)
    y = torch.sin(x @ matrix(3, n_out))
    wanted = own_blocks(y, x) if samples else oracle(y, x)
    inner = passes.AutogradGraph.vjps
    monkeypatch.setattr(
        passes.AutogradGraph, "vjps", lambda graph, u: [row * (1 + 1e-3 * (len(u) > 1)) for row in inner(graph, u)]
    )
    with heard() as said:
        J = graph_jacobian(y, x, samples=samples)
    torch.testing.assert_close(J, wanted)
    assert len(said["warnings"]) == 1
    assert "it was taken again row by row" in said["warnings"][0]


def test_batched_passes_that_are_wrong_where_samples_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf(4, 3)
    y = x.cumsum(0).sin()
    wanted, inner = own_blocks(y, x), passes.AutogradGraph.vjps
    monkeypatch.setattr(
        passes.AutogradGraph, "vjps", lambda graph, u: [row * (1 + (len(u) > 1)) for row in inner(graph, u)]
    )
    with heard() as said:
        J = graph_jacobian(y, x, samples=True)
    torch.testing.assert_close(J, wanted)
    assert [text.split()[1] for text in said["warnings"]] == ["samples", "J"]


def test_backward_passes_that_are_not_linear() -> None:
    x = leaf(6)
    h = x.sin()
    h.register_hook(lambda grad: grad.clamp(-0.5, 0.5))
    with heard() as said:
        graph_jacobian(h.cumsum(0), x)
    assert len(said["warnings"]) == 1


def test_rounding_is_no_disagreement() -> None:
    """Sums of probabilities: the true J is zero, and what comes out is rounding."""
    x = leaf(8, 50, dtype=torch.float32)
    y = torch.softmax(x, 1).sum(1, keepdim=True).expand(8, 4)
    for samples in (False, True):
        with heard() as said:
            J = graph_jacobian(y, x, samples=samples)
        assert J.abs().max() < 1e-6
        assert [text for text in said["warnings"] if "rounding" not in text] == []
        assert len(said["warnings"]) == 1


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU])
def test_recurrent(module: Any, dtype: torch.dtype, create_graph: bool) -> None:
    torch.manual_seed(0)
    net, x = module(3, 4, num_layers=2, bidirectional=True, batch_first=True).to(dtype), leaf(2, 3, 3, dtype=dtype)
    y = net(x)[0]
    J = graph_jacobian(y, x, create_graph)
    torch.testing.assert_close(J.detach(), oracle(y, x))
    torch.testing.assert_close(graph_jacobian(y, x, samples=True), own_blocks(y, x))


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0, x.sin(), x**2),
    "prelu": lambda x: nn.functional.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)),
    "max-pool": lambda x: nn.functional.max_pool2d(x, 2),
    "bicubic": lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bicubic").sin(),
    "grid-sample": lambda x: nn.functional.grid_sample(x, matrix(2, 8, 8, 2).tanh(), align_corners=False),
    "group-norm": lambda x: nn.functional.group_norm(x, 2),
    "cumprod": lambda x: x.cumprod(-1),
    "index": lambda x: x[..., [0, 0, 2]] * x[..., [1, 2, 3]],
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "svd": lambda x: torch.linalg.svdvals(x),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x, x.sin(), x.cos()),
    "cdist": lambda x: torch.cdist(x, x.sin()),
    "unfold": lambda x: nn.functional.unfold(x, 2).sin(),
    "pdist": lambda x: nn.functional.pdist(x[0, 0]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    x = leaf(2, 4, 4, 4)
    y = OPERATORS[name](x)
    with heard() as said:
        J = graph_jacobian(y, x)
    torch.testing.assert_close(J, oracle(y, x))
    assert said["warnings"] == []


def test_checkpoints() -> None:
    from torch.utils.checkpoint import checkpoint

    x = leaf(4, 3)
    y = checkpoint(lambda t: nn.functional.dropout(t.sin(), 0.5) * t, x, use_reentrant=False)
    torch.testing.assert_close(graph_jacobian(y, x), oracle(y, x))
    y = checkpoint(torch.sin, x, use_reentrant=True)
    with pytest.raises(jaccli.UnsupportedError, match="use_reentrant"):
        graph_jacobian(y, x)


def test_a_sparse_gradient() -> None:
    table = nn.Embedding(5, 3, sparse=True, dtype=F64)
    y = table(torch.tensor([4, 1, 4])).sin()
    J = graph_jacobian(y, table.weight)
    dense = nn.functional.embedding(torch.tensor([4, 1, 4]), table.weight).sin()
    torch.testing.assert_close(J, oracle(dense, table.weight))


# ---------------------------------------------------------------- refusals


def bad(**kwargs: Any) -> dict[str, Any]:
    x = leaf(3)
    return {"outputs": x.sin(), "inputs": x, **kwargs}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (bad(outputs=3), jaccli.UsageError, "outputs is a int"),
        (bad(outputs=["x"]), jaccli.UsageError, r"outputs\[0\] is a str"),
        (bad(inputs=()), jaccli.UsageError, "inputs is empty"),
        (bad(outputs=[]), jaccli.UsageError, "outputs is empty"),
        (bad(outputs=torch.arange(3)), jaccli.UsageError, r"outputs holds torch.int64"),
        (bad(inputs=[leaf(2), torch.ones(2)]), jaccli.UsageError, r"inputs\[1\] does not require gradients"),
        (bad(inputs=torch.ones(2, dtype=torch.bool)), jaccli.UsageError, "inputs holds torch.bool"),
        (bad(outputs=leaf(3) * 1j), jaccli.UnsupportedError, "outputs is complex"),
        (bad(inputs=[leaf(2).cfloat()]), jaccli.UnsupportedError, r"inputs\[0\] is complex"),
        (bad(inputs=torch.eye(2).to_sparse().requires_grad_()), jaccli.UnsupportedError, "inputs is sparse"),
        (bad(chunk=0), jaccli.UsageError, "chunk=0"),
        (bad(samples=True, outputs=leaf()), jaccli.UsageError, "outputs has no dimension for samples"),
        (bad(samples=True, inputs=[leaf(3), leaf(4)]), jaccli.UsageError, r"inputs\[1\] has 4 samples"),
    ],
)
def test_refusals(call: dict[str, Any], error: type[jaccli.JaccliError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        graph_jacobian(**call)
    assert 2 <= len(str(caught.value).splitlines()) <= 3


def test_an_operator_without_a_derivative() -> None:
    x = leaf(3)
    y = torch.special.gammaincc(x.exp(), x.exp())
    with pytest.raises(jaccli.UnsupportedError, match="derivative for 'igammac: input' is not implemented"):
        graph_jacobian(y, x)


def test_an_error_of_a_function_of_the_user() -> None:
    class Broken(Stubborn):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise KeyError("lost")

    x = leaf(3)
    with pytest.raises(jaccli.UnsupportedError, match="KeyError: 'lost'") as caught:
        graph_jacobian(Broken.apply(x), x)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(("size", "free"), [(2**22, 2**60), (2**12, 2**26)], ids=["allocated", "foreseen"])
def test_a_jacobian_that_does_not_fit(size: int, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf(size)
    monkeypatch.setattr(existing, "available", lambda device: free)
    with pytest.raises(jaccli.ResourceError, match="out of memory"):
        graph_jacobian(x.sin(), x)


def test_a_warning_made_an_error_stays_one() -> None:
    x = leaf(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(jaccli.JaccliWarning, match="samples mix"):
            graph_jacobian(x.cumsum(0), x, samples=True)


def test_a_first_call_imports_nothing() -> None:
    code = """
import sys, torch, jaccli
x = torch.randn(30, requires_grad=True)
J = jaccli.graph_jacobian(x.sin() * x.sum(), x)
assert (J - torch.diag(x.cos() * x.sum()) - x.sin()[:, None]).abs().max() < 1e-5
print("torch.fx.experimental.symbolic_shapes" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
