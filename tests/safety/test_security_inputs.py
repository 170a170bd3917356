"""Inputs and saved Jacobians from strangers: nothing runs, nothing else is read, every failure is an answer."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jaccli.errors import JaccliError, RefusedError, ResourceError
from jaccli.samples.load import load_samples
from jaccli.samples.spec import parse_input
from jaccli.sinks.read import read_jacobian

DEEP = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
ZARR = {
    "zarr_format": 2, "shape": [1, 2, 2], "chunks": [1, 2, 2], "dtype": "<f8", "compressor": None,
    "fill_value": 0, "order": "C", "filters": None,
}  # fmt: skip


def store(folder: Path, chunk: bytes = b"\0" * 32, **change: Any) -> str:
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps({**ZARR, **change}))
    (folder / "0.0.0").write_bytes(chunk)
    return str(folder)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"compressor": {"id": "pickle", "protocol": 5}},
        {"dtype": "|O", "filters": [{"id": "pickle"}]},
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
    ],
)
def test_zarr_codecs_that_unpickle_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = store(tmp_path / "z", pickle.dumps(Evil(mark)), **change)
    with pytest.raises(RefusedError, match=r"codec '(numcodecs\.)?pickle'"):
        read_jacobian(path)
    assert not mark.exists()


def test_zarr_sizes_are_checked_first(tmp_path: Path) -> None:
    for name in ("shape", "chunks"):
        with pytest.raises(ResourceError, match="memory"):
            read_jacobian(store(tmp_path / name, **{name: [1, 10**7, 10**7]}))


def test_zarr_stores_hold_plain_files_of_their_own(tmp_path: Path) -> None:
    path = store(tmp_path / "z")
    (tmp_path / "z" / "0.0.0").unlink()
    (tmp_path / "z" / "0.0.0").symlink_to("/etc/passwd")
    with pytest.raises(RefusedError, match="leads out"):
        read_jacobian(path)
    (tmp_path / "z" / "0.0.0").unlink()
    os.mkfifo(tmp_path / "z" / "0.0.0")
    with pytest.raises(RefusedError, match="no file"):
        read_jacobian(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_that_overflow_the_stack(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", DEEP)
    else:
        path.write_bytes(DEEP)
    with pytest.raises(RefusedError):
        load_samples(parse_input(str(path)))
    with pytest.raises(RefusedError):
        read_jacobian(str(path))


@pytest.mark.parametrize(
    "document",
    [
        '{"jacobian": [[1, ' + "9" * 4000 + "]]}",
        '{"jacobian": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"shape": ["\\u001b[31m"' + ", 1" * 5000 + '], "jacobian": [[1, 2], [3, 4]]}',
        '{"jacobian": {"a": 1}}',
    ],
)
def test_hostile_json_gives_a_short_answer(document: str, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(document)
    with pytest.raises(JaccliError) as caught:
        read_jacobian(str(tmp_path / "j.jsonl"))
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


def test_provenance_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text('{"provenance": 5, "jacobians": [{"jacobian": [[1.0]]}]}')
    (saved,) = read_jacobian(str(tmp_path / "j.json"))
    assert saved.array.item() == 1


@pytest.mark.parametrize("shape", ["(True,)", "(1.5,)", "(-1,)", "(1000000000000,)"])
def test_npy_headers_that_make_no_sense(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 4)
    with pytest.raises(RefusedError):
        load_samples(parse_input(str(path)))
