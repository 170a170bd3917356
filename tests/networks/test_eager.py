"""An ordinary module as a network: hooks, copies, doubts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.networks.eager import EagerNetwork
from jaccli.networks.network import StopRun
from tests import nets
from tests.scenarios import chain, conv_net


class Log:
    def __init__(self, paths: frozenset[str] | None = None, stop: str = "") -> None:
        self.paths, self.stop = paths, stop
        self.seen: list[tuple[str, str, int]] = []

    def enter(self, path: str, call: int, args: Any, kwargs: Any) -> Any:
        self.seen.append(("in", path, call))
        return args, kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        self.seen.append(("out", path, call))
        if path == self.stop:
            raise StopRun
        return output


def test_boundaries_in_order() -> None:
    log = Log()
    EagerNetwork(nets.Shared()).run((torch.randn(2, 4),), {}, log)
    assert log.seen == [
        ("in", "fc", 1),
        ("out", "fc", 1),
        ("in", "fc", 2),
        ("out", "fc", 2),
        ("in", "head", 1),
        ("out", "head", 1),
    ]


def test_only_wanted_paths_and_a_stop() -> None:
    model = nets.Shared()
    log = Log(frozenset({"fc"}), stop="fc")
    with pytest.raises(StopRun):
        EagerNetwork(model).run((torch.randn(2, 4),), {}, log)
    assert log.seen == [("in", "fc", 1), ("out", "fc", 1)]
    assert not model.fc._forward_hooks
    assert not model.fc._forward_pre_hooks


def test_a_model_that_catches_exceptions_does_not_catch_the_stop() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.fc(x)
            except Exception:
                return x

    model, x = Careful(), torch.randn(2, 4)
    j = jaccli.jacobian(model, x, "input", "fc", method="forward")
    assert torch.allclose(j, model.fc.weight.detach().expand(2, 4, 4))


@pytest.mark.parametrize("build", [conv_net, nets.Remembering, nets.Recurrent, chain(3, 4, 2)])
def test_cast_is_an_independent_copy(build: Any) -> None:
    model = build().eval()
    if isinstance(model, nets.Remembering):
        model(torch.randn(2, 4))  # leaves tensors with a history in attributes
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = EagerNetwork(model).cast(None, torch.float64)
    for tensor in twin.tensors():
        assert tensor.dtype in (torch.float64, torch.int64)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.add_(1)
    assert all(torch.equal(before[k], v) and before[k].dtype == v.dtype for k, v in model.state_dict().items())
    if isinstance(model, nets.Remembering):
        assert twin.module.hidden.dtype == torch.float64
        assert all(t.dtype == torch.float64 for t in twin.module.past)
        assert model.hidden.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "train", "word"),
    [
        (lambda: nn.BatchNorm1d(3), True, "BatchNorm"),
        (lambda: nn.BatchNorm1d(3), False, ""),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), False, "BatchNorm"),
        (lambda: nn.Dropout(0.5), True, "Dropout"),
        (lambda: nn.Dropout(0.0), True, ""),
        (lambda: nn.Dropout(0.5), False, ""),
        (chain(3, 3), True, ""),
    ],
)
def test_doubts(build: Any, train: bool, word: str) -> None:
    doubts = EagerNetwork(build().train(train)).warnings()
    assert [word in d for d in doubts] == ([True] if word else [])


def test_a_script_inside_a_module_is_named_but_not_hooked() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.script = nn.Linear(3, 3), torch.jit.script(nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.script(self.fc(x))

    model, x = Mixed(), torch.randn(2, 3)
    j = jaccli.jacobian(model, x, "fc")
    assert torch.allclose(j, torch.diag_embed(1 - torch.tanh(model.fc(x)) ** 2).detach())
    for _ in range(3):  # the profiling executor of scripts breaks later calls of forward mode
        assert torch.allclose(jaccli.jacobian(model, x, "fc", method="forward"), j)
