"""``--sparse``: the entries that are not zero, saved, and read back as they were."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save_file
from torch import Tensor, nn

import jaccli
from jaccli.cli import boundary
from jaccli.errors import JaccliError, RefusedError, ResourceError
from jaccli.sinks.choose import MATRIX, SPARSE, Format
from jaccli.sinks.matrix import PairMeta
from jaccli.sinks.open_sink import matrix_sink
from jaccli.sinks.read import read_jacobian
from jaccli.sinks.sparse import SparseSamples, SparseSink

SHAPE = (3, 4, 5)


def matrices(dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples whose nonzeros are at different places."""
    j = torch.zeros(SHAPE, dtype=dtype)
    j[0, 1, 2], j[0, 3, 4], j[1, 1, 2], j[2, 0, 0], j[2, 3, 4] = 1.5, -2, 3, float("nan"), float("inf")
    return j


def saved(
    chosen: Format, path: Path | None, j: Tensor, pairs: tuple[str, ...] = ("fc1",), step: int = 1, **how: Any
) -> None:
    with matrix_sink(chosen, str(path) if path else None, sparse=True, **how) as sink:
        dtype = str(j.dtype).removeprefix("torch.")
        sink.open([PairMeta(source, "output", tuple(j.shape), dtype) for source in pairs])
        for start in range(0, len(j), step):
            for number, source in enumerate(pairs):
                sink.write(f"{source}->output", start, j[start : start + step] * (number + 1))
        sink.close({"command": "as it was"})
        assert isinstance(sink, SparseSink)
        assert set(sink.entries) == {f"{source}->output" for source in pairs}


def parts(chosen: Format, data: bytes) -> dict[str, Any]:
    return dict(np.load(io.BytesIO(data))) if chosen == "npz" else load_safetensors(data)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("chosen", SPARSE)
def test_the_parts_are_what_they_are_said_to_be(chosen: Format, step: int) -> None:
    out = io.BytesIO()
    saved(chosen, None, matrices(), step=step, stdout=out)
    found = parts(chosen, out.getvalue())
    assert {"data", "indices", "shape"} <= set(found)
    assert found["shape"].dtype == found["indices"].dtype == np.int64
    assert found["shape"].tolist() == list(SHAPE)
    assert found["indices"].T.tolist() == [[0, 0], [1, 2], [3, 4]]
    expected = [[0, 1.5, -2], [0, 3, 0], [np.nan, 0, np.inf]]
    np.testing.assert_array_equal(found["data"], expected)
    assert found["data"].dtype == np.float64


@pytest.mark.parametrize("pairs", [("fc1",), ("fc1", "blocks.data")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chosen", SPARSE)
def test_round_trip(chosen: Format, dtype: torch.dtype, pairs: tuple[str, ...], tmp_path: Path) -> None:
    path, j = tmp_path / f"J.{chosen}", matrices(dtype)
    saved(chosen, path, j, pairs)
    found = read_jacobian(str(path))
    assert [(one.source, one.target) for one in found] == [(source, "output") for source in pairs]
    stored = torch.float32 if (chosen, dtype) == ("npz", torch.bfloat16) else dtype
    for number, one in enumerate(found):
        assert isinstance(one.array, SparseSamples)
        assert one.array.shape == SHAPE
        assert one.array.dtype == stored
        assert one.provenance["command"] == "as it was"
        assert one.provenance["layout"] == "sparse"
        for mine, theirs in zip(one.array, j * (number + 1), strict=True):
            assert torch.equal(mine.nan_to_num(7.0), theirs.to(stored).nan_to_num(7.0))
    last = f"{path}[{pairs[-1]}->output]" if len(pairs) > 1 else str(path)
    assert [one.source for one in read_jacobian(last)] == [pairs[-1]]


def test_samples_stay_sparse_until_they_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "J.npz"
    saved("npz", path, matrices())
    array = read_jacobian(str(path))[0].array
    some = array[[2, 0]]
    assert isinstance(some, SparseSamples)
    assert some.shape == (2, 4, 5)
    assert torch.equal(some[1], matrices()[0])
    assert len(list(some)) == 2


@pytest.mark.parametrize("chosen", SPARSE)
def test_nothing_but_zeros_and_one_by_one(chosen: Format, tmp_path: Path) -> None:
    for name, j in (("zeros", torch.zeros(2, 3, 4)), ("one", torch.ones(1, 1, 1)), ("full", torch.ones(2, 2, 3))):
        path = tmp_path / f"{name}.{chosen}"
        saved(chosen, path, j)
        (found,) = read_jacobian(str(path))
        assert torch.equal(torch.stack(list(found.array)), j)


def test_unfinished_work_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "J.npz"

    def broken() -> None:
        with matrix_sink("npz", str(path), sparse=True) as sink:
            sink.open([PairMeta("a", "b", SHAPE, "float64")])
            sink.write("a->b", 0, matrices()[:1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert not list(tmp_path.iterdir())


def changed(**new: Any) -> dict[str, Any]:
    good = {
        "data": np.ones((2, 3), "f4"),
        "indices": np.array([[0, 1, 1], [0, 0, 2]]),
        "shape": np.array([2, 2, 3]),
    }
    return good | {name: np.asarray(value) for name, value in new.items()}


WRONG: list[tuple[dict[str, Any], type[JaccliError]]] = [
    ({"shape": [2, 2]}, RefusedError),
    ({"shape": [2.0, 2.0, 3.0]}, RefusedError),
    ({"shape": [2, 2, 0]}, RefusedError),
    ({"shape": [-2, -2, 3]}, RefusedError),
    ({"shape": [2, 2**31, 2**31]}, RefusedError),
    ({"shape": [2, 2**20, 2**26]}, ResourceError),
    ({"shape": [3, 2, 3]}, RefusedError),
    ({"indices": [[0, 1], [0, 0]]}, RefusedError),
    ({"indices": [0, 1, 2]}, RefusedError),
    ({"indices": [[0, 1, 1]]}, RefusedError),
    ({"indices": [[0, 1, 1], [0, 0, 2], [0, 0, 0]]}, RefusedError),
    ({"indices": [[0, 1, 1], [0, 0, 3]]}, RefusedError),
    ({"indices": [[0, -1, 1], [0, 0, 2]]}, RefusedError),
    ({"indices": [[0, 1, 1], [0, 2, 2]]}, RefusedError),
    ({"indices": [[0.0, 1, 1], [0, 0, 2]]}, RefusedError),
    ({"data": np.ones((2, 2))}, RefusedError),
    ({"data": np.ones(3)}, RefusedError),
    ({"data": np.ones((2, 3), bool)}, RefusedError),
]


@pytest.mark.parametrize(("new", "error"), WRONG)
def test_files_that_hold_something_else_are_refused(
    new: dict[str, Any], error: type[JaccliError], tmp_path: Path
) -> None:
    np.savez(tmp_path / "J.npz", **changed(**new))
    save_file(changed(**new), tmp_path / "J.safetensors")
    for chosen in SPARSE:
        with pytest.raises(error) as caught:
            read_jacobian(str(tmp_path / f"J.{chosen}"))
        assert len(str(caught.value).splitlines()) <= 3


def test_files_of_others_are_read(tmp_path: Path) -> None:
    """Without metadata, entries in any order, whole numbers."""
    np.savez(tmp_path / "J.npz", **changed(data=[[1, 2, 3], [4, 5, 6]], indices=[[1, 0, 1], [2, 0, 0]]))
    (found,) = read_jacobian(str(tmp_path / "J.npz"))
    assert found.source == "?"
    assert torch.stack(list(found.array)).tolist() == [[[2, 0, 0], [3, 0, 1]], [[5, 0, 0], [6, 0, 4]]]


# ---- the command


Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)).eval()
    torch.jit.script(model).save("net.pt")
    np.save("x.npy", np.random.default_rng(0).normal(size=(3, 1, 6, 6)).astype("f4"))

    def run(*argv: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        threads = torch.get_num_threads()
        code = boundary.run([str(word) for word in argv])
        torch.set_num_threads(threads)
        captured = capfdbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return run


def truth() -> Tensor:
    return jaccli.jacobian(jaccli.load_model("net.pt"), torch.from_numpy(np.load("x.npy")), method="reverse")


@pytest.mark.parametrize("chosen", SPARSE)
def test_compute_and_read_back(cli: Run, chosen: str) -> None:
    command = ("compute", "net.pt", "-i", "x.npy", "--method", "reverse")
    code, _, said = cli(*command, "--sparse", "-o", f"J.{chosen}")
    assert code == 0, said
    true = truth()
    kept = int((true != 0).any(0).sum())
    assert 0 < kept < 36 * 36 // 2
    assert f"{kept} entries a sample" in said
    (found,) = read_jacobian(f"J.{chosen}")
    assert torch.equal(torch.stack(list(found.array)), true)
    assert found.provenance["method"] == "reverse"
    assert "--sparse" in found.provenance["command"]
    assert len(found.provenance["model_sha256"]) == 64
    assert cli(*command, "-o", "J.npy")[0] == 0
    for figures in (("show",), ("deviation", "--jacobian")):
        code, sparse, said = cli(*figures, f"J.{chosen}", "--samples", "0,2", "--format", "jsonl")
        assert code == 0, said
        dense = cli(*figures, "J.npy", "--samples", "0,2", "--format", "jsonl")[1]
        names = ("source", "target", "method")  # npy does not tell them
        for mine, theirs in zip(sparse.splitlines(), dense.splitlines(), strict=True):
            assert {k: v for k, v in json.loads(mine).items() if k not in names} == {
                k: v for k, v in json.loads(theirs).items() if k not in names
            }
    code, drawn, said = cli("show", f"J.{chosen}", "--format", "table")
    assert code == 0, said
    assert b"3 samples, each J 36 x 36, float32" in drawn


def test_several_pairs_through_a_pipe(cli: Run) -> None:
    command = ("compute", "net.pt", "-i", "x.npy", "--layer", "0", "--layer", "1", "--samples", "1:3")
    code, out, said = cli(*command, "--sparse", "--format", "safetensors")
    assert code == 0, said
    assert {f"{pair}->output.{part}" for pair in "01" for part in ("data", "indices", "shape")} == set(
        load_safetensors(out)
    )
    code, rows, said = cli("show", "-", "--format", "jsonl", stdin=out)
    assert code == 0, said
    found = [json.loads(line) for line in rows.splitlines()]
    assert [(row["source"], row["sample"]) for row in found] == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]


@pytest.mark.parametrize("chosen", [f for f in MATRIX if f not in SPARSE])
def test_other_formats_are_refused_before_any_work(cli: Run, chosen: str) -> None:
    assert chosen in get_args(Format)
    code, out, said = cli("compute", "net.pt", "-i", "x.npy", "--sparse", "-o", f"J.{chosen}", "--format", chosen)
    assert code == 2
    assert not out
    assert "npz" in said
    assert "safetensors" in said
    assert not Path(f"J.{chosen}").exists()
    if chosen == "npy":
        assert cli("compute", "net.pt", "-i", "x.npy", "--sparse")[0] == 2  # what a pipe would get
