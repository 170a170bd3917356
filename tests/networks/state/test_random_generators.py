"""Models that draw: one draw for all passes, generators put back, and a warning; no draw is ever baked into a plan."""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.models.identify.import_spec import build
from jaccli.names import METHOD_NAMES
from jaccli.networks.state.random_generators import GeneratorStates, seeded
from jaccli.networks.state.unseeded_generators import fixed_seeds

GLOBAL = np.random.default_rng(5)


class Drawing(nn.Module):
    """Gains drawn by any generator."""

    def __init__(self, draw: Callable[[Any, Tensor], Tensor], own: Any = None) -> None:
        super().__init__()
        self.fc, self.draw, self.own = nn.Linear(4, 4), draw, own

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.draw(self.own, x)).tanh()


class ByGlobal(nn.Module):
    """Draws from a generator that stands beside the class."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(GLOBAL.uniform(1, 2, x.shape[1])).to(x) ** 2


class InTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc(x)).tanh()


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * torch.rand_like(x)).tanh()


def of_numpy(x: Tensor, array: Any) -> Tensor:
    return torch.as_tensor(array).to(x)


def held(own: Any) -> Callable[[], nn.Module]:
    """Draws from a generator in a list."""

    def draw(generators: Any, x: Tensor) -> Tensor:
        (generator,) = generators
        return of_numpy(x, generator.normal(size=4) if hasattr(generator, "normal") else generator.random())

    return lambda: Drawing(draw, [own()])


def exported() -> Any:
    return torch.export.export(Scripted(), (torch.ones(3, 4),))


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "torch": (lambda: Drawing(lambda _, x: torch.rand_like(x)), "torch's generator"),
    "dropout": (lambda: Drawing(lambda _, x: nn.functional.dropout(torch.ones_like(x))), "torch's generator"),
    "distribution": (lambda: Drawing(lambda _, x: torch.distributions.Normal(x, 1.0).rsample()), "torch's generator"),
    "numpy": (lambda: Drawing(lambda _, x: of_numpy(x, np.random.uniform(1, 2, 4))), "NumPy's generator"),
    "numpy, one normal": (lambda: Drawing(lambda _, x: of_numpy(x, np.random.randn())), "NumPy's generator"),
    "python": (lambda: Drawing(lambda _, x: of_numpy(x, random.random())), "Python's generator"),
    "python, normal": (lambda: Drawing(lambda _, x: of_numpy(x, random.gauss(0, 1))), "Python's generator"),
    "own torch": (
        lambda: Drawing(lambda g, x: torch.rand(4, generator=g).to(x), torch.Generator().manual_seed(1)),
        "a torch generator of its own",
    ),
    "own numpy": (held(lambda: np.random.default_rng(1)), "a numpy generator of its own"),
    "own legacy": (held(lambda: np.random.RandomState(1)), "a numpy generator of its own"),
    "own python": (held(lambda: random.Random(1)), "a random generator of its own"),
    "fresh numpy": (
        lambda: Drawing(lambda _, x: of_numpy(x, np.random.default_rng().uniform(1, 2, 4))),
        "a generator without a seed",
    ),
    "fresh legacy": (
        lambda: Drawing(lambda _, x: of_numpy(x, np.random.RandomState().normal(size=4))),
        "a generator without a seed",
    ),
    "fresh python": (lambda: Drawing(lambda _, x: of_numpy(x, random.Random().random())), "a generator without a seed"),
    "beside the class": (ByGlobal, "a numpy generator of its own"),
    "script": (lambda: torch.jit.script(Scripted()), "torch's generator"),
    "script within": (lambda: nn.Sequential(torch.jit.script(Scripted())), "torch's generator"),
    "exported": (exported, "torch's generator"),
}


@contextmanager
def said() -> Iterator[list[str]]:
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if w.category is jaccli.JaccliWarning]


def standing(model: Any) -> GeneratorStates:
    own = getattr(model, "own", None)
    return GeneratorStates.now([GLOBAL, *(own if isinstance(own, list) else [own] if own is not None else [])])


def truth(model: Any, x: Tensor, noise: GeneratorStates) -> Tensor:
    """J of the draw that the generators stand at; they are put back."""
    call = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    with torch.jit.optimized_execution(False), fixed_seeds():
        j = torch.autograd.functional.jacobian(call, x)
    noise.restore()
    return torch.stack([j[b, :, b] for b in range(len(x))])


ENTRIES: dict[str, Callable[[Any, Tensor], Any]] = {
    **{m: (lambda model, x, m=m: jaccli.jacobian(model, x, method=m)) for m in METHOD_NAMES},
    "plan": lambda model, x: jaccli.plan(model, x)(x),
    "operator": lambda model, x: jaccli.operator(model, x).materialise(),
    "deviation": lambda model, x: jaccli.identity_deviation(model, x),
    "hutchinson": lambda model, x: jaccli.identity_deviation(
        model, x, estimator="hutchinson", generator=torch.Generator().manual_seed(0)
    ),
    "estimate": lambda model, x: jaccli.estimate(jaccli.operator(model, x), probes=2),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "entry", ["auto", "plan", "operator", "deviation", "hutchinson", "estimate", "finite-difference"]
)
def test_one_draw(name: str, entry: str) -> None:
    """J is of the draw at which the generators stand, they stand there afterwards, and a warning says which."""
    torch.manual_seed(3)
    np.random.seed(3)
    np.random.randn()  # keeps a normal number back
    random.seed(3)
    make, generator = MODELS[name]
    model, x = make(), torch.randn(3, 4)
    noise = standing(model)
    with said() as texts:
        found = ENTRIES[entry](model, x)
    assert noise.restore() == []
    about = [text for text in texts if "draws random numbers" in text]
    assert len(about) == (2 if entry == "plan" else 1)  # a plan is made, and called
    assert generator in about[0]
    want = truth(model, x, noise)
    if entry == "deviation":
        torch.testing.assert_close(found, (want - torch.eye(4)).square().sum((1, 2)))
    elif isinstance(found, Tensor) and found.dim() == 3:
        near = 1e-2 if entry == "finite-difference" else 1e-5
        torch.testing.assert_close(found, want, rtol=near, atol=near)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("name", ["dropout", "numpy", "python", "own numpy", "fresh numpy", "script"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_at_the_same_draw(name: str, method: str) -> None:
    model, x = MODELS[name][0](), torch.randn(3, 4)
    want = truth(model, x, standing(model))
    near = 2e-2 if method == "finite-difference" else 1e-5
    torch.testing.assert_close(ENTRIES[method](model, x), want, rtol=near, atol=near)


@pytest.mark.parametrize("name", MODELS)
def test_no_draw_is_baked_into_a_plan(name: str) -> None:
    """Each call of a plan is of the draw at which the generators stand then, and is warned of."""
    model, x = MODELS[name][0](), torch.randn(3, 4)
    with said():
        plan = jaccli.plan(model, x, method="structured")
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        GLOBAL.random(seed)
        noise = standing(model)
        with said() as texts:
            found = plan(x)
        torch.testing.assert_close(found, truth(model, x, noise), rtol=1e-5, atol=1e-5)
        assert any("draws random numbers" in text for text in texts)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize(
    "name", ["dropout", "numpy", "python", "own numpy", "own torch", "fresh python", "beside the class"]
)
def test_an_operator_keeps_its_draw(name: str) -> None:
    """Products stay those of one matrix, wherever the generators have gone since."""
    model, x = MODELS[name][0](), torch.randn(3, 4)
    a, want = jaccli.operator(model, x), truth(model, x, standing(model))
    v = torch.randn(3, 4)
    _ = torch.rand(5), np.random.rand(5), random.random(), GLOBAL.random(2)
    if isinstance(getattr(model, "own", None), list):
        model.own[0].random()
    noise = standing(model)
    for _ in range(2):
        torch.testing.assert_close(a.matvec(v), (want @ v[..., None])[..., 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.rmatvec(v), (v[:, None] @ want)[:, 0], rtol=1e-5, atol=1e-5)
    assert noise.restore() == []


COUNT = [0]


def counted() -> float:
    COUNT[0] += 1
    return 1 + COUNT[0] % 7 / 7


def reseeded() -> float:
    torch.seed()
    return float(torch.rand(()))


# What no generator that can be held gives.
UNSTEADY: dict[str, Callable[[], float]] = {
    "system": lambda: 1 + int.from_bytes(os.urandom(6)) / 256**6,
    "clock": lambda: 1 + time.perf_counter_ns() % 10**7 / 10**7,
    "counter beside the class": counted,
    "seeded anew": reseeded,
    "system's generator": random.SystemRandom().random,
}


@pytest.mark.parametrize("name", UNSTEADY)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_not_deterministic(name: str, entry: str) -> None:
    """No draw can be held: a warning says so once, and nothing else is made of it, as samples that mix."""
    draw, x = UNSTEADY[name], torch.randn(5, 4)
    model = Drawing(lambda _, x: torch.full_like(x, draw()))
    with said():
        plan = jaccli.plan(model, x)
    with said() as texts:
        plan(x) if entry == "plan" else ENTRIES[entry](model, x)
    assert sum("not deterministic" in text for text in texts) == 1
    assert not any("samples" in text or "one draw" in text or "below" in text for text in texts)


def test_seeds_are_held_in_one_thread_and_put_back() -> None:
    """What another thread makes meanwhile is the system's; afterwards all is."""
    fresh = (lambda: int(np.random.default_rng().integers(1 << 60))), (lambda: random.Random().getrandbits(60))
    methods = random.Random.seed, np.random.bit_generator.randbits
    for draw in fresh:
        found: list[int] = []
        noise = GeneratorStates.now()
        with fixed_seeds(), fixed_seeds():
            found.append(draw())
            noise.restore()
            assert draw() == found[0]
            noise.restore()
            other = threading.Thread(target=lambda draw, found: found.append(draw()), args=(draw, found))
            other.start()
            other.join()
        noise.restore()
        found.append(draw())
        assert len(set(found)) == 3
    assert methods == (random.Random.seed, np.random.bit_generator.randbits)


@pytest.mark.parametrize("entry", ["auto", "plan", "operator", "hutchinson"])
def test_what_a_first_pass_imports_is_no_draw(entry: str) -> None:
    """Modules make generators when they are imported, and the names of temporary files come from one."""
    made: list[Any] = []

    def importing(_: Any, x: Tensor) -> Tensor:
        made.append(made[0] if made else random.Random())
        return x

    with said() as texts:
        ENTRIES[entry](Drawing(importing), torch.randn(3, 4))
    assert len(made) > 1
    assert texts == []


def test_an_import_in_mid_pass_moves_no_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules make generators of their own when they are imported; a model's draws stay where they were."""
    name = "imported_in_mid_pass"
    (tmp_path / f"{name}.py").write_text("import random, numpy\nA, B = random.Random(), numpy.random.default_rng()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def importing(_: Any, x: Tensor) -> Tensor:
        importlib.import_module(name)
        return x * (1 + random.Random().random() + float(np.random.default_rng().random()))

    model, x = Drawing(importing), torch.randn(3, 4)
    try:
        found = []
        with said() as texts:
            for _ in range(2):
                with seeded(3):
                    found.append(jaccli.jacobian(model, x, method="reverse"))
    finally:
        sys.modules.pop(name, None)
    assert torch.equal(*found)
    assert not any("deterministic" in text or "off" in text for text in texts)


def test_dropout_in_training_mode_is_told_of_once() -> None:
    for entry in ("auto", "plan", "operator", "deviation"):
        with said() as texts:
            ENTRIES[entry](InTraining(), torch.randn(3, 4))
        assert "Dropout" in texts[0]
        assert sum("draws random numbers" in text for text in texts) == (entry == "plan")  # of its call


def test_a_plan_of_a_mode_that_changes() -> None:
    """Recorded in evaluation mode, called in training mode: not the recorded J."""
    model, x = InTraining().eval(), torch.randn(3, 4)
    plan = jaccli.plan(model, x, method="structured")
    plan(x)
    model.train()
    with said() as texts:
        found = plan(x)
    torch.testing.assert_close(found, truth(model, x, GeneratorStates.now()), rtol=1e-5, atol=1e-5)
    assert any("draws random numbers" in text or "Dropout" in text for text in texts)


def test_networks_that_do_not_draw() -> None:
    """Nothing is said of those, and a pass in training mode with p = 0 is no draw."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.RReLU(), nn.Linear(4, 4)).eval()
    for entry in ("auto", "plan", "operator", "deviation", "estimate"):
        with said() as texts:
            ENTRIES[entry](model, torch.randn(3, 4))
        assert not any("draw" in text for text in texts)


def test_fresh_weights_are_seeded() -> None:
    """By whatever generator they are drawn; those of the caller are put back."""

    def make() -> nn.Module:
        fc = nn.Linear(2, 2)
        fc.weight.data += torch.as_tensor(np.random.rand(2, 2)).float() + random.random()
        fc.weight.data += np.random.default_rng().random() + random.Random().random()
        return fc

    noise = GeneratorStates.now()
    first, again, other = (build(make, None, seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert noise.restore() == []
