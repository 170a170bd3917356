"""‖J − I‖² that gradients flow through: value and gradient against float64 row by row, differentiated numerically."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import jaccli
from jaccli.penalty.call_site import _SITES
from jaccli.penalty.identity import deviation_from
from tests import oracle
from tests.scenarios import TABLE, Scenario, case_name

pytestmark = pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
# A float64 model with samples apart, whose derivative is that of its operators.
FIT = [
    s
    for s in TABLE
    if torch.float64 in s.dtypes
    and not s.train
    and not s.warns
    and "zero" not in s.takes.values()
    and "finite-difference" not in (s.takes.get("reverse"), s.takes.get("loop"))
    and "error" not in s.takes.values()
]


def truth_at(s: Scenario, model: nn.Module, x: Tensor) -> Tensor:
    import copy

    j = oracle.jacobian(copy.deepcopy(model), x, *s.at, **s.extras(torch.float64))
    return j.square().sum((1, 2))


def moved(model: nn.Module, directions: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for p, d in zip(model.parameters(), directions, strict=True):
            p.add_(d, alpha=step)


@pytest.mark.parametrize("s", FIT, ids=case_name)
def test_value_and_gradient(s: Scenario) -> None:
    """‖J‖² of any shape of J; its derivative along a random direction of parameters and samples."""
    torch.manual_seed(0)
    model, x = s.model(torch.float64), s.x(torch.float64)
    if not x.is_floating_point():
        pytest.skip("samples of integers")
    x.requires_grad_()
    for p in model.parameters():
        p.requires_grad_()
    try:
        found = deviation_from("zero", model, x, s.source, s.target, **s.extras(torch.float64))
    except jaccli.UnsupportedError as error:
        if "second derivative" not in str(error):
            raise
        return
    truth = truth_at(s, model, x.detach())
    assert torch.allclose(found.detach(), truth, rtol=1e-9, atol=1e-12)
    given = [x, *model.parameters()]
    grads = torch.autograd.grad(found.sum(), given, allow_unused=True) if found.requires_grad else [None] * len(given)
    directions = [torch.randn_like(t) for t in given]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None)
    step = 1e-6
    sides = []
    for sign in (1, -1):
        moved(model, directions[1:], sign * step)
        sides.append(float(truth_at(s, model, x.detach() + sign * step * directions[0]).sum()))
        moved(model, directions[1:], -sign * step)
    numeric = (sides[0] - sides[1]) / (2 * step)
    assert slope == pytest.approx(numeric, rel=2e-4, abs=1e-5 * max(1.0, float(truth.sum())))


def test_the_table_is_not_empty() -> None:
    assert len(FIT) > 40


def square(*between: nn.Module, n: int = 5, hidden: int = 7) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(n, hidden), *between, nn.Linear(hidden, n)).double()


class Unseen(nn.Module):
    """The engine does not follow what is random: J is made of products."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0 * torch.rand(1, dtype=x.dtype)


def jacobian_of(model: nn.Module, x: Tensor) -> Tensor:
    """(batch, n, n) with a graph, by torch.func."""
    weights = dict(model.named_parameters())
    one = lambda z: torch.func.functional_call(model, weights, (z[None],))[0]  # noqa: E731
    found: Tensor = torch.func.vmap(torch.func.jacrev(one))(x)
    return found


NETS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: square(nn.Tanh()),
    "gelu": lambda: square(nn.GELU()),
    "silu": lambda: square(nn.SiLU()),
    "relu": lambda: square(nn.ReLU()),
    "mish": lambda: square(nn.Mish()),
    "bottleneck": lambda: square(nn.Tanh(), n=8, hidden=3),
    "layer norm": lambda: square(nn.LayerNorm(7), nn.Tanh()),
    "group norm": lambda: square(nn.Tanh(), nn.GroupNorm(1, 7), nn.Tanh()),
    "softmax": lambda: square(nn.Softmax(-1)),
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda j: (j - torch.eye(j.shape[1]).double()).square().sum((1, 2)),
    "zero": lambda j: j.square().sum((1, 2)),
    "orthogonal": lambda j: (j @ j.mT - torch.eye(j.shape[1]).double()).square().sum((1, 2)),
    "scaled-identity": lambda j: j.square().sum((1, 2)) - j.diagonal(dim1=1, dim2=2).sum(1).square() / j.shape[1],
}


@pytest.mark.parametrize("seen", [True, False], ids=["engine", "products"])
@pytest.mark.parametrize("towards", ENDS)
@pytest.mark.parametrize("name", NETS)
def test_both_ways_and_all_ends(name: str, towards: Any, seen: bool) -> None:
    model = NETS[name]()
    x = torch.randn(4, model[0].in_features, dtype=torch.float64, requires_grad=True)  # type: ignore[index]
    truth = ENDS[towards](jacobian_of(model, x))
    found = deviation_from(towards, model if seen else Unseen(model), x)
    assert torch.allclose(found, truth, rtol=1e-9)
    given = [x, *model.parameters()]
    want, got = (torch.autograd.grad(d.sum(), given, allow_unused=True) for d in (truth, found))
    for w, g in zip(want, got, strict=True):
        zero = torch.zeros(()).double()
        assert torch.allclose(zero if g is None else g, zero if w is None else w, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("towards", ENDS)
def test_hutchinson_is_unbiased(towards: Any) -> None:
    """Value and gradient, by many probes; at the best α there is a known bias of 2‖J‖²/n at most."""
    model = NETS["tanh"]()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    truth = ENDS[towards](jacobian_of(model, x))
    generator = torch.Generator().manual_seed(0)
    found = deviation_from(towards, model, x, estimator="hutchinson", probes=4000, generator=generator)
    slack = 2 * jacobian_of(model, x).square().sum((1, 2)) / 5 if towards == "scaled-identity" else 0.0
    assert torch.all((found - truth).abs() <= 0.05 * truth + slack)
    if towards != "scaled-identity":
        (want,), (got,) = (torch.autograd.grad(d.sum(), [model[0].weight]) for d in (truth, found))  # type: ignore[index]
        assert float((want - got).norm()) < 0.1 * float(want.norm())


def test_probes_are_drawn_by_the_generator() -> None:
    model, x = NETS["tanh"](), torch.randn(2, 5).double()
    runs = [
        jaccli.identity_deviation(model, x, estimator="hutchinson", generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_training_reduces_it(estimator: Any) -> None:
    """The program holds nothing of the parameters at which it was recorded."""
    torch.manual_seed(0)
    model = square(nn.Tanh()).float()
    x = torch.randn(16, 5)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    before = jaccli.identity_deviation(model, x).mean().item()
    for _ in range(150):
        optimiser.zero_grad()
        jaccli.identity_deviation(model, x, estimator=estimator).mean().backward()
        optimiser.step()
    after = jaccli.identity_deviation(model, x).mean().item()
    j = jaccli.jacobian(model, x)
    assert after == pytest.approx(float((j - torch.eye(5)).square().sum((1, 2)).mean()), rel=1e-4)
    assert after < before / 10


def test_a_hidden_layer_and_what_lies_before_it() -> None:
    """Gradients flow to x and to the layers before the source: J hangs on where they put it."""
    model = NETS["tanh"]()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    deviation_from("zero", model, x, "0", "2").sum().backward()
    assert x.grad is not None
    assert x.grad.norm() > 0
    assert model[0].weight.grad.norm() > 0  # type: ignore[index, union-attr]


def test_nothing_of_the_model_is_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)).train()
    x = torch.randn(6, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    noise = torch.get_rng_state()
    for estimator in ("exact", "hutchinson"):
        generator = torch.Generator().manual_seed(0)
        jaccli.identity_deviation(model, x, estimator=estimator, generator=generator)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_samples_that_mix_are_told_and_taken_apart() -> None:
    """Each sample's own block, the others held."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().train()
    x = torch.randn(5, 4).double()
    with pytest.warns(jaccli.JaccliWarning, match="samples mix"):
        found = jaccli.identity_deviation(model, x)
    whole = torch.autograd.functional.jacobian(nn.Sequential(*model).train(), x)
    blocks = torch.stack([whole[b, :, b] for b in range(5)])
    assert torch.allclose(found.detach(), (blocks - torch.eye(4)).square().sum((1, 2)), rtol=1e-8)


def test_batch_norm_with_other_statistics_is_another_program() -> None:
    """Buffers are part of the program: when they change it is recorded again."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).double().eval()
    x = torch.randn(3, 4).double()
    for scale in (1.0, 4.0):
        model[1].running_var.fill_(scale)  # type: ignore[operator, union-attr]
        j = jaccli.jacobian(model, x)
        found = jaccli.identity_deviation(model, x).detach()
        assert torch.allclose(found, (j - torch.eye(4)).square().sum((1, 2)), rtol=1e-9)


def test_without_gradients_there_is_no_graph() -> None:
    model, x = NETS["tanh"](), torch.randn(2, 5).double()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for estimator in ("exact", "hutchinson"):
                assert not jaccli.identity_deviation(model, x, estimator=estimator).requires_grad  # type: ignore[arg-type]


def test_frozen_parameters_get_no_gradient() -> None:
    model, x = NETS["tanh"](), torch.randn(2, 5).double()
    model[0].requires_grad_(False)  # type: ignore[index]
    jaccli.identity_deviation(model, x).sum().backward()
    assert model[0].weight.grad is None  # type: ignore[index]
    assert model[2].weight.grad is not None  # type: ignore[index]
    model[0].requires_grad_(True)  # type: ignore[index]
    jaccli.identity_deviation(model, x).sum().backward()
    assert model[0].weight.grad is not None  # type: ignore[index]


def test_a_detached_branch_passes_no_gradient() -> None:
    """What the model detaches is a constant of J, in its gradient too."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.way = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.way(x) * torch.sigmoid(self.gate(x)).detach()

    model, x = Half(), torch.randn(3, 4).double()
    jaccli.identity_deviation(model, x).sum().backward()
    assert model.gate.weight.grad is None or not model.gate.weight.grad.any()
    assert model.way.weight.grad is not None


def test_another_branch_is_not_the_program_s() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if bool(x.sum() > 0) else self.b(x).tanh()

    model, x = Branch(), torch.ones(2, 4).double()
    for sign in (1.0, -1.0, 1.0):
        j = jaccli.jacobian(model, sign * x)
        found = jaccli.identity_deviation(model, sign * x)
        assert torch.allclose(found.detach(), (j - torch.eye(4)).square().sum((1, 2)), rtol=1e-9)


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_autocast(estimator: Any) -> None:
    """In bfloat16: the value to its digits, in float32, and gradients in the parameters' dtype."""
    torch.manual_seed(0)
    model, x = square(nn.Tanh(), n=16, hidden=32).float(), torch.randn(4, 16)
    truth = jaccli.identity_deviation(model, x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # as a training step does before: autocast keeps its casts of the weights
        found = jaccli.identity_deviation(model, x, estimator=estimator, probes=100)
    assert found.dtype == torch.float32
    assert torch.allclose(found, truth, rtol=0.15)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model[0].parameters())  # type: ignore[index]
    model[0].weight.data.mul_(2)  # type: ignore[index, union-attr]
    truth = jaccli.identity_deviation(model, x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = jaccli.identity_deviation(model, x, estimator=estimator, probes=100)
    assert torch.allclose(found, truth, rtol=0.15)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 5), square(nn.Tanh()), nn.Linear(5, 5)
        self.reentrant = reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_gradient_checkpointing(estimator: Any, reentrant: bool) -> None:
    model, x = Checkpointed(reentrant), torch.randn(3, 5).double()
    plain = nn.Sequential(model.first, model.inner, model.last)
    runs = [
        jaccli.identity_deviation(m, x, estimator=estimator, generator=torch.Generator().manual_seed(1))
        for m in (model, plain)
    ]
    assert torch.allclose(runs[0], runs[1], rtol=1e-9)
    got, want = (torch.autograd.grad(d.sum(), list(plain.parameters()), allow_unused=True) for d in runs)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None) or not (w if g is None else g).any()  # type: ignore[union-attr]
        if g is not None and w is not None:
            assert torch.allclose(g, w, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_torch_compile(estimator: Any) -> None:
    """A compiled model is used as it is inside; within a compiled training step the call stands apart."""
    model, x = NETS["tanh"](), torch.randn(3, 5).double()

    def measured(net: Any) -> Tensor:
        return jaccli.identity_deviation(net, x, estimator=estimator, generator=torch.Generator().manual_seed(1))

    truth = measured(model)
    want = torch.autograd.grad(truth.sum(), [model[0].weight])[0]  # type: ignore[index]
    assert torch.allclose(measured(torch.compile(model, backend="eager")), truth)

    @torch.compile(backend="aot_eager")
    def step(z: Tensor) -> Tensor:
        return (model(z) ** 2).mean() + measured(model).sum()

    got = torch.autograd.grad(step(x) - (model(x) ** 2).mean(), [model[0].weight])[0]  # type: ignore[index]
    assert torch.allclose(got, want, rtol=1e-8)


def test_script_modules_and_modules_that_share_names() -> None:
    model, x = NETS["tanh"](), torch.randn(3, 5).double()
    scripted = torch.jit.script(model)
    truth = jaccli.identity_deviation(model, x)
    found = jaccli.identity_deviation(scripted, x)
    assert torch.allclose(found, truth)
    found.sum().backward()
    truth.sum().backward()
    for p, q in zip(scripted.parameters(), model.parameters(), strict=True):
        if q.grad is not None:
            assert torch.allclose(p.grad, q.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_recurrent_layers(kind: Any, estimator: Any) -> None:
    """Their fused kernels have no second derivative."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rnn(x)[0]
            return out

    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 4, requires_grad=True)
    found = jaccli.identity_deviation(model, x, estimator=estimator, probes=50)
    j = jaccli.jacobian(model, x.detach())
    assert torch.allclose(found, (j - torch.eye(12)).square().sum((1, 2)), rtol=1e-4 if estimator == "exact" else 0.2)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.grad is not None or p.dim() > 1)


def test_no_path_is_the_distance_of_zero() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    for estimator in ("exact", "hutchinson"):
        found = jaccli.identity_deviation(Cut(), torch.randn(3, 4), estimator=estimator)  # type: ignore[arg-type]
        assert torch.equal(found, torch.full((3,), 4.0))


def test_errors() -> None:
    model, x = NETS["tanh"](), torch.randn(2, 5).double()
    with pytest.raises(jaccli.UsageError, match="same size"):
        jaccli.identity_deviation(model, x, target="0")
    with pytest.raises(jaccli.UsageError, match="estimator"):
        jaccli.identity_deviation(model, x, estimator="guess")  # type: ignore[arg-type]
    with pytest.raises(jaccli.UsageError, match="probes"):
        jaccli.identity_deviation(model, x, estimator="hutchinson", probes=0)
    with pytest.raises(jaccli.UsageError, match="nothing"):
        jaccli.identity_deviation(model, x, source="nothing")
    with pytest.raises(jaccli.RefusedError):
        jaccli.identity_deviation(model, torch.randn(2, 9).double())
    with pytest.raises(jaccli.UsageError):
        jaccli.identity_deviation("model.pt", x)
    with pytest.raises(jaccli.UsageError):
        jaccli.identity_deviation(model, [1.0])  # type: ignore[arg-type]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return u * x.cos()


def test_no_second_derivative_is_told() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Once.apply(self.first(x))
            return out

    for estimator in ("exact", "hutchinson"):
        with pytest.raises(jaccli.UnsupportedError, match="second derivative"):
            jaccli.identity_deviation(Net(), torch.randn(2, 4), estimator=estimator)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_a_program_with_a_wrong_gradient_is_not_used(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value alone would be believed."""
    from jaccli.graph.program.differentiable import Accumulation

    inner = Accumulation.__call__

    def halved(self: Accumulation, tensors: list[Tensor]) -> Any:
        found = inner(self, tensors)
        return None if found is None else tuple((m + m.detach()) / 2 for m in found)

    monkeypatch.setattr(Accumulation, "__call__", halved)
    model, x = NETS["tanh"](), torch.randn(2, 5).double()
    with pytest.warns(jaccli.JaccliNote, match="disagree"):
        found = jaccli.identity_deviation(model, x, estimator=estimator, generator=torch.Generator().manual_seed(0))
    monkeypatch.undo()
    truth = jaccli.identity_deviation(
        NETS["tanh"](), x, estimator=estimator, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(found, truth)


def test_the_model_is_not_kept_alive() -> None:
    model = NETS["tanh"]()
    jaccli.identity_deviation(model, torch.randn(2, 5).double()).sum().backward()
    ref = weakref.ref(model)
    assert model in _SITES
    del model
    gc.collect()
    assert ref() is None
