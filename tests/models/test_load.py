"""MODEL → module, for every kind; chains of linear layers; and what counts as a network."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jaccli.errors import JaccliNote, RefusedError, UsageError
from jaccli.models.adapt import as_network
from jaccli.models.load import load_model, model_hash
from jaccli.models.weights.linear_chain import ACTIVATIONS
from jaccli.networks.eager import EagerNetwork

X = torch.linspace(-1, 1, 12).view(4, 3)


def mlp(*widths: int, act: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), act()]
    return nn.Sequential(*layers[:-1]).eval()


def make(width: int = 4) -> nn.Module:
    return mlp(3, width, 2).train()


# ---- weights with an architecture


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_weights_and_arch(tmp_path, form):
    path = tmp_path / "model.anything"
    values = mlp(3, 5, 2).state_dict()
    values = {name: value + 1 for name, value in values.items()}
    if form == "safetensors":
        save_file(values, path)
    else:
        torch.save({"state_dict": values}, path, _use_new_zipfile_serialization=form == "zip")
    for arch in (make, f"{__name__}:make"):
        model = load_model(path, arch=arch, arch_args={"width": 5})
        assert not model.training
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_a_module_that_is_given_stays_as_it_is(tmp_path):
    torch.save({name: value + 1 for name, value in mlp(3, 4, 2).state_dict().items()}, tmp_path / "m")
    given = make()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    model = load_model(tmp_path / "m", arch=given)
    assert model is not given
    assert given.training
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert torch.equal(model[0].bias, before["0.bias"] + 1)


def test_weights_without_arch_say_what_to_give(tmp_path):
    save_file(mlp(3, 4, 2).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"holds weights without a network\nexpected arch=.*\nor activation="):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": make, "activation": "relu"}, "both given"),
        ({"arch_args": {"width": 3}}, "without arch="),
        ({"activation": "tahn"}, "there is no activation 'tahn'\nnearest: 'tanh'"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, said):
    save_file(mlp(3, 4, 2).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=said):
        load_model(tmp_path / "m.pt", **options)


def test_a_pickled_module_with_and_without_trust(tmp_path):
    torch.save(mlp(3, 4, 2).train(), tmp_path / "m.pt")
    for options in ({}, {"arch": make}, {"activation": "tanh"}):
        with pytest.raises(RefusedError, match=r"needs the code of 'torch\.nn\.modules\.container\.Sequential'"):
            load_model(tmp_path / "m.pt", **options)
    with pytest.warns(JaccliNote, match="trust=True"):
        model = load_model(tmp_path / "m.pt", trust=True)
    assert not model.training
    assert torch.equal(model(X), mlp(3, 4, 2)(X))


# ---- specs


def test_a_spec_is_built_with_fresh_seeded_weights():
    with pytest.warns(JaccliNote, match=r"fresh weights \(seed 7\)"):
        first = load_model("torch.nn:Linear", arch_args={"in_features": 3, "out_features": 2}, seed=7)
    second = load_model("torch.nn:Linear", arch_args={"in_features": 3, "out_features": 2}, seed=7)
    assert torch.equal(first.weight, second.weight)
    assert not first.training


def test_a_spec_takes_no_second_architecture():
    with pytest.raises(UsageError, match="is code, and arch="):
        load_model("torch.nn:Identity", arch=make)


# ---- archives that hold their architecture


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    net = mlp(3, 4, 2)
    torch.jit.save(torch.jit.script(net), str(tmp_path / "m"))
    with pytest.warns(JaccliNote, match="arch= and activation= are not used"):
        model = load_model(tmp_path / "m", arch=make)
    assert isinstance(model, torch.jit.ScriptModule)
    assert not model.training
    assert torch.allclose(model(X), net(X))
    assert as_network(model).kind == "torchscript"


def test_model_hash(tmp_path):
    (tmp_path / "m").write_bytes(b"abc" * 1000)
    assert model_hash(tmp_path / "m") == hashlib.sha256(b"abc" * 1000).hexdigest()


# ---- chains


@pytest.mark.parametrize(
    "name", ["tanh", "relu", "gelu", "silu", "sigmoid", "elu", "leaky_relu", "softplus", "identity"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_chain_computes_what_the_network_did(tmp_path, name, bias):
    net = mlp(3, 5, 4, 2, act=getattr(nn, ACTIVATIONS[name]), bias=bias)
    torch.save(net.state_dict(), tmp_path / "m")
    model = load_model(tmp_path / "m", activation=name)
    assert torch.equal(model(X), net(X))
    assert [path for path, _ in model.named_modules()] == ["", *"01234"]


@pytest.mark.parametrize("prefix", ["layers.", "module.net.", "_orig_mod.", "enc.fc"])
def test_layers_keep_the_names_of_the_file(tmp_path, prefix):
    net = mlp(3, 3, 3, 3)
    names = [f"{prefix}{index}" for index in (1, 2, 10)]
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    values = {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in zip(names, linears, strict=True)
        for part in ("weight", "bias")
    }
    # A safetensors file has no order of its own: 10 comes before 2 in it.
    save_file(values, tmp_path / "m")
    model = load_model(tmp_path / "m", activation="tanh")
    assert torch.equal(model(X), net(X))
    paths = dict(model.named_modules())
    for name in names:
        assert isinstance(paths[name.removeprefix("module.").removeprefix("_orig_mod.")], nn.Linear)
    assert sum(isinstance(module, nn.Tanh) for module in paths.values()) == 2


def test_names_without_numbers_need_shapes_that_leave_one_order(tmp_path):
    net = mlp(3, 6, 4, 2)
    values = {
        f"{name}.{part}": getattr(net[index], part).detach().clone()
        for name, index in (("zeta", 0), ("alpha", 2), ("out", 4))
        for part in ("weight", "bias")
    }
    save_file(values, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m", activation="tanh")(X), net(X))
    square = {f"{name}.weight": torch.eye(3) for name in ("first", "second")}
    save_file(square, tmp_path / "s")
    with pytest.raises(UsageError, match="in several orders"):
        load_model(tmp_path / "s", activation="tanh")
    # In a file of torch.save the order is that of the network.
    torch.save(square, tmp_path / "t")
    assert [path for path, _ in load_model(tmp_path / "t", activation="tanh").named_modules()] == [
        "",
        "first",
        "first_act",
        "second",
    ]


def test_one_layer_alone_needs_no_name(tmp_path):
    torch.save({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, tmp_path / "m")
    model = load_model(tmp_path / "m", activation="identity")
    assert torch.equal(model(torch.eye(2)), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"conv.weight": torch.zeros(2, 2, 3, 3)}, r"'conv\.weight' has shape \(2, 2, 3, 3\)"),
        ({"0.weight": torch.zeros(2, 2), "n.running_mean": torch.zeros(2)}, "running_mean"),
        ({"0.weight": torch.zeros(2, 3), "1.weight": torch.zeros(5, 4)}, "do not fit one behind the other"),
        ({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(3)}, "the bias of '0'"),
        ({"0.bias": torch.zeros(3)}, "the bias of '0'"),
    ],
)
def test_what_is_no_chain_is_told(tmp_path, values, said):
    torch.save(values, tmp_path / "m")
    with pytest.raises(UsageError, match=said) as caught:
        load_model(tmp_path / "m", activation="relu")
    assert "arch=" in caught.value.remedy


def test_a_chain_in_half_precision(tmp_path):
    torch.save(mlp(3, 4, 2).bfloat16().state_dict(), tmp_path / "m")
    model = load_model(tmp_path / "m", activation="tanh")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


# ---- as_network


def test_modules_and_networks_are_networks():
    net = mlp(3, 4, 2)
    network = as_network(net)
    assert isinstance(network, EagerNetwork)
    assert as_network(network) is network


def test_wrappers_are_taken_off_and_told():
    net = mlp(3, 4, 2)
    compiled = type("OptimizedModule", (nn.Module,), {})()
    compiled._orig_mod = nn.DataParallel(net)
    with pytest.warns(JaccliNote, match="the model inside DataParallel is used"):
        network = as_network(compiled)
    assert list(network.layers()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("model.pt", r"type str\n.*\nload it first: jaccli.load_model"),
        ({"0.weight": torch.eye(2)}, r"type dict\n.*\nload the state dict into"),
        (nn.Identity, r"the class Identity\n.*\nmake an instance"),
        (torch.sin, r"\n.*\nwrap a function"),
    ],
)
def test_what_is_no_network_is_told(thing, said):
    with pytest.raises(UsageError, match=said):
        as_network(thing)


def test_a_symbolically_traced_module_is_an_ordinary_one():
    assert isinstance(as_network(torch.fx.symbolic_trace(mlp(3, 4, 2))), EagerNetwork)


def test_lazy_layers_without_a_shape_are_refused() -> None:
    with pytest.raises(RefusedError, match="without a shape: weight, bias"):
        load_model("torch.nn:LazyLinear", arch_args={"out_features": 3})
