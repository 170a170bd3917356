"""Derivatives through a ScriptNetwork against the same network in float64 eager mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.script_nets import scenario

# Networks of one differentiable input whose output is, or starts with, a tensor.
NAMES = [
    "chain", "chain traced", "twice", "twice traced", "control", "state", "named tuple", "in place",
    "in place traced", "attention", "encoder", "encoder traced", "encoder norm first", "images",
    "images traced", "dynamic",
]  # fmt: skip

NO_VMAP = {"control"}  # asks for a number out of a tensor
NO_EAGER_VMAP = NO_VMAP | {"in place", "in place traced"}


def first(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = value[0]
    return value


def truth(eager: torch.nn.Module, args: Any) -> tuple[Tensor, Tensor]:
    """The whole Jacobian ``(n_out, n_in)`` in float64, row by row, and the input."""
    double = copy.deepcopy(eager).double()
    for name, value in list(vars(double).items()):
        if isinstance(value, Tensor):
            setattr(double, name, value.double())
    x = args[0].double().requires_grad_()
    out = first(double(x.clone(), *args[1:]))
    rows = [torch.autograd.grad(o, x, retain_graph=True)[0].flatten() for o in out.flatten()]
    return torch.stack(rows), x.detach()


def close(a: Tensor, b: Tensor) -> None:
    assert (a.double() - b).norm() <= 1e-4 * b.norm().clamp_min(1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_jacobians_agree(name: str) -> None:
    eager, module, args = scenario(name)
    J, _ = truth(eager, args)
    network = ScriptNetwork(module)

    def f(x: Tensor) -> Tensor:
        return first(network.run((x, *args[1:]), {})).flatten()

    with network.session(), sdpa_kernel(SDPBackend.MATH):
        x = args[0].clone().requires_grad_()
        out = f(x)
        eye = torch.eye(out.numel())
        for _ in range(3):  # TorchScript's own executor goes wrong from the second call on
            rows = torch.stack([torch.autograd.grad(out, x, v, retain_graph=True)[0].flatten() for v in eye])
            close(rows, J)
            tangents = torch.eye(x.numel()).reshape(-1, *x.shape)
            columns = torch.stack([torch.func.jvp(f, (args[0],), (t,))[1] for t in tangents], 1)
            close(columns, J)
        if name not in NO_VMAP:
            (batched,) = torch.autograd.grad(out, x, eye, is_grads_batched=True)
            close(batched.flatten(1), J)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_EAGER_VMAP])
def test_vmapped_transforms_agree(name: str) -> None:
    eager, module, args = scenario(name)
    J, _ = truth(eager, args)
    network = ScriptNetwork(module)

    def f(x: Tensor) -> Tensor:
        return first(network.run((x, *args[1:]), {})).flatten()

    with network.session(), sdpa_kernel(SDPBackend.MATH):
        close(torch.func.jacfwd(f)(args[0]).flatten(1), J)
        close(torch.func.jacrev(f)(args[0]).flatten(1), J)


def test_second_derivatives_agree() -> None:
    eager, module, args = scenario("twice")
    network = ScriptNetwork(module)

    def squared(run: Any, x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(run(x).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    double = copy.deepcopy(eager).double()
    want = squared(double, args[0].double().requires_grad_())
    with network.session():
        close(squared(lambda x: network.run((x,), {}), args[0].clone().requires_grad_()), want)


def test_parameters_get_gradients_outside_a_session() -> None:
    eager, module, args = scenario("chain")
    network = ScriptNetwork(module)
    ours = torch.autograd.grad(network.run(args, {}).sum(), list(network.tensors()))
    theirs = torch.autograd.grad(eager(*args).sum(), list(eager.parameters()))
    torch.testing.assert_close(ours, theirs)
