"""Training towards an end, without the command line: parts, and the run."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import resolve
from jaccli.models.adapt import as_network
from jaccli.networks.network import Network
from jaccli.planning.decide import TooLarge
from jaccli.run.blocks import Stopwatch
from jaccli.training.descent import WARM_STEPS, Descent, parameters_of
from jaccli.training.goal import EXACT_UP_TO, Goal, figures, goal_of
from jaccli.training.loop import Recipe, Training, TrainingStep
from jaccli.training.samples import COPIES, Batch, NoisyCopies, Samples, has_rows_of_arguments
from jaccli.training.task import Original, TrainingTask, outputs_of, task_of


class Net(nn.Module):
    """4 -> 4 -> 24 -> 4 -> 3; ``scale`` is a further argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.wide, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 24), nn.Linear(24, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.b(torch.tanh(self.wide(self.a(x))))))
        return y if scale is None else y * scale


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def samples(n: int = 12, targets: Tensor | None = None) -> Samples:
    return Samples(Inputs((torch.randn(n, 4),)), targets)


def aimed(network: Network, some: Samples, towards: str = "identity", target: str = "b", **more: object) -> Goal:
    pair = (resolve(network, "a"), resolve(network, target))
    how = {"weight": 1.0, "estimator": "auto", "probes": 1} | more
    return goal_of(network, some, [pair], towards, **how)  # type: ignore[arg-type]


def made(model: nn.Module, some: Samples, towards: str = "identity", target: str = "b", **recipe: object) -> Training:
    network = as_network(model)
    task = task_of(Original(network, some, 256), some)
    goal = aimed(network, some, towards, target)
    return Training(network, parameters_of(network, model), some, some, task, goal, Recipe(**recipe))  # type: ignore[arg-type]


def distance(j: Tensor, towards: str) -> Tensor:
    """By the definitions, sample by sample."""
    n = min(j.shape[1:])
    eye = torch.eye(n, dtype=j.dtype)
    match towards:
        case "identity":
            return torch.stack([(one - eye).norm() for one in j])
        case "scaled-identity":
            return torch.stack([(one - one.trace() / n * eye).norm() for one in j])
        case "zero":
            return torch.stack([one.norm() for one in j])
        case _:
            small = [one @ one.T if one.shape[0] <= one.shape[1] else one.T @ one for one in j]
            return torch.stack([(gram - eye).norm() for gram in small])


@pytest.mark.parametrize("towards", ["identity", "scaled-identity", "orthogonal", "zero"])
def test_each_end_is_approached_and_reported(towards: str) -> None:
    model, some = Net().eval(), samples()
    x = some.inputs.args[0]
    run = made(model, some, towards, steps=120, lr=3e-2, jitter=0.0)
    before = distance(jaccli.jacobian(model, x, "a", "b").double(), towards)
    told = figures(run.network, some, run.goal, run.task, 5, Stopwatch())
    assert told.frobenius[0] == pytest.approx(float(before.mean()), rel=1e-5)
    assert told.worst[0] == pytest.approx(float(before.max()) / 2, rel=1e-5)
    assert told.moved == 0
    *_, last = run
    run.restore()
    after = distance(jaccli.jacobian(model, x, "a", "b").double(), towards)
    told = figures(run.network, some, run.goal, run.task, 5, Stopwatch())
    assert float(after.mean()) < 0.5 * float(before.mean())
    assert told.relative[0] == pytest.approx(float(after.mean()) / 2, rel=1e-5)
    assert last.number == run.steps == 120
    assert run.stopped == "steps"


@pytest.mark.parametrize("towards", ["orthogonal", "zero"])
def test_a_j_that_is_not_square(towards: str) -> None:
    model, some = Net().eval(), samples()
    run = made(model, some, towards, "output", steps=120, lr=1e-2)
    assert run.goal.sizes == (3,)
    before = distance(jaccli.jacobian(model, some.inputs.args[0], "a"), towards)
    list(run)
    run.restore()
    after = distance(jaccli.jacobian(model, some.inputs.args[0], "a"), towards)
    assert float(after.mean()) < 0.8 * float(before.mean())


def test_hutchinson_reaches_it_too() -> None:
    model, some = Net().eval(), samples(64)
    network = as_network(model)
    goal = aimed(network, some, estimator="hutchinson")
    assert goal.estimator == "hutchinson"
    task = task_of(Original(network, some, 256), some)
    run = Training(network, parameters_of(network, model), some, some, task, goal, Recipe(steps=150, lr=1e-2, size=16))
    before = distance(jaccli.jacobian(model, some.inputs.args[0], "a", "b"), "identity")
    list(run)
    run.restore()
    after = distance(jaccli.jacobian(model, some.inputs.args[0], "a", "b"), "identity")
    assert float(after.mean()) < 0.3 * float(before.mean())


def test_products_take_over_where_j_is_large() -> None:
    for width, expected in ((EXACT_UP_TO, "exact"), (EXACT_UP_TO + 1, "hutchinson")):
        model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width))
        pair = (resolve(as_network(model), "0"), resolve(as_network(model), "1"))
        assert goal_of(as_network(model), samples(), [pair], "identity", 1.0, "auto", 1).estimator == expected
    tall = as_network(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, EXACT_UP_TO + 1)))
    pair = (resolve(tall, "0"), resolve(tall, "1"))
    assert goal_of(tall, samples(), [pair], "zero", 1.0, "auto", 1).estimator == "hutchinson"


def test_a_report_where_j_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 40)).eval(), samples(40)
    network = as_network(model)
    goal = goal_of(network, some, [(resolve(network, "0"), resolve(network, "2"))], "identity", 1.0, "auto", 1)
    task = task_of(Original(network, some, 256), some)
    exact = figures(network, some, goal, task, 16, Stopwatch())

    def refuse(*_: object, **__: object) -> None:
        raise TooLarge("J is too large")

    monkeypatch.setattr("jaccli.training.goal.stream", refuse)
    with pytest.warns(jaccli.JaccliNote, match="estimated from 64 products"):
        estimate = figures(network, some, goal, task, 16, Stopwatch())
    assert estimate.estimated
    assert not exact.estimated
    assert estimate.relative[0] == pytest.approx(exact.relative[0], rel=0.05)
    assert estimate.frobenius[0] != exact.frobenius[0]


def test_the_best_is_restored_whatever_follows_it() -> None:
    model, some = Net().eval(), samples()
    run = made(model, some, steps=400, lr=1e-2)
    steps = iter(run)
    for step in itertools.islice(steps, 200):
        assert isinstance(step, TrainingStep)
    assert run.best is not None
    best = run.best
    steps.close()
    with torch.no_grad():
        for value in run.values:
            value.add_(1.0)  # worse than ever
    run.restore()
    for value, kept in zip(run.values, best.values, strict=True):
        assert torch.equal(value, kept)


def test_what_an_interrupt_leaves_counts_if_it_is_better() -> None:
    model, some = Net().eval(), samples()
    run = made(model, some, steps=4000, lr=1e-2)
    steps = iter(run)
    list(itertools.islice(steps, 11))  # the first look is at step 20
    assert run.best is not None
    assert run.best.step == 0
    steps.close()
    run.restore()
    assert run.best.step == run.steps == 10


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model, some = Net().eval(), samples()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run = made(model, some, steps=50, lr=1e38)
    with pytest.warns(jaccli.JaccliWarning, match="not finite"):
        list(run)
    run.restore()
    assert run.stopped == "not finite"
    assert run.best is not None
    assert run.best.step == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_patience() -> None:
    model, some = Net().eval(), samples()
    run = made(model, some, steps=3000, lr=1e-2, patience=30)
    list(run)
    assert run.stopped == "patience"
    assert run.best is not None
    assert 30 <= run.steps - run.best.step < 60
    assert run.steps < 3000


def test_a_seed_decides_everything() -> None:
    def trained(seed: int) -> Tensor:
        torch.manual_seed(0)
        model, some = Net().eval(), samples(20)
        torch.manual_seed(seed + 17)  # the global generator does not matter
        run = made(model, some, steps=20, lr=1e-2, size=5, seed=seed)
        list(run)
        return torch.cat([value.detach().flatten() for value in run.values])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_nothing_else_changes() -> None:
    """BatchNorm's statistics, dropout, ties, buffers with infinities, the mode, tensors that are not trained."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
            self.count = nn.Parameter(torch.tensor([3]), requires_grad=False)
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.drop(torch.tanh(self.norm(self.a(x)))))
            return y

    model, some = Odd().eval(), samples()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = model.a.weight.detach().clone()
    run = made(model, some, steps=20)
    list(run)
    run.restore()
    assert model.b.weight is model.a.weight
    assert not torch.equal(model.a.weight, before)
    assert int(model.count) == 3
    assert not model.training
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_frozen_parameters_are_trained_too() -> None:
    model, some = Net().eval().requires_grad_(False), samples()
    run = made(model, some, steps=5)
    assert len(run.values) == 8
    before = model.b.weight.clone()
    list(run)
    assert not torch.equal(model.b.weight, before)


def test_a_constant_j_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.b(2 * self.a(x)))

    with pytest.raises(jaccli.UnsupportedError, match="does not change with the parameters"):
        list(made(Fixed().eval(), samples(), steps=5))


def test_what_cannot_be_trained_is_refused() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    with pytest.raises(jaccli.UnsupportedError, match="no floating-point parameters"):
        parameters_of(as_network(Bare()), Bare())
    model = Net()
    with torch.no_grad():
        model.b.bias[1] = math.nan
    with pytest.raises(jaccli.RefusedError, match=r"'b\.bias' is not finite"):
        parameters_of(as_network(model), model)


def test_batches_go_through_all_samples_before_they_repeat() -> None:
    some = Samples(Inputs((torch.arange(10.0).reshape(10, 1),)))
    drawn = some.shuffled(3, torch.Generator().manual_seed(0))
    first = torch.cat([next(drawn).inputs.args[0] for _ in range(3)]).flatten().tolist()
    again = torch.cat([next(drawn).inputs.args[0] for _ in range(3)]).flatten().tolist()
    assert len(set(first)) == len(set(again)) == 9
    assert first != again
    whole = some.shuffled(50, torch.Generator())
    assert next(whole) is next(whole)


def test_arguments_with_a_row_a_sample_go_with_their_samples() -> None:
    model = Net()
    scale = torch.rand(6, 3)
    inputs = Inputs((torch.randn(6, 4), scale))
    assert has_rows_of_arguments(as_network(model), inputs)
    taken = Samples(inputs, together=True).select([4, 1, 1]).inputs
    assert torch.equal(taken.args[1], scale[[4, 1, 1]])
    table = torch.rand(3)  # as many rows as there are samples, and none of them is a sample's
    inputs = Inputs((torch.randn(3, 4), table))
    assert not has_rows_of_arguments(as_network(model), inputs)
    assert Samples(inputs).select([0]).inputs.args[1] is table


def test_copies_lie_around_the_samples() -> None:
    x = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.0, 0.1])
    around = NoisyCopies(Samples(Inputs((x,))), 0.5)
    found = torch.cat([around.batch(10, torch.Generator().manual_seed(s)).inputs.args[0] for s in range(40)])
    assert len(found) == 40 * COPIES
    # The variance of the samples, and that of the noise.
    assert found.std(0).numpy() == pytest.approx(x.std(0).numpy() * math.sqrt(1.25), rel=0.1)


def test_movement_is_measured_by_the_spread_of_the_outputs() -> None:
    model, some = Net().eval(), samples(30)
    network = as_network(model)
    original = Original(network, some, 256)
    with torch.no_grad():
        y = model(some.inputs.args[0])
        model.head.bias += 0.5
        after = outputs_of(network, some.inputs)
    spread = float((y - y.mean(0)).square().mean())
    assert float(original.moved(after, Batch(some.inputs))) == pytest.approx(0.25 / spread, rel=1e-4)


def test_tasks() -> None:
    model, classes, numbers = Net().eval(), torch.randint(0, 3, (12,)), torch.randn(12, 3)
    network = as_network(model)
    for targets, expected, scale in (
        (classes, nn.functional.cross_entropy, math.log(3)),
        (classes[:, None], lambda y, t: nn.functional.cross_entropy(y, t[:, 0]), math.log(3)),
        (numbers, nn.functional.mse_loss, float(numbers.var(unbiased=False))),
    ):
        some = samples(12, targets)
        task = task_of(Original(network, some, 256), some)
        batch = some.select(range(12))
        outputs = outputs_of(network, batch.inputs)
        assert float(task.loss(outputs, batch).detach()) == pytest.approx(float(expected(outputs[0], targets).detach()))
        assert task.scale == pytest.approx(scale)


def test_classes_of_pixels_and_of_words() -> None:
    y = torch.randn(2, 5, 7)
    for shape, dim in (((2, 5), 2), ((2, 7), 1)):
        targets = torch.randint(0, y.shape[dim], shape)
        some = Samples(Inputs((torch.randn(2, 35),)), targets)
        network = as_network(nn.Sequential(nn.Unflatten(1, (5, 7))))
        task = task_of(Original(network, some, 8), some)
        expected = nn.functional.cross_entropy(y.movedim(dim, 1), targets)
        assert float(task.loss([y], Batch(some.inputs, targets))) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.randn(12, 4), "a row has shape"),
        (torch.zeros(12, 3, dtype=torch.int64), "integers are classes"),
        (torch.full((12,), 3), "classes from 3 to 3"),
        (torch.full((12,), -1), "classes from -1 to -1"),
    ],
)
def test_targets_that_do_not_fit(targets: Tensor, message: str) -> None:
    some = samples(12, targets)
    with pytest.raises(jaccli.UsageError, match=message):
        task_of(Original(as_network(Net().eval()), some, 256), some)


def test_targets_are_fitted_while_j_comes_near() -> None:
    x, model = torch.randn(64, 4), Net().eval()
    y = 0.5 * x @ torch.randn(4, 3)
    some = Samples(Inputs((x,)), y)
    before = float(nn.functional.mse_loss(model(x), y).detach())
    run = made(model, some, steps=200, lr=1e-2)
    assert run._noisy is None
    list(run)
    run.restore()
    assert float(nn.functional.mse_loss(model(x), y).detach()) < 0.3 * before
    assert float(distance(jaccli.jacobian(model, x, "a", "b"), "identity").mean()) < 0.5


def test_the_learning_rate_rises_and_comes_down_to_nothing() -> None:
    for steps in (50, 1200):
        value = torch.zeros(1, requires_grad=True)
        descent = Descent([value], steps, 0.1)
        rates = []
        for _ in range(steps):
            rates.append(descent._adam.param_groups[0]["lr"])
            descent.step((value - 1).square().sum())
        top = int(np.argmax(rates))
        assert max(rates) == pytest.approx(0.1, rel=0.01)
        assert top <= min(0.1 * steps, WARM_STEPS) + 1
        assert rates[-1] < 0.01 * 0.1 or steps == 50
        assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_weight_is_that_of_the_squared_distance_over_n() -> None:
    model, some = Net().eval(), samples()
    network = as_network(model)
    goal = aimed(network, some)
    squares = goal.squared_distances(network, some.select(range(12)), torch.Generator()).detach()
    j = jaccli.jacobian(model, some.inputs.args[0], "a", "b")
    assert squares.shape == (1, 12)
    assert squares[0].numpy() == pytest.approx((distance(j, "identity") ** 2 / 4).numpy(), rel=1e-5)
    task = TrainingTask(Original(network, some, 256))
    run = Training(network, parameters_of(network, model), some, some, task, aimed(network, some, weight=7.0), Recipe())
    assert next(iter(run)).evaluation.objective == pytest.approx(7 * float(squares.mean()), rel=1e-5)  # type: ignore[union-attr]
