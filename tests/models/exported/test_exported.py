"""Exported programs against the modules that they were exported from."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError, UsageError
from jaccli.models.exported.load import load_exported
from jaccli.models.exported.model import ExportedModel
from jaccli.models.exported.network import ExportedNetwork, is_exported
from jaccli.networks.network import StopRun


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Identity())
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x) + x
        return self.out(y.relu_() + x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, _) = self.lstm(x)
        # Not hidden[0]: torch 2.11 exports take the state for a tensor of four dimensions.
        return self.head(out[:, -1]) + hidden.reshape(x.shape[0], -1).sum(1, keepdim=True)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)
        self.scale = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x: Tensor, power: int = 2, *, other: Tensor) -> dict[str, Any]:
        mixed = self.left(x) * self.scale + self.right(other) ** power
        return {"mixed": mixed, "parts": (x.sum(1), [None, other]), "count": power}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x)) + self.block(x * 2)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("memory", torch.ones(3))
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.memory[0] += 2
        return self.fc(x) * self.count + self.memory


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda t: t.sin(), lambda t: t.cos() * 2, (x,))
        with torch.no_grad():
            gate = self.fc(x).sigmoid()
        return self.fc(y) * gate


def conv_net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    )
    net[1].running_mean += 0.3
    return net.append(nn.Linear(4 * 3 * 3, 5))


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@dataclass
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    decompose: bool = False


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)), (4,)),
    "conv": Case(conv_net, (2, 6, 6)),
    "residual": Case(Residual, (6,)),
    "residual-core": Case(Residual, (6,), decompose=True),
    "transformer": Case(transformer, (5, 8)),
    "recurrent": Case(Recurrent, (6, 4)),
    "keywords": Case(Keywords, (4,), {"power": 3, "other": torch.randn(3, 5)}),
    "shared": Case(Shared, (4,)),
    "stateful": Case(Stateful, (3,)),
    "branching": Case(Branching, (4,)),
    "transformer-core": Case(transformer, (5, 8), decompose=True),
}


@dataclass
class Exported:
    eager: nn.Module
    program: Any
    path: Path
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(name: str) -> Exported:
        if name not in made:
            made[name] = export(CASES[name], folder / f"{name}.pt2")
        return made[name]

    return make


def export(case: Case, path: Path) -> Exported:
    torch.manual_seed(1)
    eager = case.build().eval()
    args = (torch.randn(3, *case.shape),)
    batch = torch.export.Dim("batch", min=1, max=64)
    first = next(iter(inspect.signature(eager.forward).parameters))
    shapes = {first: {0: batch}} | {
        key: {0: batch} if isinstance(value, Tensor) else None for key, value in case.kwargs.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(eager, args, case.kwargs, dynamic_shapes=shapes)
        program = program.run_decompositions() if case.decompose else program
        torch.export.save(program, path)
    return Exported(eager, program, path, args, case.kwargs)


def inputs(made: Exported, batch: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(2)
    args = tuple(torch.randn(batch, *arg.shape[1:]).to(dtype) for arg in made.args)
    kwargs = {
        key: torch.randn(batch, *value.shape[1:]).to(dtype) if isinstance(value, Tensor) else value
        for key, value in made.kwargs.items()
    }
    return args, kwargs


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class Recorder:
    """A tap that keeps what it sees and may put something else in its place."""

    def __init__(self, paths: set[str] | None = None, swap: dict[Any, Any] | None = None, stop: Any = None) -> None:
        self.paths = None if paths is None else frozenset(paths)
        self.seen: dict[Any, Any] = {}
        self._swap, self._stop = swap or {}, stop

    def enter(self, path: str, call: int, args: Any, kwargs: Any) -> Any:
        self.seen[path, call, "in"] = args
        return self._swap.get((path, call, "in"), args), kwargs

    def leave(self, path: str, call: int, output: Any) -> Any:
        self.seen[path, call, "out"] = output
        if (path, call) == self._stop:
            raise StopRun
        return self._swap.get((path, call, "out"), output)


def eager_seen(model: nn.Module, args: Any, kwargs: Any, swap: dict[Any, Any] | None = None) -> tuple[Any, dict]:
    """The same with hooks on the module itself."""
    seen, calls, swap = {}, Counter(), swap or {}
    handles = []

    def before(path: str) -> Any:
        def hook(_: nn.Module, given: Any) -> Any:
            calls[path] += 1
            seen[path, calls[path], "in"] = tuple(g.clone() if isinstance(g, Tensor) else g for g in given)
            return swap.get((path, calls[path], "in"))

        return hook

    def after(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            seen[path, calls[path], "out"] = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, output)
            return swap.get((path, calls[path], "out"))

        return hook

    for path, module in model.named_modules():
        if path:
            handles += [
                module.register_forward_pre_hook(before(path)),
                module.register_forward_hook(after(path)),
            ]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    output = model(*args, **kwargs)
    torch.backends.mha.set_fastpath_enabled(fast)
    model.load_state_dict(state)
    for handle in handles:
        handle.remove()
    return output, seen


def forms(made: Exported) -> dict[str, ExportedNetwork]:
    return {
        "archive": ExportedNetwork(load_exported(made.path, trust=False)),
        "program": ExportedNetwork(made.program),
        "module": ExportedNetwork(made.program.module()),
    }


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_eager(exported: Callable[[str], Exported], name: str) -> None:
    made = exported(name)
    args, kwargs = inputs(made)
    wanted, _ = eager_seen(made.eager, args, kwargs)
    for form, network in forms(made).items():
        for _ in range(2):
            got = network.run(args, kwargs)
            assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(wanted), form
            for a, b in zip(leaves(got), leaves(wanted), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("core")])
def test_taps_equal_eager_hooks(exported: Callable[[str], Exported], name: str) -> None:
    made = exported(name)
    args, kwargs = inputs(made)
    _, wanted = eager_seen(made.eager, args, kwargs)
    called = {key for key in wanted if not isinstance(made.eager.get_submodule(key[0]), nn.Identity)}
    if name == "branching":
        called = {key for key in called if key[1] == 1}
    for form, network in forms(made).items():
        tap = Recorder()
        network.run(args, kwargs, tap)
        assert called <= set(tap.seen), form
        for key in called:
            got, want = tap.seen[key], wanted[key]
            if key[0] == "self_attn" and key[2] == "in":
                want = want[:1]
            assert len(leaves(got)) == len(leaves(want)), key
            for a, b in zip(leaves(got), leaves(want), strict=True):
                torch.testing.assert_close(a, b, msg=f"{form} {key}")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mlp", ("0", 1, "out")),
        ("conv", ("1", 1, "in")),
        ("conv", ("2", 1, "in")),
        ("residual", ("inner.0", 1, "out")),
        ("residual", ("inner", 1, "in")),
        ("transformer", ("linear1", 1, "in")),
        ("shared", ("block", 2, "out")),
        ("shared", ("block.0", 3, "in")),
        ("recurrent", ("head", 1, "in")),
        ("recurrent", ("lstm", 1, "out")),
    ],
)
def test_replaced_activation_goes_on_like_in_eager(
    exported: Callable[[str], Exported], name: str, key: tuple[str, int, str]
) -> None:
    made = exported(name)
    args, kwargs = inputs(made)
    _, seen = eager_seen(made.eager, args, kwargs)
    other = torch.utils._pytree.tree_map_only(Tensor, lambda t: torch.randn_like(t), seen[key])
    kept = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, other)
    wanted, _ = eager_seen(made.eager, args, kwargs, {key: kept})
    untouched, _ = eager_seen(made.eager, args, kwargs)
    for network in forms(made).values():
        got = network.run(args, kwargs, Recorder({key[0]}, {key: other}))
        torch.testing.assert_close(got, wanted)
        assert not torch.allclose(got, untouched)


PRODUCTS = [name for name in CASES if name not in ("keywords", "shared", "branching")]


def afresh(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The eager module in float64, from the same state in every call."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    return lambda x: copy.deepcopy(model)(x.clone())


@pytest.fixture
def exact_attention() -> Iterator[None]:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.usefixtures("exact_attention")
def test_reverse_products_equal_float64_eager(exported: Callable[[str], Exported], name: str) -> None:
    made = exported(name)
    (x,), _ = inputs(made, 2, torch.float64)
    network, eager = ExportedNetwork(load_exported(made.path)).cast(dtype=torch.float64), afresh(made.eager)
    wanted = torch.autograd.functional.jacobian(lambda t: eager(t).sum(0), x)
    with network.session():
        point = x.clone().requires_grad_()
        output = network.run((point,), {})
        assert output.dtype == torch.float64
        rows = output[0].numel()
        seeds = torch.eye(rows, dtype=x.dtype).reshape(rows, 1, *output.shape[1:])
        seeds = seeds.expand(rows, 2, *output.shape[1:])
        (batched,) = torch.autograd.grad(output, point, seeds, is_grads_batched=True, retain_graph=True)
        torch.testing.assert_close(batched, wanted.reshape(batched.shape))
        (row,) = torch.autograd.grad(output, point, seeds[-1])
        torch.testing.assert_close(row, batched[-1])


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "recurrent"])
@pytest.mark.usefixtures("exact_attention")
def test_forward_products_and_vmap(exported: Callable[[str], Exported], name: str) -> None:
    made = exported(name)
    (x,), _ = inputs(made, 2, torch.float64)
    network, eager = ExportedNetwork(load_exported(made.path)).cast(dtype=torch.float64), afresh(made.eager)
    tangent = torch.randn_like(x)
    wanted, product = torch.autograd.functional.jvp(eager, x, tangent)
    with network.session():
        value, forward = torch.func.jvp(lambda t: network.run((t,), {}), (x,), (tangent,))
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(forward, product)
        single = torch.func.vmap(lambda t: network.run((t[None],), {})[0])(x)
        torch.testing.assert_close(single, wanted)


def test_a_run_changes_nothing(exported: Callable[[str], Exported]) -> None:
    made = exported("stateful")
    (x,), _ = inputs(made)
    model = load_exported(made.path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network, generator = ExportedNetwork(model), torch.get_rng_state()
    kept = x.clone()
    first, second = network.run((x,), {}), network.run((x,), {})
    torch.testing.assert_close(first, second)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_call_keeps_state_as_the_model_does(exported: Callable[[str], Exported]) -> None:
    made = exported("stateful")
    (x,), _ = inputs(made)
    model, eager = load_exported(made.path), copy.deepcopy(made.eager)
    for _ in range(2):
        torch.testing.assert_close(model(x), eager(x))
    assert model.count.item() == 2
    torch.testing.assert_close(model.memory, eager.memory)


def test_input_is_not_written_to(exported: Callable[[str], Exported]) -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.view(-1, 2)
            x.mul_(2)
            return y.sin()

    program = torch.export.export(Writing(), (torch.randn(3, 4),))
    x = torch.randn(3, 4, requires_grad=True)
    got = ExportedNetwork(program).run((x,), {})
    torch.testing.assert_close(got, (2 * x).view(-1, 2).sin())
    (row,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(row, 2 * (2 * x).cos())


def test_random_numbers_are_the_same_in_every_run() -> None:
    program = torch.export.export(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train(), (torch.randn(3, 4),))
    network = ExportedNetwork(program)
    x, generator = torch.randn(3, 4), torch.get_rng_state()
    torch.testing.assert_close(network.run((x,), {}), network.run((x,), {}), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [message.split()[0] for message in network.doubtful()] == ["dropout", "BatchNorm"]
    assert torch.equal(program.state_dict["1.running_mean"], torch.zeros(4))


def test_names_and_layers(exported: Callable[[str], Exported]) -> None:
    made = exported("residual")
    model = load_exported(made.path)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in made.eager.named_parameters()]
    wanted = {name: type(module).__name__ for name, module in made.eager.named_modules() if name}
    wanted["inner.2"] = "Module"  # Identity leaves no node that would tell its type
    got = dict(ExportedNetwork(model).layers())
    assert got == {**wanted, "inner.2": got["inner.2"]}
    assert list(got) == list(wanted)


def test_stop_and_chosen_paths(exported: Callable[[str], Exported]) -> None:
    made = exported("shared")
    tap = Recorder({"block.1"}, stop=("block.1", 2))
    with pytest.raises(StopRun):
        ExportedNetwork(made.program).run(*inputs(made), tap)
    assert set(tap.seen) == {("block.1", call, end) for call in (1, 2) for end in ("in", "out")}


def test_binding_by_name(exported: Callable[[str], Exported]) -> None:
    made = exported("keywords")
    (x,), kwargs = inputs(made)
    network = ExportedNetwork(load_exported(made.path))
    wanted = network.run((x,), kwargs)["mixed"]
    for given in (
        ((), {"x": x, **kwargs}),
        ((x, 3), {"other": kwargs["other"]}),
        ((x,), {"other": kwargs["other"]}),
    ):
        torch.testing.assert_close(network.run(*given)["mixed"], wanted)
    with pytest.raises(UsageError, match="'other' is missing"):
        network.run((x,), {})
    with pytest.raises(UsageError, match="no argument 'extra'"):
        network.run((x,), {**kwargs, "extra": 1})
    with pytest.raises(RefusedError, match=r"'4'[\s\S]*'3'"):
        network.run((x, 4), {"other": kwargs["other"]})


def test_shapes_that_the_export_does_not_allow(exported: Callable[[str], Exported]) -> None:
    fixed = ExportedNetwork(torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),)))
    with pytest.raises(RefusedError) as caught:
        fixed.run((torch.randn(5, 4),), {})
    assert str(caught.value).splitlines() == [
        "the input 'input' has shape [5, 4]",
        "the model was exported for [3, 4]",
        "export with dynamic_shapes, or give 3 samples",
    ]
    made = exported("keywords")
    (x,), kwargs = inputs(made)
    free = ExportedNetwork(load_exported(made.path))
    for bad in (x[:, :3], x[0], x[:2], x.repeat(20, 1)):
        with pytest.raises(RefusedError, match="exported for"):
            free.run((bad,), kwargs)


def test_session_turns_parameters_off_and_on(exported: Callable[[str], Exported]) -> None:
    network = ExportedNetwork(exported("mlp").program)
    before = [tensor.requires_grad for tensor in network.tensors()]
    assert any(before)
    with network.session():
        assert not any(tensor.requires_grad for tensor in network.tensors())
    assert [tensor.requires_grad for tensor in network.tensors()] == before


def test_cast_is_independent(exported: Callable[[str], Exported]) -> None:
    network = ExportedNetwork(load_exported(exported("keywords").path))
    twin = network.cast(dtype=torch.float64)
    assert {tensor.dtype for tensor in twin.tensors()} == {torch.float64}
    assert {tensor.dtype for tensor in network.tensors()} == {torch.float32}
    for tensor in twin.tensors():
        tensor.data.zero_()
    assert all(tensor.abs().sum() > 0 for tensor in network.tensors())


def test_what_is_exported(exported: Callable[[str], Exported]) -> None:
    made = exported("mlp")
    assert all(map(is_exported, (made.program, made.program.module(), load_exported(made.path))))
    assert not any(map(is_exported, (made.eager, torch.fx.symbolic_trace(made.eager), object())))
    assert isinstance(load_exported(made.path), ExportedModel)
