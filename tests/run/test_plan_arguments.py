"""A plan keeps the further arguments that it was made with, and uses them as they are at the time of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli


class Gains(nn.Module):
    """W x times a gain that comes in as it may; a tanh before it asks for structure."""

    def __init__(self, read: Callable[[Any], Any] = lambda gain: gain) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fc = nn.Linear(3, 2).double()
        self.read = read

    def forward(self, x: Tensor, gain: Any = 1.0, shift: Any = 0.0) -> Tensor:
        return self.read(gain) * self.fc(x).tanh() + shift


def jacobians(model: Gains, x: Tensor, gain: Tensor | float) -> Tensor:
    slope = 1 - model.fc(x).tanh().square()
    return ((gain * slope)[..., None] * model.fc.weight).detach()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class RecordedActivation:
    gain: Any


METHODS = ["auto", "structured", "reverse", "loop", "finite-difference"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by_name", [False, True])
def test_kept_and_replaced(by_name: bool, method: str) -> None:
    model, x, gain = Gains(), normal(4, 3), torch.tensor([2.0, -1.0], dtype=torch.float64)
    given: Callable[[Any], dict[str, Any]] = lambda g: {"kwargs": {"gain": g}} if by_name else {"args": (g,)}  # noqa: E731
    close: Callable[[Tensor, Tensor], None] = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)  # noqa: E731
    plan = jaccli.plan(model, x, method=method, **given(gain))
    for points in (x, normal(4, 3, seed=1), normal(7, 3, seed=2), x[:1]):
        close(plan(points), jacobians(model, points, gain))
    close(plan(x, **given(3 * gain)), jacobians(model, x, 3 * gain))
    close(plan(x), jacobians(model, x, gain))  # a call replaces nothing for the next one
    gain.mul_(5)
    close(plan(x), jacobians(model, x, gain))
    gain.data[0] = 0.5
    close(plan(x), jacobians(model, x, gain))


def test_each_is_replaced_alone() -> None:
    model, x = Gains(), normal(4, 3)
    plan = jaccli.plan(model, x, args=(2.0,), kwargs={"shift": x[:, :2]})
    torch.testing.assert_close(plan(x, kwargs={}), jacobians(model, x, 2.0))
    torch.testing.assert_close(plan(x, args=(3.0,)), jacobians(model, x, 3.0))
    torch.testing.assert_close(plan(x, args=(), kwargs={"gain": 4.0}), jacobians(model, x, 4.0))


def change_list(held: list[Any]) -> None:
    held[0] = 7.0


def change_attribute(held: Any) -> None:
    held.gain = 7.0


def change_in_place(held: Any) -> None:
    held.gain.fill_(7.0)


def change_array(held: np.ndarray[Any, Any]) -> None:
    held[:] = 7.0


class Owner:
    def __init__(self, gain: Any) -> None:
        self.gain = gain


def of_attribute(held: Any) -> Any:
    return held.gain


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], None]]] = {
    "list": (lambda: [2.0], lambda held: held[0], change_list),
    "list of tensors": (lambda: [torch.tensor(2.0).double()], lambda held: held[0], lambda held: held[0].fill_(7.0)),
    "dict": (lambda: {"g": [2.0]}, lambda held: held["g"][0], lambda held: change_list(held["g"])),
    "array": (lambda: np.full(2000, 2.0), lambda held: float(held[1500]), change_array),
    "object": (lambda: Owner(2.0), of_attribute, change_attribute),
    "object of a tensor": (lambda: Owner(torch.tensor(2.0).double()), of_attribute, change_in_place),
    "object in an object": (lambda: Owner(Owner(2.0)), lambda o: o.gain.gain, lambda o: change_attribute(o.gain)),
    "dataclass": (lambda: RecordedActivation(2.0), of_attribute, change_attribute),
    "namespace": (lambda: SimpleNamespace(gain=2.0), of_attribute, change_attribute),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_in_place(kind: str) -> None:
    """Between two calls: nothing of an argument is baked into a plan. Calls 3 and 5 to 7 are not verified."""
    make, read, change = CHANGES[kind]
    model, x, held = Gains(read), normal(4, 3), make()
    plan = jaccli.plan(model, x, method="structured", args=(held,))
    for _ in range(4):
        torch.testing.assert_close(plan(x), jacobians(model, x, 2.0))
    change(held)
    torch.testing.assert_close(plan(x), jacobians(model, x, 7.0))


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_rows_of_another_number_of_samples(method: str, batch: int) -> None:
    """A row for each sample of the plan does not fit others; as many rows by chance do."""
    model, x, gain = Gains(), normal(4, 3), normal(4, 2)
    plan = jaccli.plan(model, x, method=method, args=(gain,))
    torch.testing.assert_close(plan(2 * x), jacobians(model, 2 * x, gain))
    other = normal(batch, 3)
    with pytest.raises(jaccli.UsageError, match=rf"does not fit {batch} samples: its args\[0\] of 4 rows\n.*\n.*args="):
        plan(other)
    rows = normal(batch, 2, seed=1)
    torch.testing.assert_close(plan(other, args=(rows,)), jacobians(model, other, rows))
    broad = torch.tensor([2.0, -1.0], dtype=torch.float64)
    two = jaccli.plan(model, x[:2], method=method, args=(broad,))
    torch.testing.assert_close(two(x), jacobians(model, x, broad))


def test_an_operator_is_at_one_point() -> None:
    """Its samples and arguments are those that it was made with, whatever is written into them later."""
    model, x, gain = Gains(), normal(4, 3), torch.tensor([2.0, -1.0], dtype=torch.float64)
    right = jacobians(model, x, gain)
    for early in (False, True):
        point, scale = x.clone(), gain.clone()
        a = jaccli.operator(model, point, args=(scale,))
        if early:
            a.matvec(normal(4, 3))
        point.zero_()
        scale.zero_()
        torch.testing.assert_close(a.materialise(), right)
        torch.testing.assert_close(a.matvec(x), torch.einsum("boi,bi->bo", right, x))
        torch.testing.assert_close(a.sample(1).matvec(x[1:2]), torch.einsum("oi,i->o", right[1], x[1])[None])


@pytest.mark.parametrize("names", [(), ("0", "output"), ("a_layer_with_a_rather_long_name_" * 4 + ".linear", "output")])
def test_repr(names: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    if names[:1] != ("0",) and names:
        inner = nn.Module()
        inner.linear = nn.Linear(3, 3)
        inner.forward = lambda x: inner.linear(x)
        model = nn.Sequential()
        model.add_module(names[0].removesuffix(".linear"), inner)
    plan = jaccli.plan(model, torch.ones(5, 3), *names)
    assert len(repr(plan).splitlines()) <= 2
    assert len(repr(plan)) <= 200
    assert str(plan).startswith("plan ")
    assert len(str(plan).splitlines()) > 5


def test_repr_of_estimates() -> None:
    a = jaccli.operator(nn.Linear(3, 3), torch.ones(300, 3))
    for estimate in jaccli.estimate(a, probes=2).values():
        assert len(repr(estimate)) <= 200
    assert len(repr(a)) <= 200


SIZES: list[tuple[Any, int | None]] = [
    (None, None),
    ("10MB", 10**7),
    ("1.5 GiB", 3 * 2**29),
    ("4k", 4000),
    ("1e9", 10**9),
    (4_000_000, 4_000_000),
    (np.int64(5000), 5000),
    (1e9, 10**9),
]


@pytest.mark.parametrize(("value", "size"), SIZES)
def test_memory(value: Any, size: int | None) -> None:
    plan = jaccli.plan(nn.Linear(3, 2), torch.ones(2, 3), max_memory=value)
    assert plan.options.max_memory == size
    assert jaccli.jacobian(nn.Linear(3, 2), torch.ones(2, 3), max_memory=value).shape == (2, 2, 3)


@pytest.mark.parametrize("value", ["", "many", "10QB", "-1", "0", "0.1", "1e999", -1, 0, True, 0.5, float("nan"), [1]])
@pytest.mark.parametrize("entry", [jaccli.jacobian, jaccli.plan])
def test_what_is_no_memory(entry: Callable[..., Any], value: Any) -> None:
    with pytest.raises(jaccli.UsageError, match=r"^max_memory=.* is not a size\nexpected .*4GiB"):
        entry(nn.Linear(3, 2), torch.ones(2, 3), max_memory=value)
