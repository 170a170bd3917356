"""Files with several state dicts: which one is taken, what is said of the others, and ``MODEL[key]``."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jaccli.errors import JaccliNote, RefusedError, UsageError
from jaccli.models.load import load_model, model_hash


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.fc = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


class Attributes:
    """An object that keeps an average, as trainers pickle it."""

    def __init__(self, shadow: dict[str, Tensor]) -> None:
        self.decay, self.shadow = 0.9, shadow


def state(mark: float, width: int = 2, prefix: str = "") -> dict[str, Tensor]:
    """A state dict of ``Net`` whose bias tells it from others."""
    return {f"{prefix}fc.weight": torch.randn(width, 3), f"{prefix}fc.bias": torch.full((width,), float(mark))}


def mark(model: nn.Module) -> float:
    return float(model.fc.bias.detach()[0])  # type: ignore[union-attr,index]


def adam() -> dict[str, Any]:
    return {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}


HOW = pytest.mark.parametrize("how", [{"arch": Net}, {"activation": "tanh"}], ids=["arch", "activation"])
FORMS = pytest.mark.parametrize("form", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])

# What is in the file; the mark of what is taken; what the note says of the others.
TAKEN: dict[str, tuple[Callable[[], Any], float, str]] = {
    "plain before ema": (lambda: {"model_ema": state(2), "model": state(1)}, 1, "not model_ema"),
    "ema in front": (lambda: {"ema_generator": state(2), "generator": state(1)}, 1, "not ema_generator"),
    "ema alone in name": (lambda: {"ema": state(2), "unet": state(1)}, 1, "not ema"),
    "camel": (lambda: {"netG_EMA": state(2), "netG": state(1)}, 1, "not netG_EMA"),
    "swa": (lambda: {"swa_model": state(2), "weights": state(1)}, 1, "not swa_model"),
    "shadow": (lambda: {"net": state(1), "ema": {"decay": 0.9, "shadow": state(2)}}, 1, r"not ema\.shadow"),
    "an object's shadow": (lambda: {"net": state(1), "average": Attributes(state(2))}, 1, r"not average\.shadow"),
    "only one fits": (lambda: {"actor": state(1), "critic": state(2, 1)}, 1, "not critic"),
    "the second fits": (lambda: {"actor": state(2, 1), "critic": state(1)}, 1, "not actor"),
    "ema of another": (lambda: {"d": state(2, 1), "g_ema": state(1)}, 1, "not d"),
    "nested": (lambda: {"run": {"model": {"params_ema": state(2), "params": state(1)}}}, 1, "not run.model.params_ema"),
    "outside": (lambda: state(1) | {"ema": state(2)}, 1, "not ema"),
    "optimizer": (lambda: {"g": state(1), "optimizer": adam(), "epoch": 3}, 1, "under 'g'"),
    "moments by name": (lambda: {"net": state(1), "optim_g": {"m": state(2)}, "exp_avg": state(3)}, 1, "under 'net'"),
    "grads": (lambda: {"state_dict": state(1), "grads": state(2), "lrScheduler": state(3)}, 1, "under 'state_dict'"),
    "one thing twice": (lambda: dict.fromkeys(("model", "best"), state(1)), 1, "under 'model'"),
    "equal tensors": (lambda: (lambda s: {"model": s, "copy": dict(s)})(state(1)), 1, "under 'model'"),
    "lightning": (
        lambda: {
            "state_dict": state(1, prefix="net.") | state(2, prefix="net_ema."),
            "optimizer_states": [adam()],
            "callbacks": {"EMA": {"weights": state(3)}},
            "hyper_parameters": {"lr": 0.1},
        },
        1,
        r"'net\.' was taken off.* \(not 'net_ema\.'",
    ),
    "prefixes of another shape": (lambda: state(2, 1, "critic.") | state(1, prefix="actor."), 1, r"'actor\.'"),
    "online": (lambda: {"ema": state(2, prefix="ema_model.") | state(1, prefix="online_model.")}, 1, "online_model"),
}


def saved(path: Path, content: Any, form: dict[str, Any] | None = None) -> Path:
    torch.save(content, path, **(form or {}))
    return path


@FORMS
@pytest.mark.parametrize("case", TAKEN)
def test_one_is_taken(case: str, form: dict[str, Any], tmp_path: Path) -> None:
    content, right, said = TAKEN[case]
    with pytest.warns(JaccliNote, match=said):
        assert mark(load_model(saved(tmp_path / "ck.pth", content(), form), arch=Net)) == right


@HOW
@pytest.mark.parametrize(
    "keys",
    [
        ("generator", "discriminator"),
        ("actor", "critic"),
        ("model", "best_model"),
        ("student", "teacher"),
        ("model", "state_dict"),
        ("ema_0.9", "ema_0.99"),
        ("Größe", "模型"),
        (0, 1),
    ],
    ids=str,
)
def test_two_that_fit(keys: tuple[Any, Any], how: Any, tmp_path: Path) -> None:
    """Neither is taken; each is to be had by its key."""
    path = saved(tmp_path / "ck.pth", {key: state(n) for n, key in enumerate(keys)} | {"optimizer": adam(), "epoch": 7})
    with pytest.raises(UsageError) as caught:
        load_model(path, **how)
    assert all(f"ck.pth[{key}]" in caught.value.expected for key in keys)
    assert "optimizer" not in str(caught.value)
    for n, key in enumerate(keys):
        assert mark(load_model(f"{path}[{key}]", **how)) == n


@pytest.mark.parametrize("named", ["model[best]", "model.x[1]", "a]b", "[x]", "ck"])
@pytest.mark.parametrize("key", ["g", "v1.0", "x[y]", "a b"])
def test_names_and_keys_with_odd_characters(named: str, key: str, tmp_path: Path) -> None:
    path = saved(tmp_path / named, {key: state(1), "other": state(2)})
    assert mark(load_model(Path(f"{path}[{key}]"), arch=Net)) == 1
    assert model_hash(f"{path}[{key}]") == model_hash(path)


def test_a_file_of_that_name_wins(tmp_path: Path) -> None:
    saved(tmp_path / "ck.pth", {"x": state(1)})
    saved(tmp_path / "ck.pth[x]", state(2))
    assert mark(load_model(tmp_path / "ck.pth[x]", arch=Net)) == 2


PLACES: dict[str, tuple[Callable[[], Any], str]] = {
    "nested": (lambda: {"state": {"model": state(1), "target": state(2)}}, "state.model"),
    "dots": (lambda: {"v1.0": {"g": state(1)}, "v1.1": {"g": state(2)}}, "v1.0.g"),
    "below": (lambda: {"old": {"model": state(2)}, "new": {"model": state(1), "model_ema": state(2)}}, "new"),
    "a list": (lambda: [state(2), state(1)], "1"),
    "a list below": (lambda: {"models": [state(2), state(1)]}, "models.1"),
    "an object": (lambda: {"net": state(2), "average": Attributes(state(1))}, "average.shadow"),
    "an ordered dict": (lambda: collections.OrderedDict(a=collections.OrderedDict(state(1)), b=state(2)), "a"),
    "a prefix": (lambda: state(1, prefix="g.") | state(2, prefix="d."), "g"),
    "a prefix within": (lambda: {"state_dict": state(1, prefix="g.") | state(2, prefix="d.")}, "g"),
    "a path and a prefix": (lambda: {"state_dict": state(1, prefix="g.") | state(2, prefix="d.")}, "state_dict.g"),
    "two prefixes": (lambda: state(1, prefix="module.g.") | state(2, prefix="module.d."), "module.g"),
    "an average": (lambda: {"model": state(2), "model_ema": state(1, prefix="module.")}, "model_ema"),
    "one that does not fit as it is": (lambda: {"model": state(1, prefix="net.")}, "model"),
}


@FORMS
@pytest.mark.parametrize("case", PLACES)
def test_a_key_chooses(case: str, form: dict[str, Any], tmp_path: Path) -> None:
    content, key = PLACES[case]
    path = saved(tmp_path / "ck.pth", content(), form)
    assert mark(load_model(f"{path}[{key}]", arch=Net)) == 1


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("key", ["generatr", "optimizer", "optimizer.state.0", "epoch", "generator.fc.weight", "0"])
def test_a_wrong_key(key: str, trust: bool, tmp_path: Path) -> None:
    content = {"generator": state(1), "discriminator": state(2), "optimizer": adam(), "epoch": 7}
    with pytest.raises(UsageError, match="expected one of 'generator', 'discriminator'\n"):
        load_model(f"{saved(tmp_path / 'ck.pth', content)}[{key}]", arch=Net, trust=trust)


@pytest.mark.parametrize("kind", ["torchscript", "exported", "spec", "weights", "empty"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_key_where_there_is_none(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "m")
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(Net()), path)
    elif kind == "exported":
        path += ".pt2"
        torch.export.save(torch.export.export(Net(), (torch.randn(2, 3),)), path)
    elif kind == "spec":
        path = "torch.nn:Identity"
    else:
        save_file(state(1), path)
    said = {"spec": "is code", "weights": "one state dict, of", "empty": "has no key"}.get(kind, "without keys")
    with pytest.raises(UsageError) as caught:
        load_model(path + ("[]" if kind == "empty" else "[model]"), arch=Net)
    assert said in str(caught.value) or said in caught.value.expected


def test_prefixes_of_safetensors(tmp_path: Path) -> None:
    save_file(state(1, prefix="generator.") | state(2, prefix="discriminator."), tmp_path / "m")
    with pytest.raises(UsageError, match=r"'discriminator', 'generator'|'generator', 'discriminator'"):
        load_model(tmp_path / "m", arch=Net)
    assert mark(load_model(f"{tmp_path / 'm'}[generator]", arch=Net)) == 1
    assert mark(load_model(f"{tmp_path / 'm'}[discriminator]", activation="relu")) == 2


def test_pickled_modules(tmp_path: Path) -> None:
    """Theirs are keys too, if the file is trusted."""
    nets = Net(), Net()
    with torch.no_grad():
        for number, net in enumerate(nets):
            net.fc.bias.fill_(number)
    path = saved(tmp_path / "ck.pth", {"ema": nets[1], "model": nets[0]})
    assert mark(load_model(path, trust=True)) == 0
    assert mark(load_model(f"{path}[ema]", trust=True)) == 1
    with pytest.raises(RefusedError, match="whole pickled module"):
        load_model(f"{path}[ema]")


def test_none_that_fits_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "ck.pth", {"generator": state(1), "discriminator": state(2)})
    with pytest.raises(RefusedError, match=r"\[generator\]' does not fit the model: 'fc.weight' has shape \(2, 3\)"):
        load_model(path, arch=Net, arch_args={"width": 5})


def test_the_architecture_is_asked_for_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "ck.pth", {"left": state(1), "right": state(2)})
    with pytest.raises(UsageError, match="weights without a network"):
        load_model(path)
