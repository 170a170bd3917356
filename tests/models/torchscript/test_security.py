"""Archives that would do more than compute are refused, and nothing of what they hold has happened."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError
from jaccli.models.torchscript.load import load_torchscript
from jaccli.models.torchscript.network import ScriptNetwork
from jaccli.models.torchscript.screen_graphs import screen_graphs

MARK = "/tmp/jaccli-test-must-not-exist"


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "/tmp/jaccli-test-must-not-exist")
        return x


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1e9):
            x = x + torch.from_file("/etc/hostname", False, 1)
        return x


class RunsOnLoad(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> int:
        return 3

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        print("code ran while loading")
        torch.save(torch.ones(1), "/tmp/jaccli-test-must-not-exist")
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("model output that would break a pipe", x)
        return x * 2


class Clean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(3, 4)[:, :1].expand(3, 4))

    def save(self, x: Tensor) -> Tensor:  # a name of its own, nothing to do with files
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.save(self.fc(x)) * self.scale[0]


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


def rewritten(source: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive with its records changed, and further records."""
    target = source.with_name("rewritten.pt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
        top = old.namelist()[0].partition("/")[0]
        for name, data in more.items():
            new.writestr(f"{top}/{name}", data)
    return target


def refused(path: Path, word: str, *, trust: bool = False) -> str:
    with pytest.raises(RefusedError, match=word) as caught:
        load_torchscript(path, trust=trust)
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    assert "weights_only" not in text
    assert "torch/csrc" not in text
    return text


@pytest.fixture(autouse=True)
def _untouched() -> object:
    Path(MARK).unlink(missing_ok=True)
    yield
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    ("module", "word"), [(Saves, "torch.save"), (Reads, "from_file"), (RunsOnLoad, "__setstate__")]
)
def test_what_touches_files_or_runs_code_is_refused(
    module: type[nn.Module], word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "trust=True" in refused(saved(module(), tmp_path / "m.pt"), word)
    assert capfd.readouterr().out == ""


def test_trust_loads_it_all_the_same(tmp_path: Path) -> None:
    module = load_torchscript(saved(Reads(), tmp_path / "m.pt"), trust=True)
    assert torch.equal(ScriptNetwork(module).run((torch.ones(2),), {}), torch.ones(2))


def test_a_clean_model_needs_no_trust(tmp_path: Path) -> None:
    path = saved(Clean(), tmp_path / "m.pt")
    module = load_torchscript(path, trust=False)
    assert not module.training
    x = torch.randn(3, 4)
    torch.testing.assert_close(ScriptNetwork(module).run((x,), {}), torch.jit.load(str(path))(x))


def test_print_stays_off_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = ScriptNetwork(load_torchscript(saved(Prints(), tmp_path / "m.pt"), trust=False))
    network.run((torch.ones(2),), {})
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "call",
    [
        'torch. save(x, "/tmp/jaccli-test-must-not-exist")',
        'torch.\\\n  save(x, "/tmp/jaccli-test-must-not-exist")',
        'ops.aten.save(x, "/tmp/jaccli-test-must-not-exist")',
        'ops.c10d.barrier("/tmp/jaccli-test-must-not-exist")',
        'ops.mine.run("/tmp/jaccli-test-must-not-exist")',
        'torch.classes.mine.Thing("/tmp/jaccli-test-must-not-exist")',
        '"/etc/hostname".from_file(False, 1)',
    ],
)
def test_source_text_is_searched(call: str, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"    print(", f"    _0 = {call}\n    print(".encode())

    refused(rewritten(saved(Prints(), tmp_path / "m.pt"), change), "files|native|not PyTorch's own")


@pytest.mark.parametrize("module", [Saves, Reads])
def test_graphs_are_searched_too(module: type[nn.Module], tmp_path: Path) -> None:
    path = saved(module(), tmp_path / "m.pt")
    unit = torch._C.CompilationUnit()
    torch._C.import_ir_module(unit, str(path), None, {}, False)
    with pytest.raises(RefusedError, match=r"aten::(save|from_file)"):
        screen_graphs(unit, path)


class Evil:
    def __reduce__(self) -> object:
        return (open, (MARK, "w"))


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_foreign_names_is_never_executed(record: str, protocol: int, tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(), protocol=protocol)

    def change(name: str, data: bytes) -> bytes:
        return evil if name.endswith("/" + record) else data

    refused(rewritten(saved(Clean(), tmp_path / "m.pt"), change), "in a pickle|holds a pickle")


def test_native_objects_are_refused(tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"c__torch__\nClean\n", b"c__torch__.torch.classes.x\nClean\n").replace(
            b"c__torch__.tests.models.torchscript.test_security\nClean\n", b"c__torch__.torch.classes.x\nClean\n"
        )

    refused(rewritten(saved(Clean(), tmp_path / "m.pt"), change), "torch.classes.x.Clean")


def test_tensors_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    def shorter(name: str, data: bytes) -> bytes:
        return data[:8] if "/data/" in name and len(data) == 64 else data

    refused(rewritten(saved(Clean(), tmp_path / "m.pt"), shorter), "larger than its record")

    def wider(name: str, data: bytes) -> bytes:  # the weight's size (4, 4) becomes (4, 200)
        return data.replace(b"(K\x04K\x04t(", b"(K\x04K\xc8t(", 1) if name.endswith("/data.pkl") else data

    refused(rewritten(saved(Clean(), tmp_path / "m.pt"), wider), "its storage has 64")


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    path = saved(Clean(), tmp_path / "m.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as new:
        for info in old.infolist():
            kind = zipfile.ZIP_DEFLATED if "/data/" in info.filename else zipfile.ZIP_STORED
            new.writestr(info.filename, old.read(info), compress_type=kind)
    refused(tmp_path / "bomb.pt", "compressed tensors")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        top = old.namelist()[0].partition("/")[0]
        new.writestr(f"{top}/code/big.py", b"#" * (65 << 20), compress_type=zipfile.ZIP_DEFLATED, compresslevel=1)
    refused(tmp_path / "bomb.pt", "absurd size")


def test_an_ambiguous_table_of_contents_is_refused(tmp_path: Path) -> None:
    path = saved(Clean(), tmp_path / "m.pt")
    double = rewritten(path, lambda _, data: data, **{"DATA.pkl": b""})
    refused(double, "same name")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "two.pt", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        new.writestr("other/data.pkl", b"")
    refused(tmp_path / "two.pt", "top folder")


@pytest.mark.parametrize("trust", [False, True])
def test_truncated_and_damaged_files_are_refused(trust: bool, tmp_path: Path) -> None:
    whole = saved(Clean(), tmp_path / "m.pt").read_bytes()
    broken = tmp_path / "broken.pt"
    for data in (
        b"",
        whole[:1],
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:-200],
        b"<html>" + whole[6:100],
    ):
        broken.write_bytes(data)
        refused(broken, "broken.pt", trust=trust)


@pytest.mark.parametrize("trust", [False, True])
def test_nonsense_records_are_refused(trust: bool, tmp_path: Path) -> None:
    path = saved(Clean(), tmp_path / "m.pt")
    for record in ("data.pkl", ".py"):
        for junk in (b"", b"\x80\x02}q\x00.", b"\xff\xfe\x00", b"def f(:\n"):
            broken = rewritten(path, lambda n, d, r=record, j=junk: j if n.endswith(r) else d)
            refused(broken, "rewritten.pt", trust=trust)


def test_bits_flipped_anywhere_never_do_worse_than_an_error(tmp_path: Path) -> None:
    whole = bytearray(saved(Clean(), tmp_path / "m.pt").read_bytes())
    start = whole.find(b"data.pkl")
    for position in range(start, start + 900, 7):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        (tmp_path / "broken.pt").write_bytes(broken)
        try:
            load_torchscript(tmp_path / "broken.pt", trust=False)
        except RefusedError as error:
            assert "broken.pt" in str(error)  # noqa: PT017  either outcome is right


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31mb.pt"
    path.write_bytes(b"no zip")
    text = refused(path, "b.pt")
    assert "\x1b" not in text


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"    print(", b"    _0 = ops.mine.run(x)\n    print(")

    refused(rewritten(saved(Prints(), tmp_path / "m.pt"), change), "mine::run", trust=True)


def test_a_tensor_of_absurd_size_is_refused(tmp_path: Path) -> None:
    def huge(name: str, data: bytes) -> bytes:  # 2⁴⁰ rows of stride 0 in the buffer, and 4 columns of stride 0
        if not name.endswith("/data.pkl"):
            return data
        return data.replace(b"(K\x03K\x04t(K\x04K\x00t", b"(\x8a\x06\x00\x00\x00\x00\x00\x01K\x04t(K\x00K\x00t")

    refused(rewritten(saved(Clean(), tmp_path / "m.pt"), huge), "claims .* elements")


def patched(path: Path, offset: int, mark: bytes, value: bytes) -> None:
    """Put bytes at a distance from every header that begins with ``mark``."""
    data = bytearray(path.read_bytes())
    start = data.find(mark)
    while start >= 0:
        data[start + offset : start + offset + len(value)] = value
        start = data.find(mark, start + 1)
    path.write_bytes(data)


def test_directories_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "cannot be opened")
    zipfile.ZipFile(tmp_path / "empty.pt", "w").close()
    refused(tmp_path / "empty.pt", "it is empty")
    two = saved(Clean(), tmp_path / "two.pt")
    with zipfile.ZipFile(two, "a") as archive:
        archive.writestr("other/folder", b"")
    refused(two, "no single top folder")
    encrypted = saved(Clean(), tmp_path / "encrypted.pt")
    patched(encrypted, 8, b"PK\x01\x02", b"\x01")
    refused(encrypted, "encrypted")
    larger = saved(Clean(), tmp_path / "larger.pt")
    patched(larger, 20, b"PK\x01\x02", (1 << 24).to_bytes(4, "little"))
    refused(larger, "larger than the file")


def test_many_entries_and_much_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Clean(), tmp_path / "m.pt")
    with monkeypatch.context() as patch:
        patch.setattr("jaccli.models.torchscript.screen_archive._MAX_ENTRIES", 3)
        refused(path, "more than any model needs")
    monkeypatch.setattr("jaccli.models.torchscript.screen_archive._MAX_TOKENS", -1000)
    refused(path, "tokens of code")
