"""Jacobians written in every format come back as they were."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor

from jaccli.errors import InternalError, JaccliNote, JaccliWarning, RefusedError, ResourceError, UsageError
from jaccli.sinks.choose import MATRIX, Format
from jaccli.sinks.matrix import PairMeta
from jaccli.sinks.open_sink import matrix_sink
from jaccli.sinks.read import SavedJacobian, read_jacobian
from jaccli.sinks.terminal import Style
from tests.sinks.test_atomic import full_disk

FORMATS: tuple[Format, ...] = ("npy", "npz", "safetensors", "pt", "zarr", "jsonl", "json", "csv")
DTYPES = ("float32", "float64", "float16", "bfloat16")
PROVENANCE = {"method": "reverse", "command": "jaccli compute 'é'"}


def pairs(dtype: str = "float32", several: bool = False) -> list[PairMeta]:
    first = PairMeta("blocks.0/fc[0]", "output", (5, 2, 3), dtype)
    return [first, PairMeta("input", 'he said "hi", ok', (5, 4, 1), dtype)] if several else [first]


def values(pair: PairMeta, seed: int = 0) -> Tensor:
    return torch.randn(pair.shape, generator=torch.Generator().manual_seed(seed)).to(pair.torch_dtype)


def save(chosen: Format, out: str | None, metas: list[PairMeta], stdout: Any = None, **options: Any) -> None:
    with matrix_sink(chosen, out, stdout=stdout, **options) as sink:
        sink.open(metas)
        for start in (0, 2, 4):
            for pair in metas:
                sink.write(pair.key, start, values(pair)[start : start + 2])
        sink.close(PROVENANCE)


def assert_same(found: list[SavedJacobian], metas: list[PairMeta], named: bool) -> None:
    assert len(found) == len(metas)
    for saved, pair in zip(found, metas, strict=True):
        assert (saved.source, saved.target) == ((pair.source, pair.target) if named else ("?", "?"))
        assert torch.equal(saved.array.double(), values(pair).double())


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.filterwarnings("ignore::jaccli.errors.JaccliNote")
def test_round_trip(chosen: Format, dtype: str, several: bool, tmp_path: Path) -> None:
    metas, out = pairs(dtype, several), str(tmp_path / "j.dat")
    if chosen == "npy" and several:
        with pytest.raises(UsageError, match="npz, safetensors"):
            save(chosen, out, metas)
        assert os.listdir(tmp_path) == []
        return
    save(chosen, out, metas)
    assert os.listdir(tmp_path) == ["j.dat"]
    found = read_jacobian(out)
    assert_same(found, metas, named=chosen != "npy")
    lossless = dtype if dtype != "bfloat16" or chosen in ("safetensors", "pt", "jsonl", "json") else "float32"
    assert str(found[0].array.dtype) == f"torch.{'float64' if chosen == 'csv' else lossless}"
    if chosen in ("npz", "safetensors", "pt", "zarr", "json"):
        assert dict(found[0].provenance).items() >= PROVENANCE.items()


@pytest.mark.parametrize("chosen", [name for name in FORMATS if name != "zarr"])
def test_through_a_pipe(chosen: Format) -> None:
    read_end, write_end = os.pipe()
    received: list[bytes] = []
    with os.fdopen(read_end, "rb") as reader:
        collector = threading.Thread(target=lambda: received.append(reader.read()))
        collector.start()
        with os.fdopen(write_end, "wb") as writer:
            save(chosen, "-", pairs(), writer)
            assert not writer.closed
        collector.join()
    assert_same(read_jacobian("-", io.BytesIO(received[0])), pairs(), named=chosen != "npy")


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    """Each format with its own library and the keys of the interface."""
    one, two = pairs(), pairs(several=True)
    array = values(one[0]).numpy()
    names = [pair.key for pair in two]
    path = tmp_path / "x"
    save("npy", str(path), one)
    assert np.array_equal(np.load(path), array)
    save("npz", str(path), one, force=True)
    with np.load(path) as npz:
        assert np.array_equal(npz["jacobian"], array)
        assert json.loads(str(npz["provenance"]))["method"] == "reverse"
    save("npz", str(path), two, force=True)
    with np.load(path) as npz:
        assert set(npz) == {*names, "provenance"}
    save("safetensors", str(path), one, force=True)
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata()["source"] == one[0].source
        assert np.array_equal(opened.get_tensor("jacobian"), array)
    save("safetensors", str(path), two, force=True)
    with safetensors.safe_open(path, "np") as opened:
        assert set(opened.keys()) == set(names)
    save("pt", str(path), one, force=True)
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded["jacobian"], values(one[0]))
    assert loaded["provenance"]["method"] == "reverse"
    save("jsonl", str(path), one, force=True)
    line = json.loads(path.read_text().splitlines()[3])
    assert {name: line[name] for name in ("sample", "source", "target", "shape")} == {
        "sample": 3,
        "source": one[0].source,
        "target": "output",
        "shape": [2, 3],
    }
    assert line["jacobian"] == array[3].tolist()
    save("csv", str(path), two, force=True)
    rows = list(csv.reader(io.StringIO(path.read_text())))
    assert rows[0] == ["sample", "source", "target", "row", "v0", "v1", "v2", "method"]
    assert rows[2][:4] == ["0", one[0].source, "output", "1"]
    assert [float(value) for value in rows[2][4:-1]] == array[0, 1].tolist()


def test_npy_is_streamed_block_by_block() -> None:
    out = io.BytesIO()
    with matrix_sink("npy", None, stdout=out) as sink:
        sink.open(pairs())
        assert out.getvalue() == b""  # a computation that fails now leaves no half a file in a pipe
        sink.write(pairs()[0].key, 0, values(pairs()[0])[:1])
        first = len(out.getvalue())
        assert first % 64 == 24  # a header, and one sample
        sink.write(pairs()[0].key, 1, values(pairs()[0])[1:])
        assert len(out.getvalue()) == first + 24 * (len(values(pairs()[0])) - 1)
        sink.close({})


@pytest.mark.parametrize("chosen", [name for name in MATRIX if name != "zarr"])
def test_a_pipe_gets_nothing_before_the_first_block(chosen: Format) -> None:
    out = io.BytesIO()
    with contextlib.suppress(KeyError), matrix_sink(chosen, None, stdout=out) as sink:
        sink.open(pairs())
        raise KeyError("the computation fails")
    assert out.getvalue() == b""


@pytest.mark.parametrize("chosen", ["npy", "npz", "zarr"])
def test_bfloat16_is_stored_as_float32_with_a_note(chosen: Format, tmp_path: Path) -> None:
    with pytest.warns(JaccliNote, match=f"{chosen} has no bfloat16") as caught:
        save(chosen, str(tmp_path / "x"), pairs("bfloat16", several=chosen != "npy"))
    assert len(caught) == 1


def test_non_finite_entries(tmp_path: Path) -> None:
    pair = PairMeta("a", "b", (1, 2, 2), "float32")
    matrix = torch.tensor([[[math.nan, math.inf], [-math.inf, 1.0]]])
    for chosen in FORMATS:
        out = str(tmp_path / chosen)
        with matrix_sink(chosen, out) as sink:
            sink.open([pair])
            sink.write(pair.key, 0, matrix)
            sink.close()
        with pytest.warns(JaccliWarning, match="3 non-finite"):
            (saved,) = read_jacobian(out)
        assert torch.equal(saved.array.nan_to_num(nan=5), matrix.to(saved.array.dtype).nan_to_num(nan=5))
    line = json.loads((tmp_path / "jsonl").read_text(), parse_constant=lambda token: 1 / 0)
    assert line["jacobian"] == [["nan", "inf"], ["-inf", 1.0]]


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("fault", [KeyboardInterrupt, "unfinished", "incomplete"])
def test_nothing_is_left_of_unfinished_work(chosen: Format, fault: Any, tmp_path: Path) -> None:
    out = tmp_path / "j.dat"

    def work() -> None:
        with matrix_sink(chosen, str(out)) as sink:
            sink.open(pairs())
            sink.write(pairs()[0].key, 0, values(pairs()[0])[:2])
            if fault is KeyboardInterrupt:
                raise KeyboardInterrupt
            if fault == "incomplete":
                sink.close()

    if fault == "unfinished":
        work()
    else:
        with pytest.raises(KeyboardInterrupt if fault is KeyboardInterrupt else InternalError):
            work()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("chosen", [name for name in FORMATS if name != "zarr"])
def test_full_disk_keeps_the_old_file(chosen: Format, tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.write_bytes(b"old")
    pair = PairMeta("a", "b", (5, 64, 64), "float32")
    with full_disk(20_000), pytest.raises(ResourceError, match=r"too large|No space"):
        save(chosen, str(out), [pair], force=True)
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("chosen", [name for name in FORMATS if name != "zarr"])
def test_a_reader_that_leaves(chosen: Format) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = os.fdopen(write_end, "wb")
    with pytest.raises(BrokenPipeError):
        save(chosen, None, pairs(), writer)
    with pytest.raises(BrokenPipeError):
        writer.close()


def test_limits_are_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = PairMeta("a", "b", (1000, 10**6, 10**6), "float32")
    with pytest.raises(ResourceError, match="of disk"), matrix_sink("npy", str(tmp_path / "x")) as sink:
        sink.open([huge])
    with pytest.raises(ResourceError, match="use npy"), matrix_sink("npz", stdout=io.BytesIO()) as sink:
        sink.open([huge])
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="exists"), matrix_sink("npy", str(tmp_path / "x")) as sink:
        sink.open(pairs())
    with pytest.raises(UsageError, match="folder"), matrix_sink("zarr", None) as sink:
        sink.open(pairs())
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(UsageError, match=r"jaccli\[zarr\]"), matrix_sink("zarr", str(tmp_path / "z")) as sink:
        sink.open(pairs())


def test_blocks_out_of_order_are_a_bug(tmp_path: Path) -> None:
    pair = pairs()[0]
    for start, block in [(1, values(pair)), (0, values(pair)[:, :1]), (0, torch.zeros(6, 2, 3))]:
        with matrix_sink("npy", str(tmp_path / "x")) as sink:
            sink.open([pair])
            with pytest.raises(InternalError):
                sink.write(pair.key, start, block)


def test_table() -> None:
    out = io.BytesIO()
    save("table", None, pairs(), out, style=Style(80, 24))
    text = out.getvalue().decode()
    assert "J of blocks.0/fc[0] -> output, sample 0, 2 x 3, float32\n" in text
    assert f"{values(pairs()[0])[0, 0, 0].item():.5g}" in text
    assert "sample 3" in text
    assert "sample 4" not in text
    assert "\n1 more sample: --samples picks" in text


def test_sample_numbers_of_a_selection() -> None:
    out = io.BytesIO()
    pair = PairMeta("a", "b", (2, 1, 1), "float32")
    with matrix_sink("jsonl", None, stdout=out) as sink:
        sink.open([pair], samples=[3, 5])
        sink.write(pair.key, 0, torch.ones(2, 1, 1))
        sink.close()
    assert [json.loads(line)["sample"] for line in out.getvalue().splitlines()] == [3, 5]


def test_plain_arrays_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    np.savetxt(path, np.eye(3) * 2)
    assert torch.equal(read_jacobian(str(path))[0].array, torch.eye(3).double()[None] * 2)
    with open(path, "wb") as handle:
        np.save(handle, np.eye(3, dtype=np.int32))
    assert torch.equal(read_jacobian(str(path))[0].array, torch.eye(3).double()[None])
    torch.save({"J1": torch.eye(2), "J2": torch.eye(3)}, path)
    with pytest.raises(UsageError, match="'J1', 'J2'"):
        read_jacobian(str(path))
    assert read_jacobian(f"{path}[J2]")[0].array.shape == (1, 3, 3)
    path.write_text('{"jacobian": [[1, 2]]}')
    assert read_jacobian(str(path))[0].array.tolist() == [[[1, 2]]]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b'{"sample": 0, "jacobian": [[1, 2], [3]]}', "not a matrix"),
        (b'{"jacobian": [[1, null]]}', "not a matrix"),
        (b'{"jacobian": [[1, "x"]]}', "not a matrix"),
        (b'{"jacobian": [1, 2]}', "1 dimensions"),
        (b'{"jacobian": [[1, 2]], "shape": [2, 2]}', "is said to have"),
        (b'{"jacobian": [[1, 2]]}\n{"jacobian": [[1', "line 2: not a JSON object, or cut short"),
        (b'{"frobenius": 1}', "no field 'jacobian'"),
        (b'{"jacobians": []}', "no Jacobian"),
        (b"sample,source,target,row,v0\n0,a,b,0,1\n0,a,b,2,1\n", "line 3"),
        (b"sample,source,target,row,v0\n0,a,b,0,x\n", "line 2"),
        (b"sample,source,target,row,v0\n", "no rows"),
        (b'{"jacobian": ' + b"[" * 100_000, "JSON"),
        (b"<html>", "HTML"),
        (b"", "empty"),
    ],
)
def test_what_is_no_jacobian(data: bytes, match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        read_jacobian("-", io.BytesIO(data))


def test_arrays_that_are_no_jacobian(tmp_path: Path) -> None:
    for array in (np.zeros(3), np.zeros((1, 2, 3, 4)), np.zeros((0, 2, 2)), np.zeros((2, 2), bool)):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(RefusedError, match="no Jacobian"):
            read_jacobian(str(tmp_path / "x.npy"))
    with pytest.raises(RefusedError, match="no zarr store"):
        read_jacobian(str(tmp_path))
    with pytest.raises(RefusedError, match="no such"):
        read_jacobian(str(tmp_path / "none.npy"))
    with pytest.raises(UsageError, match="no saved Jacobian"):
        read_jacobian("random:3x3")
