"""Texts and comments are no code; what hides behind them is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError
from jaccli.models.torchscript.load import load_torchscript
from jaccli.models.torchscript.network import ScriptNetwork
from jaccli.models.torchscript.source_literals import without_literals
from tests.models.torchscript.test_security import MARK, Prints, rewritten, saved


class Careful(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2, self.text
        return x


@pytest.mark.parametrize(
    "text",
    [
        "save it with aten::save, torch.save or ops.mine.run(x)", "from_file", "torch.classes", "__setstate__",
        "it's \"torch.save\"\n \\", "'\"'\"\"\"# torch.save", "getattr(torch, 'save')",
    ],
)  # fmt: skip
def test_texts_may_name_operators(text: str, tmp_path: Path) -> None:
    torch.jit.freeze(torch.jit.script(Careful(text).eval())).save(str(tmp_path / "m.pt"))
    module = load_torchscript(tmp_path / "m.pt", trust=False)
    assert torch.equal(ScriptNetwork(module).run((torch.ones(2, 2),), {}), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('a("torch.save(x)")', 'a("")'),
        (r"a('it\'s torch.save')", 'a("")'),
        ('"""torch.save"""b', '""b'),
        (r'"""a"b""c\"""d"""e', '""e'),
        ("'''a\n\"'''b", '""b'),
        ('"" "a"b', '"" ""b'),
        ('"a\\\nb"c', '""c'),
        (r'r"\"; b"', 'r""'),  # no raw texts: the quote after the backslash is a part of the text
        ("# it's\nb # \"\nc", " b c"),
        ('# type: b("x")', '# type: b("")'),
        ("# a\rb\x0bc\u2028d\ne", " e"),
        ("a.\\\n  b", "a.b"),
        ("a . b", "a.b"),
    ],
)
def test_code_without_texts(source: str, code: str) -> None:
    assert without_literals(source) == code


@pytest.mark.parametrize("source", ['"', "a('b", '"a\nb"', '"""a""', r'"\"', r"a \ b", r"'''a\'''"])
def test_texts_that_do_not_end_are_no_code(source: str) -> None:
    assert without_literals(source) is None


SAVE = f'torch.save(x, "{MARK}")'


@pytest.mark.parametrize(
    "code",
    [
        f'getattr(torch, "save")(x, "{MARK}")',
        f'getattr((ops).aten, "save")(x, "{MARK}")',
        f'"" + "\\\\" # "\n    {SAVE} # "',
        f"'\"'\n    {SAVE} # '",
        f'"""\\""""""\n    {SAVE}',
        f"# type: (Tensor)\n    {SAVE}",
        f"# \\\n    {SAVE}",
    ],
)
def test_calls_behind_texts_are_found(code: str, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"    print(", f"    _0 = {code}\n    print(".encode())

    with pytest.raises(RefusedError, match=r"files|getattr"):
        load_torchscript(rewritten(saved(Prints(), tmp_path / "m.pt"), change), trust=False)
    assert not Path(MARK).exists()
