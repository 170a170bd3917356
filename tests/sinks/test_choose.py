"""Which format, and may the output be written: decided before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaccli.errors import UsageError
from jaccli.sinks.choose import check_output, choose_format, is_stream


@pytest.mark.parametrize(
    ("explicit", "out", "tty", "kind", "expected"),
    [
        (None, None, True, "numbers", "table"),
        (None, None, False, "numbers", "jsonl"),
        (None, None, True, "matrix", "table"),
        (None, "-", False, "matrix", "npy"),
        (None, "/dev/null", True, "matrix", "npy"),
        (None, "j.safetensors", True, "matrix", "safetensors"),
        (None, "j.PT", True, "matrix", "pt"),
        (None, "j.csv", False, "matrix", "csv"),
        (None, "b.md", False, "numbers", "markdown"),
        ("npz", "j.dat", True, "matrix", "npz"),
        ("pt", "j.PTH", True, "matrix", "pt"),
        ("jsonl", "j.ndjson", True, "matrix", "jsonl"),
        ("csv", "j.txt", True, "numbers", "csv"),
        ("json", "j.npy.bak", True, "matrix", "json"),
        ("csv", "/dev/stdout", False, "matrix", "csv"),
        ("json", "results", True, "numbers", "json"),
        ("json", None, True, "matrix", "json"),
        ("zarr", "j", False, "matrix", "zarr"),
        ("safetensors", None, False, "matrix", "safetensors"),
    ],
)
def test_format(explicit: str | None, out: str | None, tty: bool, kind: str, expected: str) -> None:
    assert choose_format(explicit, out, tty, kind) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("explicit", "out", "tty", "kind", "message"),
    [
        ("npy", None, True, "matrix", "never written to a terminal"),
        ("pt", "-", True, "matrix", "never written to a terminal"),
        ("zarr", None, False, "matrix", "is a folder"),
        ("zarr", "/dev/null", False, "matrix", "is a folder"),
        ("yaml", None, False, "numbers", "'yaml' is unknown"),
        ("npy", "x.npy", False, "numbers", "does not hold numbers"),
        ("markdown", None, False, "matrix", "does not hold matrices"),
        (None, "x.npz", False, "numbers", "does not hold numbers"),
        ("json", "x.npy", False, "matrix", r"'x.npy' is a name for npy, and --format is json\n.*\n.*'x.json'"),
        ("json", "x.npy", False, "numbers", "is a name for npy"),
        ("jsonl", "x.json", False, "numbers", "is a name for json,"),
        ("json", "x.ndjson", True, "numbers", "is a name for jsonl"),
        ("table", "x.md", True, "numbers", r"is a name for markdown, .*\n.*\n.*'x.txt'"),
        ("csv", "x.md", True, "numbers", "is a name for markdown"),
        ("safetensors", "x.NPZ", True, "matrix", "is a name for npz"),
        ("npy", "x.zarr", True, "matrix", "is a name for zarr"),
        ("zarr", "x.npy", True, "matrix", "is a name for npy"),
        (None, "x.mat", False, "matrix", r"'.mat' names no format\n.*\.npy, .*\.safetensors"),
        (None, "results", False, "numbers", "no extension"),
    ],
)
def test_refusals(explicit: str | None, out: str | None, tty: bool, kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_format(explicit, out, tty, kind)  # type: ignore[arg-type]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    there = tmp_path / "x.npy"
    there.touch()
    with pytest.raises(UsageError, match="--force"):
        check_output(str(there), force=False)
    check_output(str(there), force=True)
    check_output(str(tmp_path / "new.npy"), force=False)
    check_output(None, force=False)
    check_output("-", force=False)
    check_output("/dev/null", force=False)
    for force in (False, True):
        with pytest.raises(UsageError, match="no such folder"):
            check_output(str(tmp_path / "no" / "x.npy"), force)
        with pytest.raises(UsageError, match="is a folder"):
            check_output(str(tmp_path), force)
    store = tmp_path / "j.zarr"
    store.mkdir()
    (store / "zarr.json").touch()
    check_output(str(store), force=True)
    with pytest.raises(UsageError, match="--force"):
        check_output(str(store), force=False)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UsageError, match="no permission"):
            check_output(str(tmp_path / "y.npy"), force=False)


def test_a_fifo_is_a_stream(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert is_stream(str(tmp_path / "fifo"))
    assert not is_stream(str(tmp_path / "none"))
    assert not is_stream(str(tmp_path))
