"""Module boundaries inside TorchScript: seen and replaced as hooks see and replace them in eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import UnsupportedError
from jaccli.models.torchscript.network import ScriptNetwork
from jaccli.networks.network import StopRun
from tests.models.script_nets import Inplace, Twice, make, scenario
from tests.models.torchscript.test_networks import reloaded, same

# Where eager mode calls the same modules with the same arguments (a trace drops Identity's, say).
COMPARABLE = [
    "chain",
    "chain traced",
    "twice",
    "in place",
    "images",
    "images traced",
    "control",
    "state",
    "recurrent",
]


class ForwardRecord:
    """Keeps every boundary; replaces what ``swap`` names: ``(path, call, "in"|"out") → tensor function``."""

    def __init__(self, paths: frozenset[str] | None = None, swap: dict[Any, Any] | None = None) -> None:
        self.paths, self.swap = paths, swap or {}
        self.events: list[tuple[str, str, int]] = []
        self.values: dict[tuple[str, int, str], Any] = {}

    def _pass(self, key: tuple[str, int, str], value: Any) -> Any:
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, Tensor):
            self.values[key] = first.detach().clone()
        if key in self.swap:
            new = self.swap[key](first)
            return (new, *value[1:]) if isinstance(value, tuple) else new
        return value

    def enter(self, path: str, call: int, args: Any, kwargs: Any) -> Any:
        self.events.append(("enter", path, call))
        return self._pass((path, call, "in"), args), kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        self.events.append(("leave", path, call))
        return self._pass((path, call, "out"), output)


def eager_run(module: nn.Module, args: Any, tap: ForwardRecord) -> Any:
    """The same taps as forward hooks of an eager module."""
    counts: dict[str, int] = {}
    handles = []
    for path, child in module.named_modules():
        if not path:
            continue

        def before(_m: Any, inputs: Any, path: str = path) -> Any:
            counts[path] = counts.get(path, 0) + 1
            return tap.enter(path, counts[path], inputs, {})[0]

        def after(_m: Any, _i: Any, output: Any, path: str = path) -> Any:
            return tap.leave(path, counts[path], output)

        handles += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        return module(*args)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", COMPARABLE)
@pytest.mark.parametrize("load", [False, True])
def test_boundaries_are_those_of_eager_hooks(name: str, load: bool) -> None:
    eager, module, args = scenario(name)
    network = ScriptNetwork(reloaded(module) if load else module)
    ours, theirs = ForwardRecord(), ForwardRecord()
    with torch.no_grad():
        out = network.run(args, {}, ours)
        same(out, eager_run(eager, tuple(a.clone() for a in args), theirs))
    assert ours.events == theirs.events
    same(ours.values, theirs.values)


@pytest.mark.parametrize("name", COMPARABLE)
def test_replacing_an_activation_does_what_a_hook_does(name: str) -> None:
    eager, module, args = scenario(name)
    seen = ForwardRecord()
    with torch.no_grad():
        ScriptNetwork(module).run(args, {}, seen)
    for key in seen.values:
        swap = {key: lambda t: (t * 2 + 1).requires_grad_()}
        if name == "state":  # eager mode keeps what a call leaves behind
            eager, module, args = scenario(name)
        out = ScriptNetwork(module).run(args, {}, ForwardRecord(swap=swap))
        with torch.no_grad():
            reference = eager_run(eager, tuple(a.clone() for a in args), ForwardRecord(swap={key: lambda t: t * 2 + 1}))
        same(out.detach(), reference)


def test_only_the_wanted_paths_are_reported_and_a_stop_goes_through() -> None:
    _, module, args = make(Twice, (2, 4))
    tap = ForwardRecord(paths=frozenset({"fc"}))
    ScriptNetwork(module).run(args, {}, tap)
    assert tap.events == [("enter", "fc", 1), ("leave", "fc", 1), ("enter", "fc", 2), ("leave", "fc", 2)]

    def stop(_: Tensor) -> Tensor:
        raise StopRun

    with pytest.raises(StopRun):
        ScriptNetwork(module).run(args, {}, ForwardRecord(swap={("fc", 2, "in"): stop}))


def test_a_leaf_put_before_an_in_place_operator_stays_whole_and_gets_its_gradient() -> None:
    _, module, args = make(Inplace, (2, 4))
    leaf = torch.tensor([[1.0, -1.0, 2.0, -2.0]] * 2, requires_grad=True)
    kept = leaf.detach().clone()
    out = ScriptNetwork(module).run(args, {}, ForwardRecord(swap={("fc", 1, "out"): lambda _: leaf}))
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    same(leaf.detach(), kept)
    same(grad, torch.tensor([[1.0, 0.0, 2.0, 0.0]] * 2))


def test_an_identity_in_a_trace_is_found_in_a_sequential_and_refused_elsewhere() -> None:
    _, module, args = scenario("chain traced")
    tap = ForwardRecord(paths=frozenset({"0", "1"}))
    ScriptNetwork(module).run(args, {}, tap)
    same(tap.values["1", 1, "in"], tap.values["0", 1, "out"])
    same(tap.values["1", 1, "out"], tap.values["0", 1, "out"])
    _, module, args = scenario("twice traced")
    network = ScriptNetwork(module)
    network.run(args, {}, ForwardRecord())
    with pytest.raises(UnsupportedError, match="skip"):
        network.run(args, {}, ForwardRecord(paths=frozenset({"skip"})))


def test_interface_and_container_choices_are_reported_by_their_path() -> None:
    _, module, args = scenario("dynamic")
    tap = ForwardRecord()
    ScriptNetwork(module).run(args, {}, tap)
    assert [path for kind, path, _ in tap.events if kind == "enter"] == ["table.a", "pick", "table.b"]


@pytest.mark.parametrize("name", ["encoder", "attention", "transformer"])
def test_attention_layers_are_reached_without_gradients_too(name: str) -> None:
    _, module, args = scenario(name)
    network, tap = ScriptNetwork(module), ForwardRecord()
    with torch.no_grad(), network.session():
        network.run(args, {}, tap)
    called = {path for _, path, _ in tap.events}
    inner = {path for path in network.layers() if not path.endswith(("out_proj", "layers"))}  # never called
    assert called == inner


def test_shared_layers_are_listed_and_called_by_name() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    _, module, args = make(Shared, (2, 4))
    network, tap = ScriptNetwork(reloaded(module)), ForwardRecord()
    out = network.run(args, {}, tap)
    assert list(network.layers()) == ["a", "b"]
    assert [path for kind, path, _ in tap.events if kind == "leave"] == ["a", "b"]
    same(out, module(*args))
