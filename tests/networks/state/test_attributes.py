"""Whatever a forward pass changes beside parameters is as it was: submodules, hooks, objects, arrays, settings."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.names import METHOD_NAMES
from tests.oracle import error

pytestmark = pytest.mark.filterwarnings("ignore")


class Cache:
    """What a decoder keeps between calls."""

    def __init__(self) -> None:
        self.gain, self.calls = torch.ones(4, dtype=torch.float64), 0
        self.layers = [SimpleNamespace(scale=torch.ones(1, dtype=torch.float64))]


class Changes(nn.Module):
    """Changes something, then goes on with what it has now."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.a, self.b, self.change = nn.Linear(4, 4), nn.Linear(4, 4), change
        self.cache, self.array = Cache(), np.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        self.change(self)
        cache, array = self.cache, torch.from_numpy(self.array.copy()).to(x)
        return self.b(self.a(x).tanh() * cache.gain * array) * (1 + cache.calls) * cache.layers[0].scale


def replaced(m: Changes) -> None:
    new = copy.deepcopy(m.b)
    new.weight.data.mul_(0.7)
    m.b = new


def built(m: Changes) -> None:
    if not hasattr(m, "c"):
        m.c = nn.Linear(4, 4)
        m.b.weight.data.mul_(0.5)


def in_a_cache(m: Changes) -> None:
    m.cache.gain.mul_(1.5)
    m.cache.calls += 1
    m.cache.layers[0].scale = m.cache.layers[0].scale * 2


def settings(_: Changes) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    random.seed(3)


def gradient(m: Changes) -> None:
    m.b.weight.grad = torch.ones_like(m.b.weight)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a submodule": replaced,
    "a submodule built on the way": built,
    "a forward hook": lambda m: m.b.register_forward_hook(lambda *call: 1.5 * call[2]),
    "a forward pre-hook": lambda m: m.b.register_forward_pre_hook(lambda _, args: (1.5 * args[0],)),
    "a backward hook": lambda m: m.b.register_full_backward_hook(lambda _, grads, __: (1.5 * grads[0],)),
    "an object": in_a_cache,
    "another object": lambda m: setattr(m, "cache", copy.deepcopy(m.cache)),
    "an array": lambda m: m.array.__imul__(1.5),
    "settings": settings,
    "a gradient": gradient,
}
ENTRIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **{m: (lambda model, x, m=m: jaccli.jacobian(model, x, method=m)) for m in METHOD_NAMES},
    "plan": lambda model, x: jaccli.plan(model, x)(x),
    "operator": lambda model, x: jaccli.operator(model, x).matmat(torch.eye(4).double().expand(len(x), 4, 4)),
    "blocks": lambda model, x: jaccli.jacobian(model, x, max_memory=2000),
    "penalty": lambda model, x: jaccli.identity_deviation(model, x).detach()[:, None],
}


def described(value: Any) -> Any:
    """By value, all that a module holds."""
    if isinstance(value, Tensor):
        grad = None if value.grad is None else value.grad.tolist()
        return value.tolist(), value.dtype, value.requires_grad, grad
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict | OrderedDict):
        return {key: described(item) for key, item in value.items()}
    if isinstance(value, list):
        return [described(item) for item in value]
    if isinstance(value, nn.Module | Cache | SimpleNamespace):
        return id(value), described(vars(value))
    return value if isinstance(value, int | float | str) else id(value)


def process() -> Any:
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        random.getstate(),
    )


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_pass_changes(change: str, entry: str) -> None:
    """J is that of a first pass, and everything as it was."""
    torch.manual_seed(0)
    random.seed(1)
    model, x = Changes(CHANGES[change]).double().eval(), torch.randn(3, 4).double()
    at, threads = x.clone().requires_grad_(), torch.get_num_threads()
    target = copy.deepcopy(model)(at)
    j = torch.stack([torch.autograd.grad(target[:, o].sum(), at, retain_graph=True)[0] for o in range(4)], 1)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    random.seed(1)
    before, around = described(model), process()
    found = ENTRIES[entry](model, x)
    assert described(model) == before
    assert process() == around
    right = (j - torch.eye(4)).flatten(1).square().sum(1, keepdim=True) if entry == "penalty" else j
    if (change, entry) != ("a backward hook", "finite-difference"):  # differences do not see it
        assert error(found, right) < (1e-6 if entry == "finite-difference" else 1e-9)


def test_generators_of_objects() -> None:
    """A generator that an object holds is put back as well."""

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.source = nn.Linear(4, 4), SimpleNamespace(rng=np.random.default_rng(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * float(self.source.rng.random())

    model, x = Draws(), torch.randn(3, 4)
    before = repr(model.source.rng.bit_generator.state)
    with pytest.warns(jaccli.JaccliWarning, match="draws random numbers"):
        first = jaccli.jacobian(model, x)
    assert torch.equal(first, jaccli.jacobian(model, x))
    assert repr(model.source.rng.bit_generator.state) == before


def test_objects_are_cast() -> None:
    """Tensors that objects hold are of the dtype asked for."""
    from jaccli.models.adapt import as_network

    network = as_network(Changes(in_a_cache)).cast(dtype=torch.float32)
    assert network.module.cache.gain.dtype == torch.float32  # type: ignore[attr-defined]


def test_parameters_without_a_shape() -> None:
    """A lazy layer that has not been run is refused."""
    with pytest.raises(jaccli.JaccliError, match="no shape yet"):
        jaccli.jacobian(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))
