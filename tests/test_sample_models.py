"""The sample models are what their README says, and the script beside them builds them."""

import importlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap

HERE = Path(__file__).resolve().parents[1] / "sample_models"
ARCHIVES = ("linear.pt", "near_identity.pt", "untrained.pt", "control_flow.pt", "transformer.pt2")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def module(name: str) -> Any:
    return importlib.import_module(name)


def samples(name: str) -> Tensor:
    return torch.from_numpy(np.load(HERE / f"{name}.npy"))


def explained(output: Tensor, target: Tensor) -> float:
    output = output.detach()
    return 1 - float((output - target).square().mean() / (target - target.mean(0)).square().mean())


def script(name: str) -> Any:
    return torch.jit.load(HERE / f"{name}.pt")  # type: ignore[no-untyped-call]


def mlp(name: str) -> nn.Module:
    model: nn.Module = module("nets").IdentityMLP()
    model.load_state_dict(load_file(HERE / f"{name}.safetensors"))
    return model.double().eval()


def residual() -> nn.Module:
    checkpoint = torch.load(HERE / "residual.ckpt", weights_only=True)
    assert {"epoch", "global_step", "optimizer_states", "hyper_parameters"} < set(checkpoint)
    state = {name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()}
    assert not state.keys() & checkpoint["state_dict"].keys()
    model: nn.Module = module("nets").ResidualNet(**checkpoint["hyper_parameters"])
    model.load_state_dict(state)
    return model.eval()


def decoder() -> nn.Module:
    model: nn.Module = module("nets").Decoder()
    model.load_state_dict(load_file(HERE / "decoder.safetensors"))
    return model.eval()


def transformer() -> nn.Module:
    return torch.export.load(HERE / "transformer.pt2").module()


PAIRS: list[tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = [
    (lambda: script("linear"), "linear_x", (2,)),
    (lambda: script("near_identity"), "near_identity_x", (16,)),
    (lambda: script("untrained"), "near_identity_x", (16,)),
    (decoder, "decoder_z", (3, 32, 32)),
    (residual, "residual_x", (4,)),
    (lambda: script("control_flow"), "control_flow_bright_x", (4,)),
    (lambda: script("control_flow"), "control_flow_dark_x", (4,)),
    (transformer, "transformer_x", (12, 32)),
]


@pytest.mark.parametrize(("load", "inputs", "shape"), PAIRS)
def test_every_model_takes_its_inputs(load: Callable[[], nn.Module], inputs: str, shape: tuple[int, ...]) -> None:
    x = samples(inputs)
    assert x.dtype == torch.float32
    assert len(x) <= 8
    y = load()(x)
    assert y.shape == (len(x), *shape)
    assert torch.isfinite(y).all()
    assert len(x) == 1 or y.std(0).max() > 1e-3


def test_files_are_small_and_all_in_the_readme() -> None:
    text = (HERE / "README.md").read_text()
    built = [path for path in HERE.iterdir() if path.suffix not in (".py", ".md") and path.is_file()]
    sizes = [path.stat().st_size for path in built]
    assert max(sizes) < 500_000
    assert sum(sizes) < 3_000_000
    assert [path.name for path in built if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_keep_no_paths_of_the_machine_that_built_them(name: str) -> None:
    with zipfile.ZipFile(HERE / name) as archive:
        assert archive.testzip() is None
        for record in archive.namelist():
            assert not record.endswith(".debug_pkl")
            assert not any(word in archive.read(record) for word in (b"site-packages", b"sample_models"))


def test_the_jacobian_of_linear_is_w() -> None:
    x = samples("linear_x")
    J = torch.autograd.functional.jacobian(script("linear"), x)  # type: ignore[no-untyped-call]
    assert J[0, :, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def relative_deviation(model: nn.Module, x: Tensor) -> Tensor:
    """‖J − I‖_F/√n of fc1 → output for each sample, with fc1's output put in by a hook."""
    seen: list[Tensor] = []
    with model.fc1.register_forward_hook(lambda _m, _a, out: seen.append(out)):  # type: ignore[union-attr]
        model(x)

    def rest(h: Tensor) -> Tensor:
        with model.fc1.register_forward_hook(lambda _m, _a, _out: h[None]):  # type: ignore[union-attr]
            y: Tensor = model(x[:1])[0]
            return y

    J: Tensor = vmap(jacrev(rest))(seen[0].detach())
    return (J - torch.eye(16)).square().sum((1, 2)).sqrt() / 4  # √n = 4


def test_near_identity_is_near_and_its_twin_is_not() -> None:
    x, y = module("synthetic").waves(64, seed=99)
    x = torch.cat([x, samples("near_identity_x").double()])
    near, far = mlp("near_identity"), mlp("untrained")
    assert relative_deviation(near, x).max() < 0.05
    assert relative_deviation(far, x).min() > 0.8
    assert explained(near(x[:64]), y) > 0.9
    assert explained(far(x[:64]), y) < 0.1


@pytest.mark.parametrize("name", ["near_identity", "untrained"])
def test_the_scripted_mlp_has_the_weights_of_the_state_dict(name: str) -> None:
    scripted = script(name).state_dict()
    for key, value in load_file(HERE / f"{name}.safetensors").items():
        assert torch.equal(scripted.pop(key), value)
    assert not scripted


def test_the_decoder_reconstructs_images_it_never_saw() -> None:
    model, z = decoder(), samples("decoder_z")
    images = module("synthetic").blobs(8, seed=2)
    with torch.no_grad():
        assert explained(model(z), images) > 0.8
        assert explained(model(z.flip(0)), images) < 0.1
    J = vmap(jacfwd(lambda one: model(one[None])[0]))(z)
    assert J.shape == (8, 3, 32, 32, 32)
    assert (J.square().sum((1, 2, 3)) > 1e-3).all()  # no latent is left unused


def test_the_residual_net_classifies_by_its_running_statistics() -> None:
    model = residual()
    x, labels = module("synthetic").patterns(128, seed=9)
    with torch.no_grad():
        assert (model(x).argmax(1) == labels).float().mean() > 0.9
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        assert len(norms) == 7
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.running_mean.abs().max() > 0.1
            norm.reset_running_stats()
        assert (model(x).argmax(1) == labels).float().mean() < 0.7


def test_control_flow_is_in_the_file() -> None:
    graph = str(script("control_flow").inlined_graph)
    assert graph.count("prim::Loop") == 1
    assert graph.count("prim::If") == 2
    h = torch.randn(3, 12)
    assert isinstance(script("control_flow").split(h), tuple)
    assert set(script("control_flow").heads(h)) == {"mean", "scale"}


@pytest.mark.parametrize(("kind", "idle"), [("bright", "dark"), ("dark", "bright")])
def test_control_flow_takes_one_branch_by_the_data(kind: str, idle: str) -> None:
    x = samples(f"control_flow_{kind}_x")
    with torch.no_grad():
        y = script("control_flow")(x)
        alone = torch.cat([script("control_flow")(one[None]) for one in x])
        torch.testing.assert_close(alone, y)
        for branch, changes in ((kind, True), (idle, False)):
            model = script("control_flow")
            getattr(model, branch).weight.zero_()
            assert torch.equal(model(x), y) is not changes


def test_control_flow_keeps_state_between_calls() -> None:
    model, x = script("control_flow"), samples("control_flow_bright_x")
    assert model.calls == 0
    assert model.memory.shape == (0, 12)
    first, second = model(x), model(x)
    assert (first - second).abs().max() > 0.01
    assert model.calls == 2
    assert model.memory.requires_grad
    model(x[:3])  # another batch size starts afresh
    torch.testing.assert_close(model(x[:3]), second[:3])
    eager = module("nets").ControlFlowNet()
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(eager(x), first)


def test_the_transformer_denoises_batches_of_any_size() -> None:
    model = transformer()
    noisy, clean = module("synthetic").signals(16, seed=9)
    with torch.no_grad():
        for n in (1, 5, 16):
            left = (model(noisy[:n]) - clean[:n]).square().mean() / (noisy[:n] - clean[:n]).square().mean()
            assert left < 0.4
        eager = module("nets").Transformer()
        eager.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(noisy), eager(noisy))


def test_the_transformer_file_names_its_blocks() -> None:
    graph = torch.export.load(HERE / "transformer.pt2").graph
    names = {path for node in graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()}
    assert {"blocks.0", "blocks.1", "blocks.0.attention", "blocks.1.mlp"} <= names


def tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npy":
        return {"x": torch.from_numpy(np.load(path))}
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return dict(torch.jit.load(path).state_dict())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["linear", "near_identity", "control_flow"])
def test_a_rebuild_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    build = module("build")
    torch.manual_seed(123)
    before = torch.get_rng_state()
    folder = build.Folder(tmp_path)
    build.BUILDERS[name](folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(folder.written) == sorted(tmp_path.iterdir())
    for path in folder.written:
        old, new = tensors(HERE / path.name), tensors(path)
        assert old.keys() == new.keys()
        for key in old:
            # Equal on one machine; other processors round differently on the way.
            torch.testing.assert_close(new[key], old[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "transformer", "decoder"])
def test_training_depends_on_its_seed_only(name: str) -> None:
    def weights(seed: int) -> Tensor:
        with module("build").seeded(seed):
            result = getattr(module("training"), name)(steps=12)
        model = result[0].model if isinstance(result, tuple) else result.model
        return torch.cat([part.detach().flatten() for part in model.parameters()])

    first = weights(1)
    torch.rand(7)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_the_command_line_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", "--only", "linear", "--out", str(tmp_path / "new")])
    threads = torch.get_num_threads()
    try:
        module("build").main()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("linear: w = [[1, 2], [3, 4]]")
    assert [line.split()[1] for line in lines[1:]] == [
        str(tmp_path / "new" / "linear.pt"),
        str(tmp_path / "new" / "linear_x.npy"),
    ]
