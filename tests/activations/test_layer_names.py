"""Modules named as PyTorch allows it: whatever is listed can be named, in every form, for every kind of model."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.address import LayerNames
from jaccli.activations.calls import each_call, watch
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import expand
from jaccli.models.adapt import as_network

ODD = [
    *("user:item", "block#b", "x[0]", "a", "a#2", "a:in", "a@1", "two words", "*", "{p,q}", "c,d", "semi;", "(open"),
    *("'quoted'", "ünï", "0", "input", "output", "out", ":in", "@1", "a->b", "block#*", "back\\slash"),
]
# Of these torch writes no TorchScript that it can read.
NOT_SCRIPTED = ("ünï", "back\\slash")
KINDS = ["eager", "script", "trace", "exported", "strictly exported"]


def linear(seed: int) -> nn.Linear:
    layer = nn.Linear(2, 2).double()
    layer.weight.data = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 2)))
    return layer


class Named(nn.Module):
    """A chain in a module whose name has a space; its layer ``a`` is called a second time at the end."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.add_module("the chain", nn.Sequential(OrderedDict((n, linear(i)) for i, n in enumerate(names))))

    def forward(self, x: Tensor) -> Tensor:
        for chain in self.children():
            x = chain(x)
        return x


@cache
def model_of(kind: str, folder: Path) -> tuple[Any, list[str]]:
    """A model read from a file, and the names of its layers in order."""
    names = [n for n in ODD if kind not in ("script", "trace") or n not in NOT_SCRIPTED]
    eager, x = Named(names).eval(), torch.ones(1, 2, dtype=torch.float64)
    if kind == "eager":
        return eager, names
    file = folder / f"{kind}.model"
    if "exported" in kind:
        exported = torch.export.export(eager, (x,), strict=kind.startswith("strictly"))
        with open(file, "wb") as handle:
            torch.export.save(exported, handle)
    else:
        (torch.jit.script(eager) if kind == "script" else torch.jit.trace(eager, x)).save(str(file))
    return jaccli.load_model(str(file)), names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named")


def after(names: list[str], first: int) -> Tensor:
    """J from the output of a layer to that of the chain."""
    J = torch.eye(2, dtype=torch.float64)
    for seed in range(first + 1, len(names)):
        J = linear(seed).weight.detach() @ J
    return J


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_listed_and_can_be_named(kind: str, folder: Path) -> None:
    model, names = model_of(kind, folder)
    listed = LayerNames(as_network(model).layers())
    assert {f"the chain.{name}" for name in names} <= {*listed.paths}
    x = torch.ones(1, 2, dtype=torch.float64)
    for i, name in enumerate(names):
        plain = listed.at(f"the chain.{name}")
        stem = plain.stem
        torch.testing.assert_close(jaccli.jacobian(model, x, str(plain))[0], after(names, i), msg=name)
        found = jaccli.jacobian(model, x, f"{stem}#1:in", f"{stem}:out@0[-1]")[0]
        torch.testing.assert_close(found, linear(i).weight.detach()[1:], msg=name)


class Repeats(nn.Module):
    """``a`` called twice beside a module that is named like its second call, and modules named like the ends."""

    def __init__(self) -> None:
        super().__init__()
        for seed, name in enumerate(("a", "a#2", "input", "output")):
            self.add_module(name, linear(seed))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("a", "a#2", "input", "a", "output"):
            x = getattr(self, name)(x)
        return 2 * x


REPEATS = {
    "a#1": [1, 2, 0, 3],
    "a#2": [2, 0, 3],
    "a..#2": [3],
    ".input": [0, 3],
    ".output": [],
    ".output:in": [3],
    "input": [0, 1, 2, 0, 3],
    "input:in": [0, 1, 2, 0, 3],
}


@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("kind", ["eager", "trace", "exported"])
def test_what_a_name_hides_can_be_named(name: str, kind: str) -> None:
    eager, x = Repeats(), torch.ones(1, 2, dtype=torch.float64)
    model: Any = eager
    if kind != "eager":
        model = torch.jit.trace(eager, x) if kind == "trace" else torch.export.export(eager, (x,))
    J = 2 * torch.eye(2, dtype=torch.float64)
    for seed in reversed(REPEATS[name]):
        J = J @ linear(seed).weight.detach()
    torch.testing.assert_close(jaccli.jacobian(model, x, name)[0], J)


def test_the_model_s_own_ends_are_not_the_modules_of_that_name() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    torch.testing.assert_close(
        jaccli.jacobian(Repeats(), x, ".output")[0], 2 * torch.eye(2, dtype=torch.float64), rtol=0, atol=0
    )
    with pytest.raises(jaccli.UsageError, match=r"a\.\.#1, a\.\.#2"):
        jaccli.jacobian(Repeats(), x, "a")


class Keys(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a.b": 2 * x, "k:in": 3 * x, "x[0]": 4 * x, "p@1": 5 * x, "q#2": 6 * x, "d": {"e.f": 7 * x}}


@pytest.mark.parametrize(
    ("element", "factor"), [("a.b", 2), ("k:in", 3), ("x[0]", 4), ("p@1", 5), ("q#2", 6), ("d.e.f", 7), ("d", 7)]
)
def test_keys_of_a_dict(element: str, factor: int) -> None:
    """Of what is returned each key can be named, whatever characters it has."""
    found = jaccli.jacobian(Keys(), torch.ones(3, 2), target=f"output:out.{element}")
    torch.testing.assert_close(found, (factor * torch.eye(2)).expand(3, 2, 2))
    part = jaccli.jacobian(Keys(), torch.ones(3, 2), target=f"output:out.{element}@0[1]")
    torch.testing.assert_close(part, factor * torch.eye(2)[1:].expand(3, 1, 2))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.RNNCell(2, 2) for _ in range(2))
        self.head, self.aside = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for _ in range(3):
            for cell in self.cells:
                h = cell(x, h)
        return self.head(h)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("cells.0#*", ["cells.0#1", "cells.0#2", "cells.0#3"]),
        ("cells.*#*:in.1", [f"cells.{c}#{k}:in.1" for c in (0, 1) for k in (1, 2, 3)]),
        ("cells.1#*[0]", [f"cells.1#{k}[0]" for k in (1, 2, 3)]),
        ("head#*", ["head#1"]),
        ("aside#*", ["aside#1"]),
    ],
)
@pytest.mark.parametrize("kind", ["eager", "script", "exported"])
def test_all_calls(name: str, want: list[str], kind: str) -> None:
    """As if each call were named."""
    eager, x = Cells(), torch.ones(2, 2)
    model: Any = eager
    if kind != "eager":
        model = torch.jit.script(eager) if kind == "script" else torch.export.export(eager, (x,))
    network = as_network(model)
    found = each_call(network, Inputs((x,)), expand(network, [name]))
    assert [str(address) for address in found] == want
    assert {address.call for address in found} <= {1, 2, 3}
    assert watch(network, Inputs((x,)))[0]["cells.0"].calls == 3


def test_all_calls_are_no_single_layer() -> None:
    for pair in (("cells.0#*", "output"), ("input", "cells.0#*")):
        with pytest.raises(jaccli.UsageError, match="all calls"):
            jaccli.jacobian(Cells(), torch.ones(1, 2), *pair)
