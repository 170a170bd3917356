"""Nesting that overflows the stack of C code is refused before any of that code sees it."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from jaccli.errors import RefusedError
from jaccli.models.exported.load import load_exported
from jaccli.models.torchscript.load import load_torchscript
from jaccli.models.torchscript.memory_limit import limited_memory
from jaccli.models.torchscript.source_nesting import too_nested
from jaccli.models.weights.contents import read_contents
from jaccli.pickles.nesting import check_depth
from jaccli.safety.reading import DamagedError
from tests.models.exported.test_archive import Made, meta, node, tensor
from tests.models.torchscript.test_security import Clean, rewritten, saved

DEEP = b")" + b"\x85" * 100_000  # a tuple in a tuple in a tuple …
N = 20_000


def test_depth_of_objects() -> None:
    flat: list[object] = [[] for _ in range(5000)]
    check_depth(flat)
    loop: list[object] = []
    loop.append(loop)
    check_depth(loop)
    shared: object = None
    for _ in range(1000):  # few objects, and more ways through them than can be gone
        shared = (shared, shared)
    check_depth(shared)
    for wrap in (lambda inner: (inner,), lambda inner: [inner], lambda inner: {"key": inner}):
        deep: object = None
        for _ in range(3000):
            deep = wrap(deep)
        with pytest.raises(DamagedError, match="deep"):
            check_depth([deep])


@pytest.mark.parametrize(
    "body",
    [
        b"}" + DEEP + b"K\x01s",
        b"\x8f(" + DEEP + b"\x90",
        b"(" + DEEP + b"\x91",
        b"(" + DEEP + b"K\x01d",
        b"\x96" + struct.pack("<Q", 1 << 45) + b"x",
    ],
    ids=["dict", "set", "frozenset", "DICT", "bytearray"],
)
def test_checkpoints_with_such_keys_are_refused(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"\x80\x05" + body + b".")
    with pytest.raises(RefusedError):
        read_contents(tmp_path / "m.pt", "checkpoint").select(None, None)


@pytest.mark.parametrize(
    "record",
    [
        b"\x80\x02" + DEEP + b".",
        b"\x80\x02(]ctorch.jit._pickle\nrestore_type_tag\n(]X" + struct.pack("<I", 5 * N) + b"List[" * N + b"tRt.",
    ],
)
@pytest.mark.parametrize("where", ["constants.pkl", "debug_pkl"])
def test_torchscript_pickles(record: bytes, where: str, tmp_path: Path) -> None:
    path = rewritten(saved(Clean(), tmp_path / "m.pt"), lambda n, d: record if n.endswith(where) else d)
    with pytest.raises(RefusedError):
        load_torchscript(path, trust=False)


@pytest.mark.parametrize(
    "line",
    [
        "(" * N + "1" + ")" * N, "-" * N + "1", "1" + "+1" * N, "not " * N + "True", "1 if True else " * N + "1",
        "x" + "[0]" * N, "x" + ".T" * N, "annotate(" + "List[" * N + "int" + "]" * N + ", [])",
    ],
    ids=["parentheses", "minus", "plus", "not", "ternary", "subscript", "attribute", "type"],
)  # fmt: skip
def test_torchscript_source(line: str, tmp_path: Path) -> None:
    assert too_nested(f"  y = {line}\n")

    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"    fc = self.fc", b"    y = " + line.encode() + b"\n    fc = self.fc")

    with pytest.raises(RefusedError, match="nested absurdly deep"):
        load_torchscript(rewritten(saved(Clean(), tmp_path / "m.pt"), change), trust=False)


def test_blocks_and_flat_code() -> None:
    assert too_nested("if a:\n  y = 1\n" + "elif b:\n  y = 1\n" * 2000)
    assert too_nested(" " * 2000 + "y = 1\n")
    assert not too_nested("x = [" + "-1.5e-3, " * N + "1]\n")
    assert not too_nested("".join(f"y{i} = torch.add(x, (1 + 2) * 3)\n" for i in range(N)))
    assert not too_nested('raise("' + "(" * N + '")\n# ' + "(" * N + "\n")


def test_exported_names_and_sizes(tmp_path: Path) -> None:
    made = Made()
    state = made.program["graph_module"]["signature"]["input_specs"][0]["parameter"]
    state["parameter_name"] = name = "a." * 5000 + "w"
    made.weights = {name: made.weights["fc.weight"]}
    with pytest.raises(RefusedError):
        load_exported(made.write(tmp_path / "deep.pt2"))
    for described in (meta([0, 2**70], [1, 1]), meta([1] * 100, [1] * 100), meta([0], [1], 2**70)):
        made = Made()
        made.weights["fc.weight"]["tensor_meta"] = described
        with pytest.raises(RefusedError):
            load_exported(made.write(tmp_path / "size.pt2"))
    made = Made()
    made.weights["fc.weight"]["path_name"] = "../../../../../../etc/passwd"
    with pytest.raises(RefusedError):
        load_exported(made.write(tmp_path / "path.pt2"))


def test_exported_kernels_check_their_arguments(tmp_path: Path) -> None:
    made = Made()
    given = [(name, tensor("w" if name != "input" else "x")) for name in ("input", "running_mean", "running_var")]
    numbers = [("momentum", {"as_float": 0.1}), ("eps", {"as_float": 1e-5})]
    none = [(name, {"as_none": True}) for name in ("weight", "bias")]
    wrong = node("torch.ops.aten._native_batch_norm_legit_no_training.default", [*given, *numbers, *none])
    made.graph["nodes"] = [wrong]
    model = load_exported(made.write(tmp_path / "m.pt2"))
    with pytest.raises(RefusedError, match="would crash"):
        model(torch.ones(3, 2))
    assert json.loads(zipfile.ZipFile(tmp_path / "m.pt2").read(_program(tmp_path / "m.pt2")))


def _program(path: Path) -> str:
    return next(name for name in zipfile.ZipFile(path).namelist() if "/models/" in name)


def test_loading_has_a_ration_of_memory() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(1000), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(1 << 33, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
