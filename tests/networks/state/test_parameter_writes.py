"""Passes that rewrite parameters: J is that of the pass, and the caller's parameters are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import jaccli
from jaccli.models.adapt import as_network
from jaccli.names import METHOD_NAMES
from jaccli.networks.state.parameter_writes import WriteWatch


class Writes(nn.Module):
    """Rewrites its weight by ``write`` before it uses it."""

    def __init__(self, write: Callable[[nn.Linear], None]) -> None:
        super().__init__()
        self.before, self.fc, self.write = nn.Linear(3, 3), nn.Linear(3, 3), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x).tanh()
        with torch.no_grad():
            self.write(self.fc)
        return self.fc(h).tanh() + h


class Looks(nn.Module):
    """Weighs the samples by embeddings with a bounded norm."""

    def __init__(self, embed: nn.Module, words: Any) -> None:
        super().__init__()
        self.embed, self.fc = embed, nn.Linear(3, 2)
        self.register_buffer("words", torch.tensor(words))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.embed(self.words).reshape(1, -1)).tanh()


class Tied(nn.Module):
    """One weight under two names, rewritten under the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.mul_(0.5)
        return self.b(self.a(x).tanh())


class ScriptClips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.clamp_(-0.2, 0.2)
        return self.fc(x).tanh()


class ByHook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.fc.register_forward_pre_hook(self._hook)

    @staticmethod
    def _hook(module: nn.Module, _: Any) -> None:
        module.weight.data.renorm_(2, 0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


def replaced(fc: nn.Linear) -> None:
    fc.weight = nn.Parameter(fc.weight * 0.5)


def other_memory(fc: nn.Linear) -> None:
    fc.weight.data = fc.weight.data / 3


def listed(fc: nn.Linear) -> None:
    torch._foreach_mul_([fc.weight, fc.bias], 0.5)


def into(fc: nn.Linear) -> None:
    torch.mul(fc.weight, 0.5, out=fc.weight)


def flag(fc: nn.Linear) -> None:
    fc.weight.requires_grad_(False)
    fc.bias.data[0] = 0.25


def asks(fc: nn.Linear) -> None:
    fc.bias.requires_grad_(True)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "clamp": lambda: Writes(lambda fc: fc.weight.clamp_(-0.2, 0.2)),
    "data": lambda: Writes(lambda fc: fc.weight.data.mul_(0.5)),
    "view": lambda: Writes(lambda fc: fc.weight[0].fill_(0.1)),
    "copy": lambda: Writes(lambda fc: fc.weight.copy_(fc.weight.T.clone())),
    "other memory": lambda: Writes(other_memory),
    "another parameter": lambda: Writes(replaced),
    "a list": lambda: Writes(listed),
    "out": lambda: Writes(into),
    "flag": lambda: Writes(flag),
    "flag of a frozen one": lambda: frozen(Writes(asks)),
    "hook": ByHook,
    "tied": Tied,
    "Embedding": lambda: Looks(nn.Embedding(5, 3, max_norm=0.3), [2]),
    "EmbeddingBag": lambda: Looks(nn.EmbeddingBag(5, 3, max_norm=0.3), [[0, 4]]),
    "script": lambda: torch.jit.script(ScriptClips()),
    "script within": lambda: nn.Sequential(torch.jit.script(ScriptClips()), nn.Linear(3, 3)),
    "script of Embedding": lambda: torch.jit.script(Looks(nn.Embedding(5, 3, max_norm=0.3), [2])),
}
ENTRIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **{m: (lambda model, x, m=m: jaccli.jacobian(model, x, method=m)) for m in METHOD_NAMES},
    "plan": lambda model, x: jaccli.plan(model, x)(x),
    "operator": lambda model, x: jaccli.operator(model, x).materialise(),
    "matmat": lambda model, x: jaccli.operator(model, x).matmat(torch.eye(3).double().expand(len(x), 3, 3)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    return model, torch.randn(2, 3).double()


def held(model: nn.Module) -> dict[str, Any]:
    """Of every parameter: which it is, where it lies, its version, flag and values."""
    return {
        name: (id(p) if not isinstance(model, torch.jit.ScriptModule) else 0, p.data_ptr(), p.requires_grad, p.tolist())
        for name, p in model.named_parameters(remove_duplicate=False)
    } | {f"{name} version": p._version for name, p in model.named_parameters()}


def truth(model: nn.Module, x: Tensor) -> Tensor:
    rows = []
    for sample in x.split(1):
        twin = copy.deepcopy(model)
        h = sample.clone().requires_grad_()
        y = twin(h).flatten()
        rows.append(torch.stack([torch.autograd.grad(o, h, retain_graph=True)[0].flatten() for o in y]))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", MODELS)
def test_rewritten_parameters(name: str, entry: str) -> None:
    model, x = made(name)
    before = held(model)
    near = 1e-5 if entry == "finite-difference" else 1e-10
    torch.testing.assert_close(ENTRIES[entry](model, x), truth(model, x), rtol=near, atol=near)
    assert held(model) == before


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("name", ["clamp", "data", "copy", "other memory", "tied"])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_gradients_by_rewritten_parameters(name: str, estimator: Any) -> None:
    """They arrive at the caller's parameters, as where nobody puts them back."""
    model, x = made(name)
    before = held(model)
    generator = torch.Generator().manual_seed(0)
    found = jaccli.identity_deviation(model, x, estimator=estimator, generator=generator)
    assert held(model) == before
    found.sum().backward()
    if estimator == "exact":
        twin = copy.deepcopy(model)
        twin.zero_grad()
        with torch.no_grad():
            twin(x)
        eye = torch.eye(3).double()
        torch.testing.assert_close(found, (truth(model, x) - eye).square().sum((1, 2)))
    gradients = [p.grad for p in model.parameters()]
    assert any(g is not None and g.any() for g in gradients)


def test_the_first_pass_is_not_made_twice_without_need() -> None:
    """Where nothing is written, a model with code of its own runs as often as one of torch's layers."""

    class Counts(nn.Sequential):
        calls = 0

        def forward(self, x: Any) -> Any:
            type(self).calls += 1
            return super().forward(x)

    as_network(Counts(nn.Linear(3, 3))).run((torch.randn(2, 3),), {})
    assert Counts.calls == 1


def test_a_layer_between(recwarn: Any) -> None:
    """Hidden layers are seen once, though the pass began anew."""
    model, x = made("clamp")
    found = jaccli.jacobian(model, x, "before", "output")
    assert torch.equal(found, jaccli.jacobian(model, x, "before#1", "output"))
    torch.testing.assert_close(
        found @ model.before.weight, jaccli.jacobian(model, x, "input", "output"), rtol=1e-10, atol=1e-10
    )


class Own(nn.Module):
    """Code of its own, which is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


def test_an_interrupt_leaves_no_watch_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come when the watch is on, and the block that takes it off is not entered yet."""
    enter = WriteWatch.__enter__

    def interrupted(self: WriteWatch) -> None:
        enter(self)
        raise KeyboardInterrupt

    model, x = Own(), torch.ones(2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(WriteWatch, "__enter__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jaccli.jacobian(model, x)
    assert _get_current_dispatch_mode() is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
