"""``regularize -o X.pth``: the file that MODEL was, with the trained values; and the same names in safetensors."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import jaccli

from . import nets
from .conftest import Run

TRAIN = ("--arch", "nets.py:Mlp", "-i", "x3.npy", "--layer", "embed", "--to", "blocks.1", "--steps", "20")


def state(prefix: str = "", seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {prefix + name: value.to(dtype) for name, value in nets.Mlp().state_dict().items()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "p": (0, 1)}]}
# What is in the file, and where in it the weights are; their prefix.
FILES: dict[str, tuple[Callable[[], Any], str, tuple[Any, ...], str]] = {
    "plain": (state, "", (), ""),
    "wrapped": (lambda: {"model": state(), "epoch": 7, "lr": 0.5, "name": "a", "none": None}, "", ("model",), ""),
    "prefix": (lambda: {"state_dict": state("module."), "epoch": 7}, "", ("state_dict",), "module."),
    "nested": (lambda: {"run": {"params": state(), "steps": [1, 2]}, "best": 0.3}, "", ("run", "params"), ""),
    "optimizer": (lambda: {"epoch": 1, "optimizer": ADAM, "net": state()}, "", ("net",), ""),
    "average": (lambda: {"model": state(), "model_ema": state(seed=1)}, "", ("model",), ""),
    "key": (lambda: {"a": state(seed=1), "b": state(), "extra": torch.ones(3)}, "[b]", ("b",), ""),
    "part": (lambda: {"epoch": 3, "sd": state("g.") | state("d.", 1)}, "[g]", ("sd",), "g."),
    "numbers": (lambda: [state(), {"epoch": 3}], "[0]", (0,), ""),
    "extra entries": (lambda: state() | {"loss.weight": torch.ones(2), "step": 3}, "", (), ""),
    "ordered": (lambda: {"model": collections.OrderedDict(state()), "size": torch.Size([2, 3])}, "", ("model",), ""),
    "half": (lambda: {"model": state(dtype=torch.bfloat16)}, "", ("model",), ""),
    "compiled": (lambda: {"model": state("_orig_mod.")}, "", ("model",), "_orig_mod."),
}


def at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


@pytest.mark.filterwarnings("ignore::jaccli.JaccliWarning")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("case", FILES)
def test_the_same_file_with_other_values(cli: Run, tmp_path: Path, case: str, form: str) -> None:
    content, key, place, prefix = FILES[case]
    before, out = content(), tmp_path / "near.pth"
    torch.save(before, tmp_path / "in.pth", _use_new_zipfile_serialization=form == "zip")
    found = cli("regularize", f"{tmp_path / 'in.pth'}{key}", *TRAIN, "-o", out, "--format", "json").ok()
    after = torch.load(out, weights_only=True)
    trained = at(after, place)
    changed = {name for name, value in at(before, place).items() if not same(value, trained[name])}
    # ``fc1`` and what is behind the target have no share in J; the outputs are held.
    assert changed >= {f"{prefix}blocks.0.0.weight", f"{prefix}blocks.1.0.weight"}
    assert changed <= {prefix + name for name in state()}
    at(before, place).update({name: trained[name] for name in changed})
    assert same(list(before) if isinstance(before, dict) else before, list(after) if isinstance(after, dict) else after)
    if case != "ordered":  # torch.Size is written as a tuple
        assert same(before, after)
    # What it says of J holds of what it wrote.
    told = cli("deviation", f"{out}{key}", *TRAIN[:-2], "--samples", "4", "--format", "json", "-q").ok().json
    right = found.json["after"]["held_out"]["relative"]
    assert told["pairs"][0]["summary"]["relative"]["mean"] == pytest.approx(right, rel=0.1 if case == "half" else 1e-5)


@pytest.mark.parametrize("case", ["plain", "prefix", "key", "extra entries"])
@pytest.mark.parametrize("source", ["checkpoint", "safetensors"])
def test_safetensors_keep_the_names(cli: Run, tmp_path: Path, case: str, source: str) -> None:
    content, key, place, _ = FILES[case]
    before = {name: value for name, value in at(content(), place).items() if isinstance(value, Tensor)}
    if source == "safetensors":
        save_file(before, tmp_path / "in", metadata={"format": "pt"})
        key = ""
    else:
        torch.save(content(), tmp_path / "in")
    out = tmp_path / "near.safetensors"
    cli("regularize", f"{tmp_path / 'in'}{key}", *TRAIN, "-o", out).ok()
    after = load_file(out)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    with safe_open(str(out), "pt") as file:
        assert file.metadata()["towards"] == "identity"
        assert file.metadata().get("format") == ("pt" if source == "safetensors" else None)


def test_prefixes_of_one_safetensors_file(cli: Run, tmp_path: Path) -> None:
    before, out = state("g.") | state("d.", 1), tmp_path / "near.safetensors"
    save_file(before, tmp_path / "in")
    cli("regularize", f"{tmp_path / 'in'}[g]", *TRAIN, "-o", out).ok()
    after = load_file(out)
    assert after.keys() == before.keys()
    assert {name[:2] for name in before if not torch.equal(before[name], after[name])} == {"g."}
    assert jaccli.load_model(f"{out}[g]", arch=nets.Mlp) is not None


@pytest.mark.parametrize("model", ["nets.py:Mlp", "mlp.pt2", "mlp.pt", "mlp.safetensors"])
@pytest.mark.parametrize("ending", ["pth", "ckpt", "bin"])
def test_models_that_were_no_checkpoint(cli: Run, tmp_path: Path, model: str, ending: str) -> None:
    """Their state dict under their own names."""
    out = tmp_path / f"near.{ending}"
    arch = TRAIN[:2] if model.endswith("safetensors") else ()
    cli("regularize", model, *arch, *TRAIN[2:], "-o", out).ok()
    assert torch.load(out, weights_only=True).keys() == nets.Mlp().state_dict().keys()
    assert jaccli.load_model(out, arch=nets.Mlp) is not None


def test_what_only_code_can_read_is_left_out(cli: Run, tmp_path: Path) -> None:
    content = {
        "model": state(),
        "args": argparse.Namespace(lr=0.1),
        "epoch": np.int64(7),
        "scores": np.arange(3.0),
        "log": [1, {2, 3}],
        "hook": print,
    }
    torch.save(content, tmp_path / "in.pth")
    done = cli("regularize", tmp_path / "in.pth", *TRAIN, "-o", tmp_path / "near.pth").ok()
    after = torch.load(tmp_path / "near.pth", weights_only=True)
    assert after.keys() == {"model", "epoch", "scores"}
    assert after["epoch"] == 7
    assert after["scores"].dtype == torch.float64
    assert all(f"'{key}'" in done.err for key in ("args", "log", "hook"))


def test_what_was_not_trained_is_told(cli: Run, tmp_path: Path) -> None:
    torch.save({"model": state(), "model_ema": state(seed=1), "optimizer": ADAM}, tmp_path / "in.pth")
    done = cli("regularize", tmp_path / "in.pth", *TRAIN, "-o", tmp_path / "near.pth").ok()
    assert "not trained: what is under 'model_ema', 'optimizer'" in done.err


def test_over_the_file_itself(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save({"model": state(), "epoch": 7}, path)
    assert cli("regularize", path, *TRAIN, "-o", path).code == 2
    cli("regularize", path, *TRAIN, "-o", path, "--force").ok()
    assert torch.load(path, weights_only=True)["epoch"] == 7


def test_a_trusted_module(cli: Run, tmp_path: Path) -> None:
    """Its code is not written: its state dict is."""
    out = tmp_path / "near.pth"
    cli("regularize", "pickled.pt", "--trust", *TRAIN[2:], "-o", out).ok()
    assert torch.load(out, weights_only=True).keys() == nets.Mlp().state_dict().keys()


KEYED = {
    "compute": ("compute", "-i", "x3.npy"),
    "layers": ("layers",),
    "deviation": ("deviation", "-i", "x3.npy", *TRAIN[4:8]),
    "spectrum": ("spectrum", "-i", "x3.npy"),
    "bench": ("bench", "-i", "x3.npy", "--methods", "reverse", "--rounds", "1"),
    "regularize": ("regularize", *TRAIN[2:]),
}


@pytest.mark.parametrize("case", KEYED)
def test_a_key_in_every_command(cli: Run, tmp_path: Path, case: str) -> None:
    """Without it two state dicts are exit 2, a wrong one lists them, and a right one is taken."""
    path = tmp_path / "ck.pth"
    torch.save({"generator": state(), "discriminator": state(seed=1), "optimizer": ADAM}, path)
    command, *given = KEYED[case]
    for key in ("", "[critic]", "[optimizer]"):
        done = cli(command, f"{path}{key}", "--arch", "nets.py:Mlp", *given)
        assert done.code == 2
        assert "'generator', 'discriminator'" in done.err
    cli(command, f"{path}[discriminator]", "--arch", "nets.py:Mlp", *given, "--format", "json").ok()


def test_the_key_in_provenance(cli: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "ck.pth", tmp_path / "J.safetensors"
    torch.save({"a": state(), "b": state(seed=1)}, path)
    cli("compute", f"{path}[b]", *TRAIN[:4], "-o", out).ok()
    with safe_open(str(out), "pt") as file:
        kept = file.metadata()
    assert kept["model"] == f"{path}[b]"
    assert kept["model_sha256"] == jaccli.models.load.model_hash(path)
