"""Saved Jacobians as nobody saved them: text, zarr stores, sparse parts, provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.corpus.files import Bad, bytes_of

ZARR = {
    "zarr_format": 2, "shape": [1, 2, 2], "chunks": [1, 2, 2], "dtype": "<f8", "compressor": None,
    "fill_value": 0, "order": "C", "filters": None,
}  # fmt: skip
_DEEP = "[" * 10_000 + "]" * 10_000


def store(text: bytes | None = None, attributes: bytes | None = None, **change: Any) -> Callable[[Path], object]:
    """A zarr store of one chunk, its metadata changed."""

    def write(path: Path) -> None:
        path.mkdir()
        (path / ".zarray").write_bytes(json.dumps({**ZARR, **change}).encode() if text is None else text)
        (path / "0.0.0").write_bytes(bytes(32))
        if attributes is not None:
            (path / ".zattrs").write_bytes(attributes)

    return write


STORES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "shape of text": (store(shape="abc"), False),
    "shape of infinity": (store(b'{"zarr_format":2,"shape":[Infinity,2,2],"chunks":[1,2,2]}'), False),
    "shape of text numbers": (store(shape=["1", "2", "2"]), False),
    "shape of null": (store(shape=None), False),
    "shape of -1": (store(shape=[-1, 2, 2]), False),
    "shape of 2**62": (store(shape=[2**62, 2, 2]), False),
    "shape of 400 digits": (store(shape=[10**400, 2, 2]), False),
    "chunks of 2**62": (store(chunks=[2**62, 2, 2]), False),
    "chunks of zero": (store(chunks=[0, 0, 0]), False),
    "a hundred million chunks": (store(shape=[10**8, 1, 1], chunks=[1, 1, 1]), False),
    "fill of 8 GB": (store(shape=[1, 32768, 32768], chunks=[1, 32768, 32768]), False),
    "metadata that is a list": (store(b"[1, 2]"), False),
    "metadata that is a number": (store(b"7"), False),
    "metadata of deep JSON": (store(b'{"a":' + _DEEP.encode() + b"}"), False),
    "metadata that is no JSON": (store(b"{"), False),
    "dtype of objects": (store(dtype="|O"), False),
    "dtype of rubbish": (store(dtype=[1, 2]), False),
    "compressor that unpickles": (store(compressor={"id": "pickle"}), False),
    "compressor that is a number": (store(compressor=5), False),
    "attributes of another type": (store(attributes=b"[1]"), True),
    "index of text": (store(attributes=b'{"index": "x", "provenance": 5}'), True),
    "deep attributes": (store(attributes=b'{"provenance":' + _DEEP.encode() + b"}"), True),
}


def record(**change: Any) -> bytes:
    return json.dumps({"sample": 0, "source": "a", "target": "b", "jacobian": [[1.0]], **change}).encode() + b"\n"


TEXT: dict[str, tuple[bytes, bool]] = {
    "of a name": (record(jacobian="x"), False),
    "of null": (record(jacobian=[[None]]), False),
    "ragged": (record(jacobian=[[1, 2], [3]]), False),
    "of five dimensions": (record(jacobian=[[[[[1.0]]]]]), False),
    "of another shape": (record(shape=[2, 2]), False),
    "of a shape of text": (record(shape="2x2"), True),
    "of a dtype of infinity": (record().replace(b'"sample"', b'"dtype": Infinity, "sample"'), True),
    "of a sample of 5,000 digits": (record().replace(b'"sample": 0', b'"sample": ' + b"1" * 5000), False),
    "of a deep source": (record().replace(b'"a"', _DEEP.encode()), False),
    "without a matrix": (b'{"sample": 0}\n', False),
    "cut short": (record()[:-20], False),
    "of several shapes": (record() + record(sample=1, jacobian=[[1.0, 2.0]]), False),
    "with deep provenance": (b'{"jacobians": [], "provenance": ' + _DEEP.encode() + b"}", False),
    "of many lists": (record(jacobian=[[[]] * 1000]), False),
}


def npz(**arrays: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


def sparse(shape: Any = (1, 2, 2), indices: Any = ((0, 1), (0, 1)), data: Any = ((1.0, 2.0),)) -> dict[str, Any]:
    return {"shape": np.array(shape), "indices": np.array(indices), "data": np.array(data)}


NPZ: dict[str, tuple[dict[str, Any], bool]] = {
    "deep provenance": ({"jacobian": np.eye(3)[None], "provenance": np.array(_DEEP)}, True),
    "deep provenance in an object": (
        {"jacobian": np.eye(3)[None], "provenance": np.array('{"a":' + _DEEP + "}")},
        True,
    ),
    "provenance of numbers": ({"jacobian": np.eye(3)[None], "provenance": np.zeros(3)}, True),
    "samples of 5,000 digits": (
        {"jacobian": np.eye(3)[None], "provenance": np.array(json.dumps({"samples": "1" * 5000}))},
        True,
    ),
    "complex": ({"jacobian": np.eye(3)[None] + 1j}, False),
    "of one dimension": ({"jacobian": np.zeros(3)}, False),
    "empty": ({"jacobian": np.zeros((0, 3, 3))}, False),
    "no arrays": ({}, False),
    "sparse, 45 GB dense": (sparse((1, 75_000, 75_000)), False),
    "sparse, 2**62": (sparse((1, 2**31, 2**31)), False),
    "sparse, negative shape": (sparse((1, -2, 2)), False),
    "sparse, an entry outside": (sparse(indices=((0, 5), (0, 1))), False),
    "sparse, an entry twice": (sparse(indices=((0, 0), (0, 0))), False),
    "sparse, of floating-point indices": (sparse(indices=((0.0, 1.0), (0.0, 1.0))), False),
    "sparse, of another number": (sparse(data=((1.0,),)), False),
}


def float8(path: Path) -> None:
    torch.save({"jacobian": torch.ones(1, 2, 2).to(torch.float8_e5m2)}, path)


def files() -> Iterator[Bad]:
    for name, (write, harmless) in STORES.items():
        yield Bad(f"jacobian, zarr, {name}", "jacobian", write, (0, 3, 5) if harmless else (3, 5))
    for name, (data, harmless) in TEXT.items():
        yield Bad(f"jacobian, json {name}", "jacobian", bytes_of(data), (0, 3, 5) if harmless else (3, 5))
    for name, (arrays, harmless) in NPZ.items():
        yield Bad(f"jacobian, npz, {name}", "jacobian", npz(**arrays), (0, 3, 5) if harmless else (3, 5))
    yield Bad("jacobian, float8", "jacobian", float8, (0, 3))


FILES = list(files())
