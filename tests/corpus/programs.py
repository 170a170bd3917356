"""TorchScript archives and exported programs, taken apart and put together wrongly."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.corpus import pickles
from tests.corpus.files import Bad
from tests.corpus.networks import Plain

Change = Callable[[str, bytes], bytes]


@functools.cache
def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Plain().eval()), buffer)
    return buffer.getvalue()


@functools.cache
def export() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(torch.export.export(Plain().eval(), (torch.ones(2, 3),)), path)
        return path.read_bytes()


def rebuilt(whole: Callable[[], bytes], change: Change, **more: bytes) -> Callable[[Path], object]:
    """The archive with each record changed, and further ones."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(whole())) as old, zipfile.ZipFile(path, "w") as new:
            top = old.namelist()[0].split("/")[0]
            for name in old.namelist():
                new.writestr(name, change(name, old.read(name)))
            for name, data in more.items():
                new.writestr(f"{top}/{name}", data)

    return write


def source(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """The code of the script changed."""
    return rebuilt(script, lambda name, data: change(data) if name.endswith(".py") else data)


def within(extra: str) -> Callable[[Path], object]:
    """Statements before the return of forward."""
    return source(lambda code: code.replace(b"    return", extra.encode() + b"    return", 1))


def record(name: str, data: bytes) -> Callable[[Path], object]:
    return rebuilt(script, lambda held, old: data if held.endswith(name) else old)


SCRIPTS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "50,000 blank lines": (source(lambda code: b"\n" * 50_000 + code), False),
    "50,000 comments": (source(lambda code: b"# x\n" * 50_000 + code), False),
    "50,000 lines of spaces": (source(lambda code: b"   \n" * 50_000 + code), False),
    "50,000 continued lines": (source(lambda code: b"\\\n" * 50_000 + code), False),
    "50,000 brackets": (within("    a = " + "(" * 50_000 + "1" + ")" * 50_000 + "\n"), False),
    "50,000 sums": (within("    a = 1" + " + 1" * 50_000 + "\n"), False),
    "400,000 statements": (within("    a = 1\n" * 400_000), False),
    "list of 400,000": (within("    a = [" + "1, " * 400_000 + "1]\n"), False),
    "code that is no text": (source(lambda code: b"\xff\xfe" + code), False),
    "code that is no code": (source(lambda code: b"((("), False),
    "no code": (source(lambda code: b""), False),
    "data.pkl of rubbish": (record("data.pkl", b"\x80\x02rubbish"), False),
    "data.pkl of nothing": (record("data.pkl", b""), False),
    "data.pkl of millions of dicts": (record("data.pkl", b"\x80\x02" + b"}0" * 3_000_000 + b"N."), False),
    "data.pkl of deep tuples": (record("data.pkl", b"\x80\x02" + pickles.nested_tuples(100_000) + b"."), False),
    "data.pkl of shared tuples": (record("data.pkl", b"\x80\x02" + pickles.repeated(30, 50) + b"."), False),
    "data.pkl of a shared key": (record("data.pkl", b"\x80\x02}" + pickles.repeated(6, 50) + b"Ns."), False),
    "data.pkl of a function": (record("data.pkl", b"\x80\x02cos\nsystem\n."), False),
    "data.pkl of a high memo entry": (record("data.pkl", b"\x80\x02Nr\xff\xff\xff\x7f."), False),
    "constants of rubbish": (record("constants.pkl", b"\x80\x02rubbish"), False),
    "version of 30 digits": (record("version", b"9" * 30), False),
    "version of words": (record("version", b"x"), False),
    "no version": (rebuilt(script, lambda name, data: data if not name.endswith("version") else b""), False),
    "storages cut": (rebuilt(script, lambda name, data: data[:4] if "/data/" in name else data), False),
    "debug records of rubbish": (rebuilt(script, lambda n, d: b"\x80\x02x" if n.endswith("debug_pkl") else d), False),
    "debug records of 6 MB": (
        rebuilt(script, lambda n, d: b"\x80\x02" + b"N0" * 3_000_000 + b"N." if n.endswith("debug_pkl") else d),
        False,
    ),
}  # fmt: skip


def program(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The JSON of the export changed."""

    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return rebuilt(export, edit)


def replaced(old: str, new: str) -> Callable[[Path], object]:
    """A piece of the JSON's text replaced, which must be there."""

    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith((".json",)) or old.encode() not in data:
            return data
        return data.replace(old.encode(), new.encode())

    return rebuilt(export, edit)


def emptied(*path: str) -> Callable[[Path], object]:
    def change(document: dict[str, Any]) -> None:
        held: Any = document
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = type(held[path[-1]])()

    return program(change)


def calls(spec: str | None) -> Callable[[Path], object]:
    """The description of the arguments replaced, or all of the signature left out."""

    def change(document: dict[str, Any]) -> None:
        for call in document["graph_module"]["module_call_graph"]:
            if call["signature"]:
                call["signature"] = {**call["signature"], "in_spec": spec} if spec is not None else None

    return program(change)


def text(data: bytes, name: str = "models/model.json") -> Callable[[Path], object]:
    return rebuilt(export, lambda held, old: data if held.endswith(name) else old)


EXPORTS: dict[str, Callable[[Path], object]] = {
    "JSON of another type": text(b"[1]"),
    "JSON that is none": text(b"{"),
    "deep JSON": text(b'{"graph_module":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "no graph": emptied("graph_module", "graph"),
    "no nodes": emptied("graph_module", "graph", "nodes"),
    "no outputs": emptied("graph_module", "graph", "outputs"),
    "no calls": emptied("graph_module", "module_call_graph"),
    "no signature": emptied("graph_module", "signature"),
    "no call of the root": program(lambda d: [c.update(fqn="x") for c in d["graph_module"]["module_call_graph"]]),
    "no specs": calls(None),
    "specs of rubbish": calls("[1,"),
    "specs of deep JSON": calls("[" * 20_000 + "]" * 20_000),
    "dtype of infinity": replaced('"dtype": 7', '"dtype": Infinity'),
    "dtype of 99": replaced('"dtype": 7', '"dtype": 99'),
    "layout of infinity": replaced('"layout": 7', '"layout": Infinity'),
    "sizes of 2**62": replaced('"as_int": 3', f'"as_int": {2**62}'),
    "sizes of infinity": replaced('"as_int": 3', '"as_int": Infinity'),
    "sizes of text": replaced('"as_int": 3', '"as_int": "x"'),
    "operator that is none": replaced("torch.ops.aten.linear.default", "torch.ops.aten.nothing.default"),
    "operator that opens files": replaced("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"),
    "operator of another name": replaced("torch.ops.aten.linear.default", "os.system"),
    "node of a value that is not there": replaced('"name": "x"', '"name": "y"'),
    "version of 30 digits": text(b"9" * 30, "archive_version"),
    "weights of rubbish": rebuilt(export, lambda n, d: b"x" if "/data/weights/weight" in n else d),
    "weights' configuration of rubbish": text(b"{", "model_weights_config.json"),
    "weights outside of the archive": replaced('"path_name": "weight_0"', '"path_name": "../weight_0"'),
}  # fmt: skip


def polyglot(path: Path) -> None:
    """A zip archive that begins as a pickle."""
    path.write_bytes(b"\x80\x02}q\x00." + export())


def cut(whole: Callable[[], bytes], share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(whole()[: int(len(whole()) * share)])


def ambiguous(path: Path) -> None:
    """Two records of one name."""
    with zipfile.ZipFile(io.BytesIO(script())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
            if name.endswith("data.pkl"):
                new.writestr(name, b"\x80\x02N.")


def files() -> Iterator[Bad]:
    for name, (write, harmless) in SCRIPTS.items():
        slow = any(word in name for word in ("400,000", "millions", "6 MB"))
        yield Bad(f"script, {name}", "model", write, (0, 3, 5) if harmless else (3, 5), slow)
    for name, write in EXPORTS.items():
        yield Bad(f"export, {name}", "model", write, (0, 3, 4, 5) if name.startswith("version") else (3, 4, 5))
    for kind, whole in (("script", script), ("export", export)):
        for share in (0.3, 0.9):
            yield Bad(f"{kind}, cut at {share:.0%}", "model", cut(whole, share))
    yield Bad("export that begins as a pickle", "model", polyglot)
    yield Bad("script, two records of one name", "model", ambiguous)
    yield Bad("model, eight bytes and a brace", "model", lambda path: path.write_bytes(struct.pack("<Q", 99) + b"{"))
    yield Bad("model, empty", "model", lambda path: path.write_bytes(b""))
    yield Bad("model, a pickle of nothing", "model", lambda path: path.write_bytes(b"\x80\x02."))


FILES = list(files())
