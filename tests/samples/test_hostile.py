"""Damaged and hostile inputs are refused: nothing runs, nothing explodes."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jaccli.errors import JaccliError, JaccliWarning, RefusedError, ResourceError
from jaccli.samples.load import load_samples
from jaccli.samples.spec import parse_input


class Bomb:
    """A pickle of this leaves a file behind when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def refused(path: Path, match: str, kind: type[JaccliError] = RefusedError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_samples(parse_input(str(path)))
    message = str(caught.value)
    assert message.count("\n") <= 2
    assert "weights_only" not in message
    assert message.replace("\n", "").isprintable()


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "x"
    for data in (Bomb(trap), {"x": torch.zeros(2), "y": Bomb(trap)}):
        torch.save(data, path)
        refused(path, "could run code")
        torch.save(data, path, _use_new_zipfile_serialization=False)
        refused(path, "could run code")
        path.write_bytes(pickle.dumps(data))
        refused(path, "code|damaged")
    with open(path, "wb") as handle:
        np.save(handle, np.array([Bomb(trap)], dtype=object), allow_pickle=True)
    refused(path, "Python objects")
    with open(path, "wb") as handle:
        np.savez(handle, x=np.array([Bomb(trap)], dtype=object))
    refused(path, "Python objects")
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt", "pt-legacy", "png"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path) -> None:
    from tests.samples.test_load import image, save

    path = tmp_path / "x.png"
    if kind == "png":
        image(path, np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8))
    else:
        save(path, kind, torch.randn(6, 7))
    data = path.read_bytes()
    for size in (0, 1, 5, 9, 40, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:size])
        refused(path, ".")


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt", "pt-legacy"])
def test_damage_never_escapes_as_another_error(kind: str, tmp_path: Path) -> None:
    from tests.samples.test_load import save

    data = save(tmp_path / "x", kind).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for position in generator.integers(0, min(len(data), 600), 4):
            broken[position] = generator.integers(256)
        with contextlib.suppress(JaccliError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_samples(parse_input("-"), stdin=io.BytesIO(bytes(broken)))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b"\n  <!DOCTYPE html><html>", "HTML"),
        (b"<html><body>404", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\x89HDF\r\n\x1a\n....", "HDF5"),
        (b"\x1f\x8b\x08....", "gzip"),
        (b'{"a": 1}', "JSON"),
        (b"\x00\x01\x02\x03" * 10, "unknown kind"),
        (b"1,2\n" + b"3,4\n" * 2000 + b"\xff\xff,2\n", "not text throughout"),
    ],
)
def test_things_that_are_no_arrays(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    refused(tmp_path / "x.npy", match)


def test_values_that_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, match in [
        (np.zeros((2, 2), complex), "complex"),
        (np.array(["a", "b"]), "text"),
        (np.array([b"a"]), "text"),
        (np.array(["2020-01-01"], "M8[D]"), "dates"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")]), "records"),
        (np.zeros(2, "V2"), "bfloat16"),
        (np.zeros((0, 3)), "no samples"),
        (np.array(3.0), "single number"),
    ]:
        np.save(path, array)
        refused(path, match)
    torch.save(torch.zeros(2, dtype=torch.complex64), path)
    refused(path, "complex")
    for tensor, words in (
        (torch.eye(2).to_sparse(), r"sparse \(coo\)"),
        (torch.empty(3, device="meta"), "meta device"),
    ):
        torch.save(tensor, path)
        refused(path, words)
    torch.save({"a": 1}, path)
    refused(path, "no arrays")


def test_a_model_is_no_input(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    refused(tmp_path / "x.pt", "TorchScript model")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    refused(tmp_path / "x.zip", "without arrays")


def test_claims_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    torch.save(torch.zeros(1).expand(10**12), path)
    refused(path, "does not fit the data in the file")
    torch.save(torch.zeros(2).expand(5, 2), path)  # a small one is harmless
    assert load_samples(parse_input(str(path))).is_contiguous()

    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }\n"
    for shape in (b"1000000000000", b"-1", b"99999999999999999999999"):
        text = header % shape
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16))
        refused(path, "truncated|damaged")


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    torch.save(torch.zeros(1000), tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(path, "compressed")
    monkeypatch.setattr("jaccli.safety.memory.available_memory", lambda: 100_000)
    with open(path, "wb") as handle:
        np.savez_compressed(handle, x=np.zeros(100_000))
    assert path.stat().st_size < 2000
    refused(path, "781 KiB of memory", ResourceError)
    np.save(tmp_path / "y.npy", np.zeros(100_000))
    refused(tmp_path / "y.npy", "of memory", ResourceError)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_non_finite_values_are_loaded_and_reported(bad: float, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.zeros(shape, np.float32)
    array[2] = bad
    np.save(tmp_path / "x.npy", array)
    count = array[2].size
    with pytest.warns(JaccliWarning, match=rf"{count} non-finite values? \(first at sample 2\)"):
        assert load_samples(parse_input(str(tmp_path / "x.npy"))).shape == shape
