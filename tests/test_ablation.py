"""Every switch of the ablation leaves its part out and J right, and is undone: a rename that breaks one fails here."""

from __future__ import annotations

import functools
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jaccli
from jaccli.calibration import TYPICAL
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.planning.linearize import Linearization
from tests.oracle import error

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from ablation.fingerprints import recorded_programs
from ablation.results import Results, read
from ablation.sparse_networks import GraphAttention, Stencil
from ablation.switch import Switch
from ablation.switches import SWITCHES
from ablation.table import table
from sequences import LstmNet


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mix = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = torch.relu(self.mix(torch.relu(self.down(x))))
        return self.last(F.interpolate(small, scale_factor=2.0)).tanh()


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up = nn.Linear(6, 48), nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1)
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        image = torch.tanh(self.up(torch.tanh(self.enter(x)).view(-1, 3, 4, 4)))
        return self.last(F.interpolate(image, scale_factor=2.0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


class LstmLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def conv1d(*widths: int) -> nn.Module:
    layers = [(nn.Conv1d(a, b, 3, padding=1), nn.Tanh()) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def pooled() -> nn.Module:
    first, second, last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.Tanh(), nn.Upsample(scale_factor=2), last)


# How to make a network, the shape of a sample, and the switches that change what a plan records of it.
NETWORKS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)),
        (8,),
        "brackets recording copies columns onednn output memory-plan donation still-views let-go quick-calls structure "
        "bracketing row-ranges diagonals in-place formulas",
    ),
    "images": (
        Images,
        (2, 8, 8),
        "products joined-segments windows toeplitz single-pixels channels-last tiles factor-layout",
    ),
    "decoder": (Decoder, (6,), "phases repeats pixel-blocks"),
    "windows": (lambda: conv1d(1, 16, 16, 1), (1, 20), "taps"),
    "pooled": (pooled, (1, 16, 16), "cells reshape-layout"),
    "attention": (Attention, (6, 4), "views side-by-side slices outer embeds"),
    "lstm": (lambda: LstmNet(3, 4), (4, 3), "stacking factors joined-ranges"),
    "lstm layer": (LstmLayer, (3, 3), "recurrent-layers"),
    "stencil": (lambda: Stencil(48, 3), (48,), "compression greedy"),
    "graph attention": (lambda: GraphAttention(16, 2, 2, 1), (16, 2), "zeros"),
}
# Limits, under which such small networks would be left alone; and the same plans on every machine.
LOW: dict[str, Any] = {
    "jaccli.graph.layout.cost.stored_or_typical": lambda _device: TYPICAL,
    "jaccli.graph.program.onednn.SMALLEST": 0,
    "jaccli.graph.program.onednn.SMALLEST_TANH": 0,
    "jaccli.graph.program.memory_plan.DONATED_FROM": 0,
    "jaccli.graph.elimination.accumulate.COMPRESSED_FROM": 0.0,
    "jaccli.graph.elimination.accumulate.SHARE": 0.01,
    "jaccli.graph.elimination.accumulate.AT_LEAST": 8,
}
CHANGES = {switch: name for name, (_, _, switches) in NETWORKS.items() for switch in switches.split()}
NEED_ONEDNN = ("onednn", "recurrent-layers")
# Switches that change no program of these networks, or not on every machine: their stand-ins are called.
CALLED = ["groups", "plain", "threads", "turns", "second-point", "call-check", "rates", "pool", "check"]
# Rules of single calls, with what comes before them in the table of ``auto`` out of the way.
RULES: dict[str, dict[str, float]] = {
    "soon": {},
    "search-guard": {"jaccli.defaults.SOON": 0.0},
}


@contextmanager
def patched(values: dict[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for target, value in values.items():
            stack.enter_context(patch(target, value))
        yield


@functools.cache
def network(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The module, samples for a plan, other samples, and J at these."""
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(3)
    model = make().eval().requires_grad_(False)
    samples, others = torch.randn(2, 2, *shape)
    return model, samples, others, jaccli.jacobian(model, others, method="loop")


def recorded(name: str) -> list[Any]:
    """The fingerprints of what a plan records, whose J is right."""
    model, samples, others, truth = network(name)
    with recorded_programs() as found, patched(LOW):
        plan = jaccli.plan(model, samples)
        assert error(plan(others), truth) < 1e-4
    return found


recorded_with_all = functools.cache(recorded)


@contextmanager
def off(switch: Switch, patches: dict[str, Any]) -> Iterator[None]:
    """Without the part; what stood there before stands there again afterwards."""
    before = {target: pkgutil.resolve_name(target) for target in switch.patches}
    with patched(patches):
        yield
    assert {target: pkgutil.resolve_name(target) for target in before} == before


def test_every_switch_is_looked_at() -> None:
    assert SWITCHES.keys() - {"nothing"} == CHANGES.keys() | set(CALLED) | RULES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_without_a_part_another_program_is_recorded(name: str) -> None:
    if name in NEED_ONEDNN and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    switch, before = SWITCHES[name], recorded_with_all(CHANGES[name])
    with off(switch, {}), switch.off():
        without = recorded(CHANGES[name])
    assert without != before


@pytest.mark.parametrize("name", CALLED)
def test_what_stands_in_is_called(name: str) -> None:
    switch = SWITCHES[name]
    spies = {target: Mock(side_effect=stand_in) for target, stand_in in switch.patches.items()}
    # In a class a function is a method, and a mock is not.
    methods = {target: lambda *args, spy=spy: spy(*args) for target, spy in spies.items()}
    model, samples, others, truth = network("mlp")
    with off(switch, methods):
        assert error(jaccli.jacobian(model, others), truth) < 1e-4
        method = "auto" if name == "plain" else "structured"  # on no clock does it depend whether there is a program
        assert error(jaccli.plan(model, samples, method=method)(others), truth) < 1e-4
    for target, spy in spies.items():
        assert spy.called, target


@pytest.mark.parametrize("name", RULES)
def test_without_a_rule_of_single_calls_the_choice_is_another(name: str) -> None:
    with patched(RULES[name]):
        before = choices()
        with off(SWITCHES[name], {}), SWITCHES[name].off():
            assert choices() != before


def choices() -> list[Any]:
    """The steps by which a single call, whose J is right, finds its method."""
    model, _, others, truth = network("mlp")
    seen: list[Any] = []
    soon, search = "jaccli.methods.auto._soon_done", Linearization.search_structure
    soon_done = pkgutil.resolve_name(soon)

    def at_once(linear: LinearizedFunction, seconds: float) -> Any:
        seen.append("soon")
        return soon_done(linear, seconds)

    def searched(linearization: Linearization) -> str | None:
        seen.append("search")
        return search(linearization)

    with patched({soon: at_once}), patch.object(Linearization, "search_structure", searched):
        assert error(jaccli.jacobian(model, others), truth) < 1e-4
    return seen


def test_results_are_kept_and_make_a_table(tmp_path: Path) -> None:
    about, path = {"torch": "2", "threads": 1}, tmp_path / "results.json"
    results = Results.resumed(about, path)
    for network_name, ratio in (("gru", 2.0), ("lstm", 0.5)):
        figures = {key: {"ratio": ratio} for key in ("planned", "memory")}
        results.add({"network": network_name, "switch": "views", **figures})
    results.add({"network": "gru", "switch": "stacking", "error": "TypeError: no"})
    again = Results.resumed(about, path)
    assert again.missing("gru", ["views", "stacking", "output"]) == ["stacking", "output"]
    rows = table(read([path, path])).splitlines()
    assert rows[2] == "| each view made once | `program/peephole` | 2 | 2.00 gru | 1.00 | – | 2.00 gru |"
    assert rows[-1] == "- stacking: error on gru: TypeError: no"
    with pytest.raises(ValueError, match="threads 1, now 2: take another file"):
        Results.resumed({**about, "threads": 2}, path)
