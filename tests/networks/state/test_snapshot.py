"""Nothing of the model changes: whatever is computed, and however it ends."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.names import METHOD_NAMES
from tests import nets
from tests.scenarios import TABLE, Scenario, case_name, chain, conv_net, encoder


class Watched(nn.Module):
    """Everything that could be left behind: hooks of the user's own, state, gradients, frozen parameters."""

    counter: Tensor

    def __init__(self, training: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.head, self.memory = nn.Linear(4, 3), nets.Remembering()
        self.register_buffer("counter", torch.zeros(()))
        self.notes: dict[str, Any] = {"last": torch.ones(3), "names": ["a"], "count": 0}
        self.seen: set[int] = set()
        self.plain = torch.ones(3, requires_grad=True)
        self.head.bias.requires_grad_(False)
        self.hook_calls = 0
        self.train(training)
        self.body[0].register_forward_hook(self._hook)
        self.head.register_forward_pre_hook(lambda m, a: None)
        self.head.register_full_backward_hook(lambda m, i, o: None)
        for p in self.parameters():
            p.grad = torch.full_like(p, 0.5)

    def _hook(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.hook_calls += 1

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        self.notes["count"] += 1
        self.notes["last"] = x
        self.notes["names"].append("b")
        self.seen.add(len(self.seen))
        self.extra = x
        h = self.body(x)
        return self.head(self.memory(h)) * self.plain


def picture(model: nn.Module) -> dict[str, Any]:
    """What must be the same afterwards: identities, values and versions."""
    seen: dict[str, Any] = process()
    for path, module in model.named_modules():
        seen[f"{path}!training"] = module.training
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
                if name in module._parameters:
                    seen[f"{path}:{name} memory"] = (tensor.data_ptr(), tensor._version)
                seen[f"{path}:{name}"] = (id(tensor), tensor.detach().clone(), tensor.requires_grad, grad)
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in vars(module).items():
            if name.startswith("_") and name.endswith("hooks"):
                seen[f"{path}!{name}"] = list(value.items() if isinstance(value, dict) else value)
            elif not name.startswith("_"):
                seen[f"{path}?{name}"] = (id(value), frozen(value))
    return seen


def process() -> dict[str, Any]:
    """What holds for the whole process."""
    backends = torch.backends
    return {
        "torch's generator": torch.get_rng_state(),
        "NumPy's generator": repr(np.random.get_state()),
        "Python's generator": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "forward mode": torch._C._is_fwd_grad_enabled(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
        "precision": (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.deterministic),
        "attention": (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "executor": torch._C._get_graph_executor_optimize(),
        "modes": torch._C._len_torch_dispatch_stack(),
        "print": repr(torch._tensor_str.PRINT_OPTS),
        "hooks": nn.modules.module._has_any_global_hook(),
    }


def frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (id(value), value.requires_grad, value.detach().clone())
    if isinstance(value, dict):
        return {k: frozen(v) for k, v in value.items()}
    return [frozen(v) for v in value] if isinstance(value, list | tuple | set) else value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        k for k in before.keys() | after.keys() if k not in before or k not in after or not same(before[k], after[k])
    ]


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    **{m: (lambda model, x, m=m: jaccli.jacobian(model, x, method=m)) for m in METHOD_NAMES},
    "hidden": lambda model, x: jaccli.jacobian(model, x, "body.0", "memory"),
    "plan": lambda model, x: jaccli.plan(model, x)(x + 1),
    "operator": lambda model, x: (lambda a: (a.matvec(x), a.rmatvec(x)))(jaccli.operator(model, x)),
}


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("training", [False, True])
def test_eager_module(call: str, training: bool) -> None:
    model, x = Watched(training), torch.randn(4, 3)
    before = picture(model)
    CALLS[call](model, x)
    gone = [k for k in differences(before, picture(model)) if k != "?hook_calls"]
    assert gone == []
    assert x.grad is None


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("build", [conv_net, encoder, nets.Recurrent], ids=["conv", "encoder", "LSTM"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_ordinary_networks(build: Any, method: str) -> None:
    model = build().eval()
    x = {"Sequential": torch.randn(2, 2, 4, 4), "Recurrent": torch.randn(2, 3, 3)}.get(
        type(model).__name__, torch.randn(2, 3, 4)
    )
    before = picture(model)
    jaccli.jacobian(model, x, method=method)
    assert differences(before, picture(model)) == []


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_script_module(method: str) -> None:
    model = torch.jit.script(chain(3, 4, 2)().eval())
    x = torch.randn(2, 3)
    before = picture(model)
    jaccli.jacobian(model, x, "input", "1", method=method)
    assert differences(before, picture(model)) == []


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_exported_module(method: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(chain(3, 4, 2)().eval(), (torch.randn(2, 3),), dynamic_shapes=({0: batch},))
    model, x = program.module(), torch.randn(2, 3)
    before = picture(model)
    jaccli.jacobian(model, x, method=method)
    gone = differences(before, picture(model))
    assert gone == []


class Bomb(Watched):
    """Fails, or is interrupted, at the n-th call counted from outside."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.fuse, self.error = [after], error

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        FUSE[0] -= 1
        if FUSE[0] < 0:
            raise self.error
        return out


FUSE = [0]


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_after_an_end_in_the_middle(method: str, after: int, kind: type[BaseException]) -> None:
    model, x = Bomb(after, kind("boom")), torch.randn(4, 3)
    FUSE[0] = after
    before = picture(model)
    # Some methods have no further calls to fail in; those that fail do so in jaccli's words.
    with contextlib.suppress(jaccli.JaccliError, KeyboardInterrupt):
        jaccli.jacobian(model, x, method=method)
    assert [k for k in differences(before, picture(model)) if k != "?hook_calls"] == []


def test_the_same_state_for_every_call() -> None:
    """Each J is taken at the state that the model was handed over with."""
    model = nets.Remembering().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        model(x)
        model(x)
    twin = copy.deepcopy(model)
    first = jaccli.jacobian(model, x)
    assert torch.equal(first, jaccli.jacobian(model, x))
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))


def test_state_that_belongs_to_a_graph() -> None:
    """A hidden state left by an ordinary call in training does not stand in the way."""
    model = nets.Remembering().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    model(x)
    assert model.hidden.requires_grad
    for method in METHOD_NAMES:
        with warnings.catch_warnings(record=True):
            j = jaccli.jacobian(model, x, method=method)
        assert not j.requires_grad
    assert model.hidden.requires_grad


def test_parameters_seen_from_a_graph_of_the_user() -> None:
    """A graph that the user has built before still gives its gradients."""
    model, x = chain(3, 4, 1)(), torch.randn(2, 3)
    loss = model(x).sum()
    jaccli.jacobian(model, x)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def products(a: Any) -> None:
    a.matvec(torch.ones(a.shape[0], a.shape[2], dtype=a.dtype))
    a.rmatmat(torch.ones(a.shape[0], a.shape[1], 3, dtype=a.dtype))


def loss(model: Any, x: Tensor, s: Scenario, extras: Any, estimator: Any) -> None:
    found = jaccli.identity_deviation(model, x, s.source, s.target, estimator=estimator, **extras)
    if found.requires_grad:
        torch.autograd.grad(found.sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True)


PUBLIC: dict[str, Callable[[Any, Tensor, Scenario, Any], Any]] = {
    "jacobian": lambda model, x, s, extras: jaccli.jacobian(model, x, s.source, s.target, **extras),
    "differences": lambda model, x, s, extras: jaccli.jacobian(
        model, x, s.source, s.target, method="finite-difference", **extras
    ),
    "plan": lambda model, x, s, extras: jaccli.plan(model, x, s.source, s.target, **extras)(x, **extras),
    "operator": lambda model, x, s, extras: products(jaccli.operator(model, x, s.source, s.target, **extras)),
    "estimate": lambda model, x, s, extras: jaccli.estimate(
        jaccli.operator(model, x, s.source, s.target, **extras), probes=2
    ),
    "exact": lambda model, x, s, extras: loss(model, x, s, extras, "exact"),
    "hutchinson": lambda model, x, s, extras: loss(model, x, s, extras, "hutchinson"),
}


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning", "ignore::UserWarning")
@pytest.mark.parametrize("s", TABLE, ids=case_name)
def test_nothing_changes(s: Scenario) -> None:
    """Of the model, of its samples and of the process; by each public function, also where that fails."""
    dtype = s.dtypes[0]
    model, x, extras = s.model(dtype), s.x(dtype), s.extras(dtype)
    inputs = copy.deepcopy((x, extras))
    for name, call in PUBLIC.items():
        before = picture(model)
        with contextlib.suppress(jaccli.JaccliError):
            call(model, x, s, extras)
        gone = differences(before, picture(model))
        if name == "hutchinson":
            gone = [k for k in gone if k != "torch's generator"]  # its probes are drawn from it
        assert gone == [], name
        assert same(inputs[0], x), name
        assert same(list(inputs[1]["args"]), list(extras["args"])), name
