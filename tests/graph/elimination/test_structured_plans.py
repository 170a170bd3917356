"""Plans of the structured engine: refused where they do not fit, right after changes, safe to share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.graph.elimination.bracketing import Bracketing
from jaccli.run.planned import Plan
from tests import nets
from tests.graph.elimination.test_structured import replayed
from tests.oracle import error
from tests.structured_networks import BY_NAME, Of, Segment, normal

TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 8e-2}


def structured(model: nn.Module, x: Tensor, *pair: str, **options: Any) -> Plan:
    return jaccli.plan(model, x, *pair, method="structured", **options)


def loop(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return jaccli.jacobian(model, x, method="loop", **options)


def test_refused_field_by_field() -> None:
    plan = structured(BY_NAME["softmax"].model(), BY_NAME["softmax"].x(1))
    for x, field in (
        (normal((3, 7), 1), "sample shape"),
        (normal((3, 6), 1).float(), "dtype"),
        (torch.empty(3, 6, dtype=torch.float64, device="meta"), "device"),
    ):
        with pytest.raises(jaccli.UsageError, match=f"does not fit: {field}"):
            plan(x)


def test_another_branch_is_refused() -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3 if x.sum() > 0 else x.sin()

    x = torch.ones(2, 3, dtype=torch.float64)
    plan = structured(Sign(), x)
    assert replayed(plan)
    with pytest.raises(jaccli.UsageError, match="does not fit: taken branch False"):
        plan(-x)
    assert error(plan(2 * x), loop(Sign(), 2 * x)) < 1e-10


def test_another_number_of_samples_or_argument_gets_a_program_of_its_own() -> None:
    s = BY_NAME["extra argument"]
    model, x = s.model(), s.x(1)
    plan = structured(model, x, args=(normal((3, 3), 7), 2))
    for batch, power in ((3, 3), (5, 2), (1, 1), (3, 2)):
        x, gate = normal((batch, 4), batch), normal((batch, 3), power)
        for _ in range(2):  # computed anew and recorded, then by the program
            assert error(plan(x, args=(gate, power)), loop(model, x, args=(gate, power))) < 1e-10
    assert plan.program_cache is not None
    assert len(plan.program_cache.programs) == 4


class Holding(nn.Module):
    """Everything that a module can keep, all of it used."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4)
        self.register_buffer("running", torch.full((4,), 1.5))
        self.gain, self.plain = 2.0, torch.full((4,), 3.0)
        self.gains, self.named = [1.0, 2.0], {"a": 1.5}
        self.tensors = [torch.ones(4)]
        self.config = SimpleNamespace(scale=0.5)
        self.function: Callable[[Tensor], Tensor] = torch.sin

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.act(self.fc(x))) * self.gain * self.plain * self.running
        return self.function(h * self.gains[0] * self.named["a"] * self.tensors[0] * self.config.scale)


def _set(name: str, value: Any) -> Callable[[Any], object]:
    return lambda model: setattr(model, name, value)


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight, in place": lambda m: torch.nn.init.normal_(m.fc.weight),
    "weight, through .data": lambda m: m.fc.weight.data.mul_(2),
    "weight.data, replaced": lambda m: setattr(m.fc.weight, "data", normal((4, 4), 3).float()),
    "weight, replaced": lambda m: setattr(m.fc, "weight", nn.Parameter(normal((4, 4), 3).float())),
    "state dict": lambda m: m.load_state_dict({k: v + 0.5 for k, v in m.state_dict().items()}),
    "buffer": lambda m: m.running.mul_(2),
    "statistics": lambda m: m.norm.running_var.mul_(3),
    "number": _set("gain", 0.5),
    "tensor": _set("plain", torch.full((4,), 0.5)),
    "tensor, in place": lambda m: m.plain.mul_(2),
    "item of a list": lambda m: m.gains.__setitem__(0, 5.0),
    "item of a dict": lambda m: m.named.__setitem__("a", 5.0),
    "tensor in a list": lambda m: m.tensors[0].mul_(2),
    "config": lambda m: setattr(m.config, "scale", 0.25),
    "module": _set("act", nn.Sigmoid()),
    "class of a module": lambda m: setattr(m.act, "__class__", nn.Sigmoid),
    "function": _set("function", torch.cos),
    "hook": lambda m: m.act.register_forward_hook(lambda _m, _i, out: 2 * out),
    "mode": lambda m: m.norm.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_a_stale_number(change: str) -> None:
    torch.manual_seed(0)
    model, x = Holding().eval(), normal((3, 4), 1).float()
    plan = structured(model, x)
    assert replayed(plan)
    before = plan(x).clone()
    CHANGES[change](model)
    truth = loop(model, x)
    assert error(before, truth) > 1e-2
    for _ in range(2):
        assert error(plan(x), truth) < 3e-5


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.gain = nn.Linear(4, 4), nn.BatchNorm1d(4), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.norm(self.fc(x)) * self.gain)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("change", ["gain", "mode", "weight"])
def test_never_a_stale_number_of_a_script(change: str, inside: bool) -> None:
    torch.manual_seed(0)
    script: Any = torch.jit.script(Scaled().eval())
    model, x = nn.Sequential(script, nn.Tanh()) if inside else script, normal((3, 4), 1).float()
    plan = structured(model, x)
    assert replayed(plan)
    before = plan(x)
    if change == "weight":
        script.fc.weight.data.mul_(2)
    else:
        setattr(script, "gain", 0.5) if change == "gain" else model.train()
    truth = loop(model, x)
    assert error(before, truth) > 1e-2
    assert error(plan(x), truth) < 3e-5


def test_an_unchanged_model_is_recorded_once() -> None:
    """State that a pass leaves behind is put back, and does not look like a change."""
    model, x = nets.Remembering().double(), normal((1, 4), 1)
    plan = structured(model, x)
    assert plan.program_cache is not None
    assert replayed(plan)
    programs = list(plan.program_cache.programs.values())
    for seed in (2, 3):
        assert error(plan(normal((1, 4), seed)), loop(model, normal((1, 4), seed))) < 1e-10
    assert list(plan.program_cache.programs.values()) == programs


@pytest.mark.parametrize("segment", ["matrix", "softmax", "convolution windows", "view", "index"])
def test_results_are_the_callers_own(segment: str) -> None:
    s = BY_NAME[segment]
    model, plan = s.model(), structured(s.model(), s.x(1))
    held = [(x, plan(x)) for x in (s.x(seed) for seed in range(4))]
    for x, matrix in held:
        assert error(matrix, loop(model, x)) < 1e-10
    held[0][1].zero_()
    x, matrix = held[1]
    assert error(matrix, loop(model, x)) < 1e-10
    assert error(plan(x), loop(model, x)) < 1e-10


def test_memory_of_a_dropped_result_is_used_again() -> None:
    s = BY_NAME["softmax"]
    plan = structured(s.model(), s.x(1))
    assert plan.program_cache is not None
    assert next(r for r in plan.program_cache.programs.values() if r is not None).program.fills_output
    first = plan(s.x(1))
    place = first.data_ptr()
    row = first[0, 0]  # a view keeps the whole
    del first
    assert plan(s.x(2)).data_ptr() != place
    del row
    second = plan(s.x(2))
    third = plan(s.x(3))
    assert second.data_ptr() != third.data_ptr()
    place = third.data_ptr()
    del third
    assert plan(s.x(1)).data_ptr() == place


def in_four_threads(work: Callable[[int], None]) -> None:
    """``work`` with a number for each, at the same time, to the end."""
    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_one_plan_in_many_threads() -> None:
    s = BY_NAME["residual"]
    model, plan = s.model(), structured(s.model(), s.x(0))
    assert replayed(plan)
    truths = [(s.x(seed), loop(model, s.x(seed))) for seed in range(4)]
    worst: list[float] = []

    def work(first: int) -> None:
        for turn in range(100):
            x, truth = truths[(first + turn) % 4]
            worst.append(error(plan(x), truth))

    in_four_threads(work)
    assert len(worst) == 400
    assert max(worst) < 1e-10


def bracket_of(model: nn.Module, shape: tuple[int, ...], batch: int = 2) -> Bracketing:
    plan = structured(model.double().eval(), normal((batch, *shape), 1))
    assert replayed(plan)
    assert plan.decision.bracketing is not None
    return plan.decision.bracketing


def test_an_autoencoder_multiplies_at_its_bottleneck() -> None:
    widths = [96, 64, 4, 64, 96]
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    bracketing = bracket_of(nn.Sequential(*layers), (96,))
    assert bracketing.mode == "product"
    later, earlier = bracketing.parts
    assert (earlier.first, earlier.last, later.first, later.last) == (0, 2, 2, 4)
    assert max(later.peak, earlier.peak) <= 2 * 4 * 96  # rows and columns of the bottleneck
    assert bracketing.peak == 2 * 96 * 96


def test_a_layer_a_token_is_a_block_a_token() -> None:
    bracketing = bracket_of(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)), (20, 6))
    assert bracketing.peak <= 2 * 20 * 6 * 12


def test_a_local_convolutional_net_stays_local() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    bracketing = bracket_of(nn.Sequential(*layers, nn.Conv2d(4, 1, 3, padding=1)), (1, 20, 20), 1)
    assert bracketing.peak <= 400 * 4 * 7 * 7


def _modes(bracketing: Bracketing) -> set[str]:
    """Of all steps but the first: from one matrix alone, rows and columns are the same."""
    return {bracketing.mode}.union(*(_modes(part) for part in bracketing.parts)) if bracketing.parts else set()


@pytest.mark.parametrize(("widths", "mode"), [((96, 64, 64, 3), "pull"), ((3, 64, 64, 96), "push")])
def test_the_narrow_end_decides_the_direction(widths: tuple[int, ...], mode: str) -> None:
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    assert _modes(bracket_of(nn.Sequential(*layers), widths[:1])) == {mode}


def _item(self: Any, x: Tensor) -> Tensor:
    return x.sin() * float(x.abs().max().item())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nets.Fourier(), "complex numbers"),
        (nets.Cubed(), "autograd function of its own"),
        (nets.Rolled(), "samples mix"),
        (Of(_item), r"\.item\(\)"),
    ],
    ids=["complex", "custom", "mixing", "item"],
)
def test_gaps_fall_back_with_a_note(model: nn.Module, why: str) -> None:
    x = normal((3, 5), 1)
    with pytest.warns(jaccli.JaccliNote, match=f"structured: .*{why}.*; taken with reverse"):
        matrix = jaccli.jacobian(model, x, method="structured")
    truth = loop(model, x)
    assert error(matrix, truth) < 1e-10
    plan = structured(model, x)
    assert plan.program_cache is None
    assert why.replace("\\", "") in str(plan)
    assert error(plan(2 * x), loop(model, 2 * x)) < 1e-10


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["residual", "convolution windows", "attention", "coupling", "layer norm"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    s: Segment = BY_NAME[name]
    model, x = s.model(dtype), s.x(1, dtype=dtype)
    plan = structured(model, x)
    truth = loop(model.double(), x.double())
    model.to(dtype)
    matrix = plan(x)
    assert matrix.dtype == dtype
    assert error(matrix, truth) < TOLERANCE[dtype]
    assert error(jaccli.jacobian(model, x, method="structured"), truth) < TOLERANCE[dtype]


class Upcast(nn.Module):
    """bfloat16 outside, float32 in places, with operators that take one dtype only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(2, 3, 3).bfloat16(), nn.Conv2d(3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(torch.tanh(self.conv(x)).float()) * 2.0
        return torch.softmax(h.flatten(1).bfloat16(), 1, dtype=torch.float32)


@pytest.mark.parametrize(("model", "dtype"), [(Upcast(), torch.bfloat16), (nets.Widened(), torch.float32)])
def test_another_dtype_inside(model: nn.Module, dtype: torch.dtype) -> None:
    x = normal((2, 2, 6, 6) if dtype == torch.bfloat16 else (2, 4), 1).to(dtype)
    truth = loop(model, x)
    plan = structured(model, x)
    assert replayed(plan)
    assert plan(x).dtype == truth.dtype
    assert error(plan(x), truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["residual", "convolution windows", "blocks over tokens"])
def test_little_memory_gives_blocks_and_the_same_numbers(name: str) -> None:
    s = BY_NAME[name]
    model, x = s.model(), s.x(1, batch=150)
    whole = jaccli.jacobian(model, x, method="structured")
    room = whole.numel() * 8 + 2**17
    assert error(jaccli.jacobian(model, x, method="structured", max_memory=room), whole) < 1e-10
    plan = structured(model, x, max_memory=room)
    assert plan.decision.block < 150
    assert error(plan(x), whole) < 1e-10
    part = plan.decision.block
    assert error(plan(x[:part]), whole[:part]) < 1e-10
