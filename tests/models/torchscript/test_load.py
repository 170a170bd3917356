"""Loading TorchScript archives: clean ones without trust, damaged ones refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from jaccli.errors import RefusedError
from jaccli.models.torchscript.load import load_torchscript
from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.script_nets import SCENARIOS, scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_clean_model_loads_without_trust_and_gives_its_own_output(name: str, tmp_path: Path) -> None:
    _, module, args = scenario(name)
    torch.jit.save(module, str(tmp_path / "m.pt"))
    network = ScriptNetwork(load_torchscript(tmp_path / "m.pt", trust=False))
    with torch.no_grad():
        ours, own = network.run(args, {}), torch.jit.load(str(tmp_path / "m.pt"))(*args)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)


def test_a_model_saved_in_training_mode_is_loaded_in_eval_mode(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Dropout(0.9))), str(tmp_path / "m.pt"))
    network = ScriptNetwork(load_torchscript(tmp_path / "m.pt", trust=False))
    assert torch.equal(network.run((torch.ones(50),), {}), torch.ones(50))
    assert network.doubtful() == []


def test_a_frozen_file_loads(tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval()))
    torch.jit.save(frozen, str(tmp_path / "m.pt"))
    network = ScriptNetwork(load_torchscript(tmp_path / "m.pt", trust=False))
    x = torch.randn(3, 4)
    torch.testing.assert_close(network.run((x,), {}), frozen(x))


def test_further_files_in_the_archive_do_no_harm(tmp_path: Path) -> None:
    module = torch.jit.script(nn.Linear(4, 2))
    torch.jit.save(module, str(tmp_path / "m.pt"), _extra_files={"notes.txt": b"hello"})
    network = ScriptNetwork(load_torchscript(tmp_path / "m.pt", trust=False))
    assert network.run((torch.ones(1, 4),), {}).shape == (1, 2)


@pytest.mark.parametrize("trust", [False, True])
def test_other_zip_files_are_no_torchscript(trust: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as other:
        other.writestr("folder/hello.txt", "hello")
    for name in ("state.pt", "any.zip"):
        with pytest.raises(RefusedError, match=name) as caught:
            load_torchscript(tmp_path / name, trust=trust)
        assert "weights_only" not in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
