"""ScriptNetwork computes what the module computes, again and again, and leaves it as it was."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import JaccliError, RefusedError, UnsupportedError, UsageError
from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.script_nets import SCENARIOS, Control, Images, Stateful, Twice, make, scenario


def reloaded(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("source", ["made here", "loaded"])
def test_outputs_are_the_modules_own_and_repeat(name: str, source: str) -> None:
    _, module, args = scenario(name)
    if source == "loaded":
        module = reloaded(module)
    network = ScriptNetwork(module)
    kept = copy.deepcopy(args)
    with torch.no_grad():
        first, second = network.run(args, {}), network.run(args, {})
        same(args, kept)
        same(first, second)
        same(first, reloaded(module)(*args))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_module_stays_as_it_was(name: str) -> None:
    _, module, args = scenario(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    flags = [m.training for m in module.modules()]
    versions = [t._version for t in [*module.parameters(), *module.buffers()]]
    ScriptNetwork(module).run(args, {})
    same(dict(module.state_dict()), before)
    assert [m.training for m in module.modules()] == flags
    assert [t._version for t in [*module.parameters(), *module.buffers()]] == versions
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("name", SCENARIOS)
def test_layers_are_named_modules(name: str) -> None:
    eager, module, _ = scenario(name)
    layers = ScriptNetwork(reloaded(module)).layers()
    assert list(layers) == [path for path, _ in module.named_modules() if path]
    assert all(layers[path] == type(m).__name__ for path, m in eager.named_modules() if path)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_float64_copy_agrees_and_is_independent(name: str) -> None:
    if name in {"strings", "recurrent traced"}:
        pytest.skip("its code asks for float32 by name")
    _, module, args = SCENARIOS[name]()
    network = ScriptNetwork(module)
    double = network.cast(dtype=torch.float64)
    wide = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, args)
    with torch.no_grad():
        single_out, double_out = network.run(args, {}), double.run(wide, {})
        for a, b in zip(
            torch.utils._pytree.tree_leaves(single_out),
            torch.utils._pytree.tree_leaves(double_out),
            strict=True,
        ):
            if a is not None:
                assert b.dtype == torch.float64
                same(a.double(), b)
        for parameter in module.parameters():
            parameter.add_(1)
        same(double.run(wide, {}), double_out)


def test_state_starts_from_where_the_module_is_now() -> None:
    _, module, args = make(Stateful, (2, 4))
    network = ScriptNetwork(module)
    with torch.no_grad():
        fresh = network.run(args, {})
        module(*args)
        later = network.run(args, {})
        assert not torch.allclose(fresh, later)
        same(later, network.run(args, {}))
        same(later, module(*args))


def test_batch_norm_in_training_mode_changes_no_statistics() -> None:
    _, module, args = make(Images, (2, 2, 6, 6))
    module.train()
    network = ScriptNetwork(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = network.run(args, {}), network.run(args, {})
    same(first, second)
    same(dict(module.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), state)
    same(first, module(*args))
    assert not torch.equal(module.state_dict()["body.1.running_mean"], before["body.1.running_mean"])
    doubts = network.warnings()
    assert any("body.1" in d and "BatchNorm2d" in d for d in doubts)
    assert any("body.3" in d for d in doubts)
    module.eval()
    assert network.warnings() == []


def test_session_turns_parameters_off_and_on_again() -> None:
    _, module, args = make(Twice, (2, 4))
    module.fc.bias.requires_grad_(False)
    network = ScriptNetwork(module)
    with network.session():
        assert not network.run(args, {}).requires_grad
    with pytest.raises(KeyError), network.session():
        raise KeyError
    assert module.fc.weight.requires_grad
    assert not module.fc.bias.requires_grad
    assert network.run(args, {}).requires_grad


def test_arguments_by_position_by_name_and_by_default() -> None:
    _, module, (x,) = make(Control, (2, 4))
    network = ScriptNetwork(module)
    with torch.no_grad():
        same(network.run((x, 6), {}), module(x, 6))
        same(network.run((x,), {"scale": 3}), module(x, scale=3.0))
        same(network.run((), {"x": x, "steps": 0}), module(x, 0))


@pytest.mark.parametrize(
    ("extra", "kwargs", "word"),
    [
        ((1, 2.0, 3), {}, "4 arguments"),
        ((), {"step": 1}, "'step'"),
        ((2,), {"steps": 1}, "twice"),
        (("six",), {}, "str"),
    ],
)
def test_wrong_arguments_name_the_signature(extra: Any, kwargs: Any, word: str) -> None:
    _, module, (x,) = make(Control, (2, 4))
    with pytest.raises(UsageError, match=word) as caught:
        ScriptNetwork(module).run((x, *extra), kwargs)
    assert "steps: int = 3" in str(caught.value)


def test_a_missing_argument_and_a_wrong_shape() -> None:
    _, module, _ = make(Control, (2, 4))
    with pytest.raises(UsageError, match="'x' is missing"):
        ScriptNetwork(module).run((), {})
    with pytest.raises(RuntimeError, match="shapes") as caught:
        ScriptNetwork(module).run((torch.ones(2, 5),), {})
    assert not isinstance(caught.value, JaccliError)


def test_the_models_own_refusal_is_passed_on() -> None:
    _, module, (x,) = make(Control, (2, 4))
    with pytest.raises(RefusedError, match="steps must not be negative"):
        ScriptNetwork(module).run((x, -1), {})


@pytest.mark.parametrize("finish", [torch.jit.freeze, torch.jit.optimize_for_inference])
@pytest.mark.parametrize("name", ["chain", "images", "control"])
@pytest.mark.parametrize("load", [False, True])
def test_frozen_modules_run(finish: Any, name: str, load: bool) -> None:
    _, module, args = scenario(name)
    frozen = finish(module)
    want = module(*args)
    if load and finish is torch.jit.optimize_for_inference and name == "images":
        pytest.skip("torch cannot load what it saved")
    if load:
        frozen = reloaded(frozen)
    network = ScriptNetwork(frozen)
    assert list(network.layers()) == [path for path, _ in frozen.named_modules() if path]
    x = args[0].clone().requires_grad_()
    out = network.run((x, *args[1:]), {})
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(out.sum(), x)
    reference = args[0].clone().requires_grad_()
    (true,) = torch.autograd.grad(module(reference, *args[1:]).sum(), reference)
    torch.testing.assert_close(grad, true, rtol=1e-3, atol=1e-4)


def test_print_does_not_reach_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    _, module, args = scenario("strings")
    ScriptNetwork(module).run(args, {})
    assert capfd.readouterr().out == ""


def test_an_unknown_operator_is_named() -> None:
    module = torch.jit.script(nn.Identity().eval())
    graph = torch._C.parse_ir("graph(%x : Tensor):\n  %y : Tensor = prim::AddStatValue(%x)\n  return (%y)")
    from jaccli.models.torchscript.compiler import compile_graph

    with pytest.raises(UnsupportedError, match="AddStatValue"):
        compile_graph(ScriptNetwork(module)._program, "f", graph)


def test_grad_mode_is_put_back_when_a_tap_stops_inside_no_grad() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.fc(x)
            return y * 2

    from jaccli.networks.network import StopRun

    class Stop:
        paths = frozenset({"fc"})

        def enter(self, path: str, call: int, args: Any, kwargs: Any) -> Any:
            raise StopRun

        def leave(self, path: str, call: int, output: Any) -> Any:
            return output

    _, module, args = make(Inner, (2, 4))
    with pytest.raises(StopRun):
        ScriptNetwork(module).run(args, {}, Stop())
    assert torch.is_grad_enabled()


def test_a_module_that_cannot_be_saved_runs_by_its_own_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).eval()), path)
    module = torch.jit.load(path)

    def fails(*_: object) -> None:
        raise RuntimeError("could not be saved")

    monkeypatch.setattr(torch.jit, "save", fails)
    x = torch.randn(4, 3)
    assert torch.equal(ScriptNetwork(module).run((x,), {}), module(x))
