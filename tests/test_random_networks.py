"""Random networks against the oracle; ``JACCLI_RANDOM_NETWORKS=5000`` takes more of them,
``JACCLI_RANDOM_METHOD=reverse`` another method.

A failure names the seed: ``python tests/random_networks.py SEED`` prints its network.
"""

from __future__ import annotations

import copy
import os
import random
import re
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.names import METHOD_NAMES
from jaccli.penalty.identity import deviation_from
from tests import oracle
from tests.oracle import INPUT, OUTPUT
from tests.random_networks import (
    ANY,
    BY_RANK,
    COMMON,
    ELEMENTWISE,
    HARD,
    JOINTS,
    Draw,
    Drawn,
    entries,
    random_network,
)

COUNT = int(os.environ.get("JACCLI_RANDOM_NETWORKS", "120"))
DEFAULT = "structured" if "structured" in tuple(map(str, METHOD_NAMES)) else "auto"
METHOD = os.environ.get("JACCLI_RANDOM_METHOD", DEFAULT)
FLOOR = 1e-2  # a smaller J is what is left of larger numbers
LARGEST = 1e4  # products of so many numbers lose digits in plain backward passes too
CHUNKS = [range(first, min(first + 10, COUNT)) for first in range(0, COUNT, 10)]
in_chunks = pytest.mark.parametrize("seeds", CHUNKS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


@cache
def drawn(seed: int) -> Drawn:
    return random_network(seed)


@cache
def truth(seed: int) -> Tensor:
    return true_jacobian(drawn(seed), drawn(seed).x)


def true_jacobian(network: Drawn, x: Tensor) -> Tensor:
    return oracle.jacobian(copy.deepcopy(network.model), x, *network.at, args=network.args)


def jacobian(network: Drawn, x: Tensor, model: Any = None, args: Any = None, **options: Any) -> Tensor:
    model, args = model or network.model, network.args if args is None else args
    return jaccli.jacobian(model, x, network.source, network.target, method=METHOD, args=args, **options)


def error(matrix: Tensor, true: Tensor) -> float:
    """Largest error of a sample, relative to its J, or to ``FLOOR`` where J is smaller."""
    assert matrix.shape == true.shape, f"shape {tuple(matrix.shape)}, expected {tuple(true.shape)}"
    assert true.isfinite().all(), "the truth is not finite"
    gap = (matrix.double() - true.double()).flatten(1).norm(dim=1)
    worst = float((gap / true.double().flatten(1).norm(dim=1).clamp(min=FLOOR)).max())
    return worst if worst == worst else float("inf")


def same(matrix: Tensor, true: Tensor, what: str = "J", tolerance: float = 1e-10) -> None:
    worst = error(matrix, true)
    assert worst <= tolerance, f"{what} is off by {worst:.1e}"


def faults(seeds: Iterable[int], check: Callable[[int], None], hard: bool = False) -> list[str]:
    """What is wrong with which seed; a chunk goes on after a fault."""
    found = []
    for seed in seeds:
        try:
            check(seed)
        except Exception as fault:  # whatever it is, the seed must be named
            found.append(f"{random_network(seed, hard).description}: {said(fault)}")
    return found


def said(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"


@in_chunks
def test_random_networks_agree_with_the_oracle(seeds: range) -> None:
    assert not faults(seeds, lambda seed: same(jacobian(drawn(seed), drawn(seed).x), truth(seed)))


def other_samples(network: Drawn, near: bool) -> Tensor:
    noise = torch.randn(network.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return network.x + 1e-5 * noise if near else noise


def check_plan(seed: int) -> None:
    check_plan_of(drawn(seed), truth(seed))


def check_plan_of(network: Drawn, true: Tensor) -> None:
    """A plan holds nothing of the samples that it was made with."""
    plan = jaccli.plan(network.model, network.x, network.source, network.target, method=METHOD, args=network.args)
    same(plan(network.x, args=network.args), true, "the plan's J")
    for near in (False, True):
        x = other_samples(network, near)
        try:
            there = plan(x, args=network.args)
        except jaccli.JaccliError:
            assert network.chooses, "refused although no branch hangs on the values"
            assert not near, "refused for the branch that it was made for"
            continue
        same(there, true_jacobian(network, x), "the plan's J elsewhere")
        same(there, jacobian(network, x), "the plan's J against a fresh one")
    same(plan(network.x, args=network.args), true, "the plan's J, back again")


@in_chunks
def test_plans_are_good_at_other_samples(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 3 == 0), check_plan)


def check_order(seed: int) -> None:
    network = drawn(seed)
    backwards = [arg.flip(0) if isinstance(arg, Tensor) else arg for arg in network.args]
    same(jacobian(network, network.x.flip(0), args=backwards).flip(0), truth(seed), "J of the batch reversed")
    for chunk in (1, 3):
        same(jacobian(network, network.x, chunk=chunk), truth(seed), f"J with chunk={chunk}")
    if not network.chooses:
        alone = [arg[:1] if isinstance(arg, Tensor) else arg for arg in network.args]
        same(jacobian(network, network.x[:1], args=alone), truth(seed)[:1], "J of the first sample alone")


@in_chunks
def test_order_and_chunks_do_not_matter(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 3 == 1), check_order)


def check_single(seed: int) -> None:
    network = drawn(seed)
    model = copy.deepcopy(network.model).float()
    args = tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in network.args)
    j = jacobian(network, network.x.float(), model=model, args=args)
    assert j.dtype == torch.float32
    # Some networks lose more digits than others: what plain autograd loses is allowed tenfold.
    plain = oracle.jacobian(copy.deepcopy(model), network.x.float(), *network.at, args=args)
    same(j, truth(seed), "J in float32", max(1e-3, 10 * error(plain, truth(seed))))


@in_chunks
def test_single_precision(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 5 == 0), check_single)


@cache
def drawn_hard(seed: int) -> Drawn:
    return random_network(seed, hard=True)


@cache
def truth_hard(seed: int) -> Tensor:
    return true_jacobian(drawn_hard(seed), drawn_hard(seed).x)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def check_products(seed: int) -> None:
    """Products by every route that a call can take, singular values, and estimates within six standard errors."""
    network, j = drawn_hard(seed), truth_hard(seed)
    if float(j.abs().max()) > LARGEST:
        return
    a = jaccli.operator(network.model, network.x, network.source, network.target, args=network.args)
    batch, n_out, n_in = j.shape
    for k in (1, 1, 9):
        v, u = vectors(batch, n_in, k), vectors(batch, n_out, k)
        same(a.matmat(v), j @ v, f"JV, k={k}")
        same(a.rmatmat(u), j.mT @ u, f"JᵀU, k={k}")
    same(a.frobenius()[:, None, None], j.flatten(1).norm(dim=1)[:, None, None], "‖J‖")
    same(a.sample(0).matmat(v[:1]), j[:1] @ v[:1], "JV of a sample")
    gram = jaccli.estimate(a.T @ a, probes=64)
    right = (j.mT @ j).diagonal(dim1=1, dim2=2).sum(1)
    gap = (gram["trace"].value - right).abs()
    assert bool((gap <= 6 * gram["trace"].stderr + 0.05 * right).all()), "tr JᵀJ by estimate"


def check_gradient(seed: int) -> None:
    """The gradient of ‖J‖²: that of its slope, or refused, or with a warning."""
    network = drawn_hard(seed)
    names, args = (network.source, network.target), network.args
    if network.chooses or "detach" in repr(network.model):
        return
    model = copy.deepcopy(network.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = deviation_from("zero", model, network.x, *names, args=args)
            if not found.requires_grad:
                return
            found.sum().backward()
        except jaccli.UnsupportedError:
            return
    j = truth_hard(seed)
    if float(j.abs().max()) > LARGEST:
        return
    same(found.detach()[:, None, None], j.square().sum((1, 2))[:, None, None], "‖J‖²")
    told = [w for w in caught if issubclass(w.category, jaccli.JaccliWarning)]
    if any(not issubclass(w.category, jaccli.JaccliNote) for w in told):
        return
    got = sum(float((p.grad * vectors(*p.shape)).sum()) for p in model.parameters() if p.grad is not None)
    near, far = (slope(network, h) for h in (1e-6, 2e-6))
    room = 1e-5 * float(j.square().sum()) + 10 * abs(near - far)
    assert abs(got - near) <= 1e-4 * abs(near) + room, f"the gradient is {got}, the slope {near}"


def slope(network: Drawn, h: float) -> float:
    """Of ‖J‖² by the parameters, along the directions that ``vectors`` gives."""
    values = []
    for step in (h, -h):
        moved = copy.deepcopy(network.model)
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(step * vectors(*p.shape))
        j = oracle.jacobian(moved, network.x, *network.at, args=network.args)
        values.append(float(j.square().sum()))
    return (values[0] - values[1]) / (2 * h)


@in_chunks
@pytest.mark.filterwarnings("ignore")
def test_products_and_estimates(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 3 == 2), check_products, hard=True)


def check_hard_plan(seed: int) -> None:
    if float(truth_hard(seed).abs().max()) <= LARGEST:
        check_plan_of(drawn_hard(seed), truth_hard(seed))


@in_chunks
@pytest.mark.filterwarnings("ignore")
def test_plans_of_hard_rules(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 6 == 4), check_hard_plan, hard=True)


@in_chunks
@pytest.mark.filterwarnings("ignore")
def test_gradients(seeds: range) -> None:
    assert not faults((seed for seed in seeds if seed % 6 == 1), check_gradient, hard=True)


def test_every_hard_rule_is_drawn() -> None:
    text = " ".join(repr(drawn_hard(seed).model) for seed in range(min(COUNT, 300)))
    missing = [
        code
        for code, _ in entries(HARD)
        if COUNT >= 300
        and re.findall(r"hard[.]\w+|torch[.]sgn|pdist", code)[:1]
        and not any(word in text for word in re.findall(r"hard[.]\w+|torch[.]sgn|pdist", code))
    ]
    assert not missing


def scripted(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return torch.jit.trace(model, inputs, check_trace=False)


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return torch.export.export(model, inputs)


@pytest.mark.parametrize("seeds", [range(10), range(10, 20)], ids=str)
@pytest.mark.parametrize("form", [scripted, traced, exported])
@pytest.mark.filterwarnings("ignore")
def test_other_forms_of_the_model(form: Callable[..., Any], seeds: range) -> None:
    built = []

    def check(seed: int) -> None:
        network = drawn(seed)
        tensors = tuple(arg for arg in network.args if isinstance(arg, Tensor))
        try:
            model = form(copy.deepcopy(network.model), (network.x, *tensors))
        except Exception:  # torch does not take every network
            return
        built.append(seed)
        same(jacobian(network, network.x, model=model, args=tensors), truth(seed), f"J {form.__name__}")

    assert not faults(seeds, check)
    assert len(built) >= 0.7 * len(seeds), built


BLOCKS = [(table, shape) for shape in ((4,), (4, 6), (4, 4, 6)) for table in (ELEMENTWISE, ANY, JOINTS)]
BLOCKS += [(tables[len(shape)], shape) for tables in (BY_RANK, COMMON) for shape in ((4,), (4, 6), (4, 4, 6))]


@pytest.mark.parametrize(("table", "shape"), BLOCKS, ids=[f"{i}-{shape}" for i, (_, shape) in enumerate(BLOCKS)])
def test_every_kind_of_block_alone(table: str, shape: tuple[int, ...]) -> None:
    draw, wrong = Draw(random.Random(0), depth=1, limit=60, width=6, common=False), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for code in draw.fitting(shape, table):
            block, x = draw.made(shape, code).double().eval(), torch.randn(2, *shape).double()
            true = oracle.jacobian(copy.deepcopy(block), x, INPUT, OUTPUT)
            assert true.any(), code
            try:
                same(jaccli.jacobian(block, x, method=METHOD), true)
            except Exception as fault:  # whatever it is, the block must be named
                wrong.append(f"{code}: {said(fault)}")
    assert not wrong


def test_no_kind_of_block_is_left_out() -> None:
    draw = Draw(random.Random(0), depth=1, limit=60, width=6, common=False)
    fitting = {(table, code) for table, shape in BLOCKS for code in draw.fitting(shape, table)}
    assert fitting == {(table, code) for table, _ in BLOCKS for code, _ in entries(table)}


def test_a_seed_is_always_the_same_network() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    one, two = random_network(11), random_network(11)
    assert torch.equal(torch.rand(3), expected)
    assert repr(one.model) == repr(two.model)
    assert (one.description, one.at) == (two.description, two.at)
    assert torch.equal(one.x, two.x)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name])


def test_networks_differ_and_have_something_to_find() -> None:
    seeds = range(min(COUNT, 100))
    assert len({repr(drawn(seed).model) for seed in seeds}) >= 0.95 * len(seeds)
    assert sum(bool((truth(seed).abs() > 1e-6).any()) for seed in seeds) >= 0.85 * len(seeds)
    places = [drawn(seed).at for seed in seeds]
    assert len({(source.path == "input", target.path == "output") for source, target in places}) == 4


@pytest.mark.skipif(METHOD != "structured", reason="about structured")
def test_few_networks_fall_back() -> None:
    fell: dict[int, str] = {}
    seeds = range(min(COUNT, 100))
    for seed in seeds:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            jacobian(drawn(seed), drawn(seed).x)
        fell.update((seed, str(note.message)) for note in notes if "taken with" in str(note.message))
    assert len(fell) <= 0.1 * len(seeds), fell
