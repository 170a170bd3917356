"""Bounds that all readers keep, and rows that are read alone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jaccli.errors import InternalError, RefusedError, ResourceError, UnsupportedError, UsageError
from jaccli.safety import archives
from jaccli.safety.archives import open_archive
from jaccli.safety.budget import Budget, BudgetError
from jaccli.safety.documents import parse_json, plain_values
from jaccli.safety.memory import limited_memory, require_unpacked
from jaccli.safety.reading import DamagedError, reading
from jaccli.samples.load import load_samples
from jaccli.samples.spec import parse_input, parse_samples
from jaccli.sinks.read import read_jacobian
from jaccli.text.escape import nearest
from tests.corpus.arrays import unfolding

X = np.arange(60, dtype=np.float32).reshape(12, 5)


def npy(path: Path, array: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def npz(path: Path, array: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, x=array)


FORMS: dict[str, Callable[[Path], object]] = {
    "npy": lambda path: npy(path, X),
    "npy of Fortran": lambda path: npy(path, np.asfortranarray(X)),
    "npy of images": lambda path: npy(path, X.reshape(12, 1, 5, 1)),
    "npy of images of Fortran": lambda path: npy(path, np.asfortranarray(X.reshape(12, 1, 5))),
    "npz": lambda path: npz(path, X),
    "npz of Fortran": lambda path: npz(path, np.asfortranarray(X)),
    "safetensors": lambda path: save_file({"x": torch.from_numpy(X.copy())}, path),
    "pt": lambda path: torch.save(torch.from_numpy(X.copy()), path),
    "pt of a view": lambda path: torch.save(torch.from_numpy(X.T.copy()).T, path),
    "old pt": lambda path: torch.save(torch.from_numpy(X.copy()), path, _use_new_zipfile_serialization=False),
    "csv": lambda path: np.savetxt(path, X, delimiter=","),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["0:2", "7,3,3,-1", "::5", "11"])
def test_rows_alone_are_those_of_the_whole(form: str, text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("jaccli.samples.arrays._BLOCK", 64)
    path = tmp_path / "x"
    FORMS[form](path)
    chosen = parse_samples(text)
    whole = load_samples(parse_input(str(path)))
    some = load_samples(parse_input(str(path)), rows=chosen.indices)
    assert torch.equal(some, whole[chosen.indices(12)])
    assert some.flatten(1).tolist() == X[chosen.indices(12)].tolist()
    with pytest.raises(UsageError, match="no sample 12"):
        load_samples(parse_input(str(path)), rows=parse_samples("12").indices)


def test_of_a_large_file_the_rows_wanted_are_read(tmp_path: Path) -> None:
    unfolding(tmp_path / "large.npz", 1 << 24)
    spec = parse_input(str(tmp_path / "large.npz"))
    with limited_memory(50_000_000):
        assert load_samples(spec, rows=parse_samples("0:2").indices).shape == (2, 3)
        with pytest.raises(ResourceError, match=r"unfolds to 192 MiB"):
            load_samples(spec)
        with pytest.raises(ResourceError, match="unfolds to"):
            load_samples(spec, rows=parse_samples("::2").indices)


def test_content_may_unfold_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaccli.safety.memory.available_memory", lambda: 1 << 40)
    require_unpacked(10**9, 10, "x")
    require_unpacked(10**10, 10**8, "x")
    with pytest.raises(RefusedError, match="200 times"):
        require_unpacked(10**10, 10**7, "x")
    with limited_memory(10**8):
        require_unpacked(10**8, 10, "x")
        require_unpacked(10**9, 10**9, "a file of that size")
        with pytest.raises(ResourceError, match="allowed"):
            require_unpacked(10**8 + 1, 10, "x")


def test_a_budget_grows_with_the_tensors() -> None:
    budget = Budget(1000)
    budget.spend(2_000_000)
    with pytest.raises(BudgetError, match="operations for 0 tensors"):
        budget.spend(1)
    budget = Budget(1000, storages={str(i) for i in range(10_000)})
    budget.spend(3_000_000)
    with limited_memory(10_000_000), pytest.raises(BudgetError):
        Budget(1000).spend(300_000)
    with pytest.raises(BudgetError, match="more than the file holds"):
        Budget(1000).copy(2_000_000)


def test_directories_are_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for number in range(300):
            archive.writestr(f"{number}", b"")
    with open_archive(held, "x") as archive:
        assert len(archive.namelist()) == 300
    monkeypatch.setattr(archives, "_MOST_ENTRIES", 299)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # it is not asked
    with pytest.raises(RefusedError, match="300 entries"), open_archive(held, "x"):
        pass


@pytest.mark.parametrize(
    ("error", "kind", "match"),
    [
        (ValueError("x"), RefusedError, r"'f' is damaged: it cannot be read \(ValueError\)"),
        (RecursionError(), RefusedError, "RecursionError"),
        (DamagedError("cut"), RefusedError, "'f' is damaged: cut"),
        (MemoryError(), ResourceError, "does not fit into memory"),
        (RuntimeError("DefaultCPUAllocator: no"), ResourceError, "does not fit into memory"),
        (RefusedError("no tensors"), RefusedError, "'f': no tensors"),
        (UnsupportedError("an operator"), UnsupportedError, "'f': an operator"),
        (RefusedError("'f' is empty"), RefusedError, "^'f' is empty"),
        (UsageError("a flag"), UsageError, "^a flag"),
        (InternalError("a bug"), InternalError, "^a bug"),
    ],
    ids=repr,
)
def test_what_a_reader_raises_is_the_files_fault(error: Exception, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught, reading("'f'"):
        raise error
    assert caught.value is error or caught.value.__cause__ is error


def test_documents() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}
    with pytest.raises(RefusedError, match="nested too deep"):
        parse_json(b"[" * 100_000 + b"]" * 100_000, "x")
    with limited_memory(20_000_000), pytest.raises(ResourceError):
        parse_json(b"[" + b"[]," * 1_000_000 + b"[]]", "x")
    assert plain_values({"a": 1, "b": [1], "c": None, 3: "x"}) == {"a": "1", "c": "None", "3": "x"}
    assert plain_values([1]) == {}


def test_memory_is_not_asked_for_at_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("jaccli.safety.memory.available_memory", lambda: asked.append(1))
    (tmp_path / "x.csv").write_text("1,2,3\n" * 1000)
    assert load_samples(parse_input(str(tmp_path / "x.csv"))).shape == (1000, 3)
    line = '{"sample": 0, "source": "a", "target": "b", "jacobian": [[1.0]]}\n'
    (tmp_path / "J.jsonl").write_text(line * 1000)
    assert read_jacobian(str(tmp_path / "J.jsonl"))[0].array.shape == (1000, 1, 1)
    assert len(asked) < 10


def test_near_names_are_looked_for_among_some() -> None:
    names = [f"layers.{i}.weight" for i in range(50_000)]
    assert nearest("layers.7.weigth", names)
    assert nearest("fc1.bias", [*names, "fc.bias"]) == ["fc.bias"]
    assert nearest("x" * 10**6, names) == []
