"""SPECs: what they name, what they are given, and what is said when the user's code fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from jaccli.errors import RefusedError, UsageError
from jaccli.models.identify.import_spec import build, is_spec, parse_arch_args, resolve

CODE = """
import sys
import torch
from torch import nn
from dataclasses import dataclass
from sibling import WIDTH

print("printed while it is imported")

@dataclass
class Config:
    width: int = WIDTH

class Net(nn.Module):
    def __init__(self, width=WIDTH, act="relu"):
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.act = act

class Zoo:
    @staticmethod
    def small():
        return Net(1)

ready = nn.Linear(2, 2)
number = 3
def text(): return "no network"
def fails(): raise ValueError("first line \\x1b[31m of it\\nsecond line")
def exits(): sys.exit(2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "sibling.py").write_text("WIDTH = 7\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("sibling", "nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("torch.nn:Linear", True),
        ("nets.py:Net", True),
        ("some/where/my nets.py:Zoo.small", True),
        ("model.pt", False),
        ("dir/model.pt", False),
        ("torch.nn", False),
        ("a:b:c", False),
        ("1a:b", False),
    ],
)
def test_specs_are_told_from_paths(text, spec):
    assert is_spec(text) is spec


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets:Net").write_bytes(b"x")
    assert not is_spec("nets:Net")
    assert not is_spec(Path("other:Net"))


def test_arch_args_are_json_then_python_then_text():
    pairs = [
        "a=3",
        "b=0.5",
        "c=true",
        "d=None",
        "e=(1, 2)",
        'f={"x": [1]}',
        "g=relu",
        "h=",
        "i=a=b",
        "j=1e-3",
        "k=[1",
    ]
    assert parse_arch_args(pairs) == {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": None,
        "e": (1, 2),
        "f": {"x": [1]},
        "g": "relu",
        "h": "",
        "i": "a=b",
        "j": 1e-3,
        "k": "[1",
    }


@pytest.mark.parametrize("pairs", [["width"], ["=3"], ["a b=3"], ["a=1", "a=2"], ["1=2"]])
def test_bad_arch_args(pairs):
    with pytest.raises(UsageError, match="arch_args="):
        parse_arch_args(pairs)


def test_a_file_with_siblings_and_arguments(folder, capsys):
    net = build("nets.py:Net", {"act": "tanh"})
    assert net.fc.weight.shape == (7, 2)
    assert net.act == "tanh"
    out, err = capsys.readouterr()
    assert out == ""
    assert "printed while it is imported" in err
    assert str(folder) not in sys.path


def test_a_module_in_the_current_folder_and_dotted_attributes(folder):
    assert build("nets:Zoo.small").fc.out_features == 1
    assert build("torch.nn:Linear", {"in_features": 2, "out_features": 3}).out_features == 3


def test_the_same_file_in_two_folders_is_two_modules(tmp_path):
    for width in (1, 2):
        (tmp_path / str(width)).mkdir()
        (tmp_path / str(width) / "net.py").write_text(
            f"from torch import nn\ndef make(): return nn.Linear({width}, 1)\n"
        )
    assert [build(f"{tmp_path}/{width}/net.py:make").in_features for width in (1, 2)] == [1, 2]


def test_a_network_that_exists_is_itself(folder):
    assert build("nets.py:ready").in_features == 2
    module = nn.Linear(1, 1)
    assert build(module) is module
    with pytest.raises(UsageError, match="is a network already and takes no arch_args="):
        build(module, {"width": 3})


def test_the_seed_decides_and_the_generator_is_put_back():
    arguments = {"in_features": 2, "out_features": 3}
    before = torch.get_rng_state()
    nets = [build("torch.nn:Linear", arguments, seed) for seed in (1, 1, 2, 0, None)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert not torch.equal(nets[0].weight, nets[2].weight)
    assert torch.equal(nets[3].weight, nets[4].weight)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_module_here:Net", "there is no module 'no_such_module_here'"),
        ("torch.no_such:Net", r"there is no module 'torch\.no_such'"),
        ("missing.py:Net", "no such file"),
        ("nets.py:Nett", r"'nets\.py' has no 'Nett'\nit has 'Net'"),
        ("nets.py:Zoo.smal", "'Zoo' has no 'smal'\nit has 'small'"),
        ("nets.py:number", "is of type int\nexpected a class or function"),
        ("nets.py:text", "gave an object of type str\nexpected an nn.Module"),
        ("nets.py", "is not the name of a callable"),
    ],
)
def test_wrong_names_are_usage_errors(folder, spec, said):
    with pytest.raises(UsageError, match=said) as caught:
        build(spec)
    assert len(str(caught.value).splitlines()) <= 3


def test_arguments_it_does_not_take_are_a_usage_error(folder):
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'wdth'\nit takes \(width=7, act='relu'\)"):
        build("nets.py:Net", {"wdth": 3})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nets.py:fails", r"raised ValueError: first line .* \(nets\.py, line 28\)"),
        ("nets.py:exits", "raised SystemExit"),
    ],
)
def test_what_the_users_code_raises_is_told_in_three_lines(folder, spec, said):
    with pytest.raises(RefusedError, match=said) as caught:
        build(spec)
    assert len(str(caught.value).splitlines()) == 3
    assert "\x1b" not in str(caught.value)
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize("code", ["import not_installed_at_all", "def f(:", "1 / 0", "raise SystemExit('usage')"])
def test_a_file_that_cannot_be_imported(folder, code):
    (folder / "broken.py").write_text(code)
    modules = set(sys.modules)
    for spec in ("broken.py:Net", "broken:Net"):
        with pytest.raises(RefusedError, match="raised"):
            resolve(spec)
    assert {name for name in set(sys.modules) - modules if "broken" in name} == set()


def test_a_relative_path_is_looked_up_from_here(folder, monkeypatch):
    (folder / "deeper").mkdir()
    monkeypatch.chdir(folder / "deeper")
    assert build(f"..{os.sep}nets.py:Zoo.small").fc.out_features == 1
