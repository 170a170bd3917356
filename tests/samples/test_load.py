"""Every form of INPUT holds what was put into it."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from jaccli.errors import JaccliNote, JaccliWarning, RefusedError, ResourceError, UsageError
from jaccli.samples.load import load_argument, load_samples
from jaccli.samples.spec import parse_input, parse_model_arg

VALUES = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7


def load(text: object, stdin: Any = None) -> Tensor:
    return load_samples(parse_input(str(text)), stdin=stdin)


def save(path: Path, kind: str, values: Tensor = VALUES) -> Path:
    match kind:
        case "npy":
            with open(path, "wb") as handle:
                np.save(handle, values.numpy())
        case "npy-2" | "npy-3":
            with open(path, "wb") as handle:
                np.lib.format.write_array(handle, values.numpy(), (int(kind[-1]), 0))
        case "npz":
            with open(path, "wb") as handle:
                np.savez(handle, x=values.numpy())
        case "npz-compressed":
            with open(path, "wb") as handle:
                np.savez_compressed(handle, x=values.numpy())
        case "safetensors":
            safetensors.torch.save_file({"x": values}, path)
        case "pt":
            torch.save(values, path)
        case "pt-dict":
            torch.save({"x": values, "note": "text"}, path)
        case "pt-list":
            torch.save([values, 3], path)
        case "pt-legacy":
            torch.save(values, path, _use_new_zipfile_serialization=False)
    return path


KINDS = ["npy", "npy-2", "npy-3", "npz", "npz-compressed", "safetensors", "pt", "pt-dict", "pt-list", "pt-legacy"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["file", "stdin", "pipe"])
def test_content_and_not_the_name_tells_the_format(kind: str, how: str, tmp_path: Path) -> None:
    path = save(tmp_path / "data.csv", kind)
    if how == "stdin":
        found = load("-", io.BytesIO(path.read_bytes()))
    elif how == "pipe":
        os.mkfifo(tmp_path / "fifo")
        writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(path.read_bytes(),))
        writer.start()
        found = load(tmp_path / "fifo")
        writer.join()
    else:
        found = load(path)
        with open(path, "r+b") as handle:  # what was loaded is no view of the file
            handle.write(bytes(path.stat().st_size))
    assert found.dtype == torch.float32
    assert torch.equal(found, VALUES)
    found += 1  # in memory of its own, and writable


DTYPES = [torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt"])
def test_dtypes_stay(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[1, 0], [3, 4]]).to(dtype)
    found = load(save(tmp_path / "x", kind, values))
    assert found.dtype == dtype
    assert torch.equal(found, values)


def test_numpy_forms_that_torch_lacks(tmp_path: Path) -> None:
    for array in (
        np.array([[1.5, 2]], dtype=">f4"),
        np.array([[1, 2]], dtype=np.uint32),
        np.array([[1.5, 2]], dtype=np.longdouble),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0)[::-1].reshape(2, 3),
    ):
        np.save(tmp_path / "x.npy", array)
        assert load(tmp_path / "x.npy").tolist() == array.tolist()
    np.save(tmp_path / "x.npy", np.array([2**63], dtype=np.uint64))
    with pytest.raises(RefusedError, match="int64"):
        load(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_keys(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    arrays = {"first": VALUES, "se\x1b[2Jcond": VALUES + 1}
    if kind == "npz":
        with open(path, "wb") as handle:
            np.savez(handle, **{key: value.numpy() for key, value in arrays.items()})
    elif kind == "safetensors":
        safetensors.torch.save_file(arrays, path)
    else:
        torch.save(arrays, path)
    assert torch.equal(load(f"{path}[first]"), VALUES)
    for text in (str(path), f"{path}[third]"):
        with pytest.raises(UsageError, match="'first'") as caught:
            load(text)
        assert r"'se\x1b[2Jcond'" in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_key_of_a_file_without_names(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no arrays with names"):
        load(f"{save(tmp_path / 'x.npy', 'npy')}[k]")


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3.5\n-4,5e-1,6\n",
        "1\t2\t3.5\r\n-4\t.5\t6\r\n",
        "1;2;3.5\n\n-4;0.5;6",
        "# made by hand\n1 2  3.5\n-4 0.5 6\n",
        '"a","b","c, d"\n1,"2",3.5\n-4,0.5,6\n',
        "\ufeffa,b,c\n1, 2, 3.5\n-4, 0.5, 6\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    found = load(tmp_path / "x.csv")
    assert found.dtype == torch.float64
    assert found.tolist() == [[1, 2, 3.5], [-4, 0.5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3\n", "line 2: 1 columns"),
        ("# c\n\n1,2\n3,x\x1b[31m\n", r"line 4, column 2: 'x\\x1b\[31m' is not a number"),
        ("1,2\n3,\n", "line 2, column 2: ''"),
        ("1,2\n3,1_0\n", "line 2, column 2: '1_0'"),
        ("a,b\n", "no rows"),
        (",a,b\n0,1,2\n", "index"),
        ("1,a\n2,3\n", "line 1, column 2"),
        ("1,2\n" * 3000 + "3\n", "line 3001"),
    ],
)
def test_bad_tables_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(RefusedError, match=message):
        load(tmp_path / "x.csv")


def test_a_header_that_looks_like_numbers_is_doubtful() -> None:
    with pytest.warns(JaccliWarning, match="header"):
        assert load("-", io.BytesIO(b"0,1,2\n5,5,5\n")).shape == (2, 3)


def test_random_is_the_same_everywhere() -> None:
    # The numbers are part of the interface: a report made elsewhere must be repeatable.
    found = load("random:2x2,n=2,seed=1")
    assert found.dtype == torch.float32
    expected = torch.randn((2, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(found, expected.float())
    state = torch.get_rng_state()
    uniform = load("random:1000,n=3,dist=uniform")
    assert torch.equal(torch.get_rng_state(), state)
    assert uniform.shape == (3, 1000)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.03
    assert not torch.equal(load("random:5,seed=1"), load("random:5,seed=2"))
    with pytest.raises(ResourceError, match="memory"):
        load("random:100000x100000x100")


def test_arguments(tmp_path: Path) -> None:
    path = save(tmp_path / "m", "npy")
    assert torch.equal(load_argument(parse_model_arg(f"mask=@{path}")[1]), VALUES)
    assert load_argument(parse_model_arg("sr=16000")[1]) == 16000
    assert load_argument([1, 2]) == [1, 2]


def image(path: Path, pixels: Any, mode: str | None = None) -> None:
    from PIL import Image

    picture = Image.fromarray(np.asarray(pixels))
    (picture.convert(mode) if mode else picture).save(path)


def test_images(tmp_path: Path) -> None:
    gray = np.array([[0, 51, 255], [102, 0, 0]], dtype=np.uint8)
    image(tmp_path / "b.png", gray)
    image(tmp_path / "a.bmp", 255 - gray)
    (tmp_path / ".hidden").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(tmp_path)
    assert found.shape == (2, 1, 2, 3)
    assert found.dtype == torch.float32
    assert torch.equal(found[1, 0], torch.from_numpy(gray) / 255)
    assert torch.equal(found[0, 0], torch.from_numpy(255 - gray) / 255)

    color = np.stack([gray, gray * 0, 255 - gray], axis=-1)
    image(tmp_path / "c.png", color)
    image(tmp_path / "d.png", color, "RGBA")
    image(tmp_path / "e.png", (gray.astype(np.uint16) * 257))
    (tmp_path / "readme.txt").write_text("x")
    with pytest.warns(JaccliNote, match="readme.txt"):
        found = load(tmp_path)
    assert found.shape == (5, 3, 2, 3)
    assert torch.equal(found[2].permute(1, 2, 0), torch.from_numpy(color) / 255)
    assert torch.equal(found[3], found[2])
    assert torch.allclose(found[4, 1], torch.from_numpy(gray) / 255)
    assert torch.equal(load(tmp_path / "c.png"), found[2:3])


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="holds no images"):
        load(tmp_path)
    image(tmp_path / "a.png", np.zeros((2, 3), np.uint8))
    image(tmp_path / "b.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(RefusedError, match=r"'a.png' is 3x2 and 'b.png' is 3x3"):
        load(tmp_path)
    image(tmp_path / "b.png", np.random.default_rng(0).integers(0, 255, (2, 3), np.uint8))
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[:50])
    with pytest.raises(RefusedError, match=r"b.png' is a damaged"):
        load(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UsageError, match=r"jaccli\[images\]"):
        load(tmp_path)


def test_postscript_is_no_image(tmp_path: Path) -> None:
    # Pillow would start a program for it.
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n")
    with pytest.raises(RefusedError, match="holds no images"):
        load(tmp_path)


def test_standard_input_that_is_a_terminal() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(UsageError, match="terminal"):
        load("-", Terminal())
